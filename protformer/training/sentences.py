"""Errors of `train.py` for people: one sentence and an exit code; HYDRA_FULL_ERROR=1 shows the traceback.

Hydra ends a sweep at the first member that failed, after all have run, and prints pages. So each job's errors are told
and kept here, and Hydra sees a job that is done.
"""

import functools
import inspect
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from protformer.errors import ProtformerError, shown_path
from protformer.training.command_line import Grounds, check_values, explain
from protformer.training.sweep import FAILURE, TRACEBACK, is_config_hash

SHOW = "HYDRA_FULL_ERROR=1 python train.py ... shows the traceback"
UNEXPECTED = r"^(\S+?)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'"
Job = Callable[[DictConfig], Any]


@dataclass(frozen=True)
class _Failure:
    number: int
    overrides: str


class _Terminated(BaseException):
    """The process was asked to end by SIGTERM, as a batch system does."""


# The failures of the command line that is running; None where errors are to pass.
_failures: list[_Failure] | None = None


def one_job(job: Job) -> Job:
    """Wraps Hydra's task function: looks at the values first, and tells what fails in one sentence."""

    @functools.wraps(job)
    def told(config: DictConfig) -> Any:
        try:
            _check(config, Grounds(_config_dir(job)))
            _tell_of_the_set()
            return job(config)
        except SystemExit as error:
            # Lightning turns Ctrl-C into sys.exit(1), and SIGTERM into an exit with 0
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt(_resume_hint()) from error
            if type(error).__name__ == "SIGTERMException":
                raise _Terminated(_resume_hint()) from error
            raise
        except Exception as error:
            # what torch's launcher raises where this process, which waits for those of a job, is asked to end
            asked = _signal_behind(error)
            if asked is not None:
                raise (KeyboardInterrupt if asked == signal.SIGINT else _Terminated)(_resume_hint()) from error
            if _launched_elsewhere():
                raise ProtformerError(_tell_failure(error)) from error
            if not _keeps_failures():
                raise
            _tell_failure(error)
            return None

    return told


def _signal_behind(error: BaseException | None) -> int | None:
    """The signal that an error came of; OmegaConf, asked for a value as it arrives, raises an error of its own."""
    while error is not None:
        if type(error).__name__ == "SignalException":
            return getattr(error, "sigval", None)
        error = error.__cause__ or error.__context__
    return None


def in_sentences(main: Callable[..., Any]) -> int:
    """Run Hydra's main; the exit code: 0, 1 where a job failed or the command line cannot be, 2 for wrong usage, 130
    when interrupted, 143 when terminated."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        main()
        return 0
    try:
        with _raising() as failures:
            main()
    except (KeyboardInterrupt, _Terminated) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        _say(f"{'interrupted' if interrupted else 'ended by SIGTERM'}.{f' {error}' if str(error) else ''}")
        return 130 if interrupted else 143
    except SystemExit as error:  # Hydra has printed what was asked for, or argparse the usage
        flags = [a for a in sys.argv[1:] if a.startswith("-") and a not in sys.argv[1 : _first_override()]]
        if error.code == 2 and flags:
            _say(f"flags stand before the overrides: python train.py {' '.join(flags)} KEY=VALUE ...")
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        _say(_composition_sentence(error, _config_dir(main)))
        return 1
    if failures and sys.argv[1:] and _is_sweep():
        names = "; ".join(f"{f.number} ({f.overrides})" if f.overrides else str(f.number) for f in failures)
        _say(f"{len(failures)} job{'s' * (len(failures) > 1)} of this sweep failed: {names}.")
    return 1 if failures else 0


@contextmanager
def _raising() -> Iterator[list[_Failure]]:
    """Hydra hands errors on instead of printing them, and jobs' failures are kept in the list."""
    global _failures
    before, _failures = _failures, []
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield _failures
    finally:
        _failures = before
        os.environ.pop("HYDRA_FULL_ERROR", None)


def _first_override() -> int:
    return next((i for i, a in enumerate(sys.argv) if i and not a.startswith("-")), len(sys.argv))


def _config_dir(main: Callable[..., Any]) -> Path:
    return Path(inspect.getfile(inspect.unwrap(main))).resolve().parent / "conf"


def _is_sweep() -> bool:
    return bool(get_args_parser().parse_known_args()[0].multirun)


def _check(config: DictConfig, grounds: Grounds) -> None:
    check_values(HydraConfig.get().overrides.task, grounds)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ProtformerError(_missing(missing, HydraConfig.get().runtime.choices))


def _tell_of_the_set() -> None:
    """A configuration that names a set of runs makes one of them without -m: said, for it may have been forgotten."""
    hydra = HydraConfig.get()
    typed = {override.partition("=")[0].lstrip("+") for override in hydra.overrides.task}
    left = {key: value for key, value in (hydra.sweeper.get("params") or {}).items() if key not in typed}
    if hydra.mode == RunMode.RUN and left:
        told = " ".join(f"{key}={value}" for key, value in left.items())
        print(f"One run of a set: with -m it is {told}.", file=sys.stderr, flush=True)


def _missing(keys: list[str], choices: Any) -> str:
    wanted = []
    for key in keys:
        group = key.split(".")[0]
        wanted.append(f"{key}={'FILE' if group == 'data' else 'VALUE'}")
    group = keys[0].split(".")[0]
    chosen = f"{group}={choices[group]}" if group in choices else "the configuration"
    return f"{chosen} needs {' and '.join(keys)}: write {' '.join(wanted)}"


# (The two functions below are looked up in this module wherever a job runs. A launcher such as submitit takes `told`
# itself to its processes by value, and with it the values of what it names, so it must not name `_failures`.)
def _keeps_failures() -> bool:
    return _failures is not None


def _launched_elsewhere() -> bool:
    """Whether this job runs in a process of a launcher's own. What it raises Hydra carries to the command line, which
    says the first failure; other jobs run to their ends all the same."""
    hydra = HydraConfig.get()
    return hydra.mode == RunMode.MULTIRUN and hydra.runtime.choices.get("hydra/launcher") != "basic"


def _tell_failure(error: Exception) -> str:
    """Say it, and keep it where failures are kept."""
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    text = explained(error, run_dir)
    with suppress(OSError):  # (`protformer compare` names what is missing with it)
        (run_dir / FAILURE).write_text(text + "\n", encoding="utf-8")
    number, overrides = 0, ""
    if hydra.mode == RunMode.MULTIRUN:
        number, overrides = int(hydra.job.num), " ".join(hydra.overrides.task)
        text = f"job {number}{f' ({overrides})' if overrides else ''}: {text}"
    if _failures is not None:
        _failures.append(_Failure(number, overrides))
    _say(text)
    return text


def explained(error: Exception, run_dir: Path) -> str:
    """The sentence for a job's error; of one that nobody foresaw, the traceback is kept in the run folder."""
    return sentence(error) + ("" if _is_known(error) else _keep_traceback(error, run_dir))


def _keep_traceback(error: Exception, run_dir: Path) -> str:
    path = run_dir / TRACEBACK
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return f" (unexpected; {SHOW})"
    return f" (unexpected; the traceback is in {shown_path(path)}, and {SHOW})"


def _composition_sentence(error: Exception, config_dir: Path) -> str:
    """What to say of an error outside the jobs: nearly always a command line that cannot be composed."""
    if isinstance(error, HydraException | OmegaConfBaseException | ValueError | AssertionError):
        args = get_args_parser().parse_known_args()[0]
        try:
            found = explain(args.overrides, Grounds(config_dir), sweep=bool(args.multirun))
        except Exception:  # what explains must not hide what is to be explained
            found = None
        if found is not None:
            return found
    return sentence(error) + ("" if _is_known(error) else f" ({SHOW})")


def sentence(error: BaseException) -> str:
    """What an error says to a person, in one line."""
    where, cause = _unwrapped(error)
    text = str(cause).strip() or str(error).strip()
    if isinstance(cause, ProtformerError):
        return _one_line(text)
    if isinstance(cause, MissingMandatoryValue):
        return _missing([str(cause.full_key)], {})
    if isinstance(cause, OmegaConfBaseException):
        return _one_line(f"{cause.full_key}: {text.splitlines()[0]}" if cause.full_key else text.splitlines()[0])
    if isinstance(cause, OSError) and cause.filename is not None:
        return _one_line(f"{cause.strerror}: {shown_path(Path(os.fsdecode(cause.filename)))}")
    unknown = re.search(UNEXPECTED, text)
    if unknown and _key_ending_in(unknown[2]):
        return f"{_key_ending_in(unknown[2])}: {unknown[1]} takes no {unknown[2]}; leave it out."
    if type(cause).__name__ == "OutOfMemoryError":
        return (
            "The GPU's memory is full: lower data.batch_tokens, split each step with trainer.accumulate_grad_batches=2,"
            " or recompute with model.checkpoint_activations=true."
        )
    if isinstance(cause, HydraException):
        return _one_line(text.partition("\nConfig search path")[0].partition("\nSee https://")[0])
    prefix = f"{where}: " if where and not text.startswith(where) else ""
    if _is_known(error):
        return _one_line(prefix + text)
    return _one_line(f"{prefix}{type(cause).__name__}: {text}" if text else f"{prefix}{type(cause).__name__}")


def _unwrapped(error: BaseException) -> tuple[str, BaseException]:
    """The key of the configuration that was being built, if any, and the error without Hydra's wrapping."""
    where = ""
    while isinstance(error, InstantiationException):
        key = re.search(r"^full_key: (\S+)", str(error), re.MULTILINE)
        where = key[1] if key else where
        if error.__cause__ is None:
            break
        error = error.__cause__
    return where, error


def _is_known(error: BaseException) -> bool:
    """Whether a message is meant for the user: what protformer itself raises, and what a constructor refuses."""
    _, cause = _unwrapped(error)
    if isinstance(cause, ProtformerError | OmegaConfBaseException | HydraException):
        return True
    if isinstance(cause, OSError) and cause.filename is not None:
        return True
    if type(cause).__name__ in ("OutOfMemoryError", "MisconfigurationException"):
        return True
    unknown = re.search(UNEXPECTED, str(cause))
    if unknown and _key_ending_in(unknown[2]):
        return True
    if not isinstance(cause, ValueError):
        return False
    if cause is not error:
        return True
    frames = traceback.extract_tb(cause.__traceback__)
    ours = Path(__file__).resolve().parents[1]
    return bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(ours)


def _key_ending_in(name: str) -> str | None:
    """The key of the user's override that gave an argument of this name."""
    if not HydraConfig.initialized():
        return None
    keys = [override.lstrip("+").partition("=")[0] for override in HydraConfig.get().overrides.task]
    return next((key for key in keys if key.rpartition(".")[2] == name), None)


def _resume_hint() -> str:
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    if hydra.mode == RunMode.MULTIRUN and is_config_hash(folder.name):
        return "The same command line goes on with this sweep."
    if (folder / "members").is_dir():
        return "The same command line takes the members that ended as they are, and runs the others."
    last = folder / "checkpoints" / "last.ckpt"
    return f"ckpt_path={shown_path(last)} resumes from the last checkpoint." if last.is_file() else ""


def _say(text: str) -> None:
    sys.stdout.flush()
    print(f"protformer: {text}", file=sys.stderr, flush=True)


def _one_line(text: str, longest: int = 600) -> str:
    text = re.sub(r"\s*[\r\n]\s*", " ", text.strip())
    return text if len(text) <= longest else text[:longest] + "..."

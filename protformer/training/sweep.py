"""A member of a sweep (`-m`): a folder named by the hash of its configuration, so that what is done is known as done.

With `hydra.sweep.subdir=${config_hash:}` (experiments that compare set it) the same command line, run again, skips the
members that ended, goes on with one that was interrupted from its last checkpoint, and starts the others.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from zipfile import is_zipfile

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from protformer.errors import ProtformerError, shown_path

log = logging.getLogger(__name__)
CLAIM = ".claim"
FAILURE = "failure.txt"
TRACEBACK = "traceback.txt"
"""What a job that failed said, and where in the code; gone when it has run to its end."""
# Where things lie and what is logged changes no figure.
LEFT_OUT = ("hydra", "paths", "logger")


try:
    import fcntl
except ImportError:  # Windows: there nothing keeps two apart

    def lock(file: IO[str]) -> None:
        """Nothing."""
else:

    def lock(file: IO[str]) -> None:
        """Hold it until it is closed; OSError where another process does."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of the resolved configuration; where things lie and what is logged is left out."""
    kept = {str(key): value for key, value in config.items() if key not in LEFT_OUT}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_config_hash(name: str) -> bool:
    """Whether a folder is named as `config_hash` names them."""
    return re.fullmatch(r"[0-9a-f]{12}", name) is not None


def register_resolver() -> None:
    """`${config_hash:}` in a configuration is the hash of the whole of it."""

    def resolve(*, _root_: DictConfig) -> str:
        kept = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"])
        plain = OmegaConf.to_container(kept, resolve=True)
        assert isinstance(plain, dict)
        return config_hash({str(k): v for k, v in plain.items()})

    OmegaConf.register_new_resolver("config_hash", resolve, replace=True)


@contextmanager
def claimed(run_dir: Path) -> Iterator[IO[str]]:
    """One process at a time runs a member: two sweeps of one line would write each other's checkpoints. The claim ends
    with the process, however that ends, and with those that the open file was handed on to. ProtformerError where
    another holds it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / CLAIM).open("w") as file:
        try:
            lock(file)
        except OSError as error:
            raise ProtformerError(
                f"Another process is running this member ({shown_path(run_dir)}): let it end; run again, this line"
                " takes its figures."
            ) from error
        yield file


def is_claimed(run_dir: Path) -> bool:
    """Whether a process of this machine is running the member in this folder."""
    try:
        with (run_dir / CLAIM).open() as file:
            lock(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def finished_figures(run_dir: Path) -> dict[str, Any] | None:
    """The figures by evaluation set of a member that ended in this folder; None where it has yet to run."""
    record = run_dir / "metrics.json"
    if not record.is_file():
        return None
    try:
        sets = json.loads(record.read_text(encoding="utf-8"))["sets"]
        return {name: found["rows"][-1]["figures"] for name, found in sets.items()}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ProtformerError(
            f"{shown_path(record)} is damaged ({error!r}): remove it to run this member again."
        ) from error


def warn_of_changes(result: Path, config: Mapping[str, Any]) -> None:
    """Names files of the configuration (data, evaluation, the weights it starts from) that are younger than this
    result of a member: the folder's name comes from their paths, not from what they hold."""
    written = result.stat().st_mtime
    named = dict.fromkeys([*_texts([config.get(key) for key in ("data", "evaluate")]), *_weights(config)])
    changed = [text for text in named if Path(text).is_file() and Path(text).stat().st_mtime > written]
    if changed:
        log.warning(
            "Changed after %s was written: %s. Where they hold something else now, remove the member's folder to run it"
            " anew.",
            shown_path(result),
            ", ".join(changed),
        )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str) and "\0" not in value:
        yield value


def _weights(config: Mapping[str, Any]) -> Iterator[str]:
    folder = config.get("init_from")
    if isinstance(folder, str):
        from protformer.model.folder import WEIGHTS_NAME, find_model_folder

        with suppress(ProtformerError):  # it is gone by now, which the member that ended need not mind
            yield str(find_model_folder(folder) / WEIGHTS_NAME)


def written_configuration(run_dir: Path) -> dict[str, Any]:
    """The `config.yaml` that a run wrote into its folder; nothing where it did not come so far, or is damaged."""
    written = run_dir / "config.yaml"
    try:
        found = OmegaConf.to_container(OmegaConf.load(written)) if written.is_file() else {}
    except (YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        told = str(error).splitlines()[0]
        log.warning("%s is damaged (%s): whether its data changed since cannot be told.", shown_path(written), told)
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def last_checkpoint(run_dir: Path) -> str | None:
    """Where a member that was interrupted in this folder goes on; None where it starts."""
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        return None
    if not is_zipfile(checkpoint):  # what PyTorch writes
        raise ProtformerError(
            f"{shown_path(checkpoint)} is damaged: remove it, and this member starts anew, or put back a whole one."
        )
    return str(checkpoint)

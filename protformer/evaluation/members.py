"""Training runs that an experiment is made of, one after the other, each a process and a folder of its own.

A member is the experiment's own command line with a few overrides more, and trains instead of analysing. It lies in
`members/LABEL` of the experiment's folder; run again, the experiment takes a member that has ended as it is, goes on
from the last checkpoint of one that was interrupted, and runs the others. A member that fails is reported with its
reason, and the others go on.
"""

import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from torch.distributed.elastic.multiprocessing.api import SignalException

from protformer.errors import ProtformerError, shown_path
from protformer.evaluation.runs import read_metrics
from protformer.files import write_text
from protformer.surroundings import CHECKOUT
from protformer.training.command_line import Grounds, explain
from protformer.training.launch import end_with_parent
from protformer.training.quoting import as_override
from protformer.training.settings import JobSettings
from protformer.training.sweep import claimed, last_checkpoint, warn_of_changes, written_configuration

log = logging.getLogger(__name__)

TRAINING = "job=protformer.training.job.execute"
MADE_BY = "member.json"
OUTPUT = "output.log"
PATIENCE = 30
"""Seconds that a training run has to end when it is asked to."""


@dataclass(frozen=True)
class Member:
    """A training run: its name in tables and as a folder, and what its command line has beside the experiment's."""

    label: str
    overrides: tuple[str, ...]
    without: tuple[str, ...] = ()
    """Groups of the experiment's command line that are not for this member: `model`, for one with `init_from`."""


@dataclass(frozen=True)
class Ended:
    """What became of a member: `metrics` of its folder, or the reason why there are none."""

    member: Member
    folder: Path
    metrics: dict[str, Any] | None = None
    reason: str | None = None


def run_members(members: Sequence[Member], settings: JobSettings, *, own_key: str) -> list[Ended]:
    """Each of them, in order. `own_key` is the experiment's own group of settings, which members do not read.

    Raises:
        ProtformerError: the folder holds a member of that name that was made by another command line, or a member's
            command line cannot be (a misspelt method); before the first of them has trained for hours.
    """
    root = Path(settings.run_dir) / "members"
    folders = [root / _folder_name(member.label) for member in members]
    lines = [_overrides(member, settings, own_key) for member in members]
    for member, folder, line in zip(members, folders, lines, strict=True):
        _check_maker(folder, line)
        _check_line(member, line)
    ended = []
    for number, (member, folder, line) in enumerate(zip(members, folders, lines, strict=True), 1):
        where = f"{number} of {len(members)}: {member.label}"
        try:
            ended.append(_ended(member, folder, line, where))
        except ProtformerError as error:  # of its folder: a damaged checkpoint, another process at work in it
            ended.append(Ended(member, folder, reason=str(error)))
            log.warning("%s failed: %s", where, error)
    if not any(one.metrics for one in ended):
        raise ProtformerError(f"No member of this experiment ended. The first: {ended[0].reason}")
    return ended


def _ended(member: Member, folder: Path, line: Sequence[str], where: str) -> Ended:
    if (folder / "metrics.json").is_file():
        log.info("%s: done already", where)
        warn_of_changes(folder / "metrics.json", written_configuration(folder))
        return Ended(member, folder, read_metrics(folder))
    log.info("%s", where)
    started = time.monotonic()
    reason = _run(folder, line)
    if reason is not None:
        log.warning("%s failed: %s (all it said: %s)", where, reason, shown_path(folder / OUTPUT))
        return Ended(member, folder, reason=reason)
    log.info("%s: %.0f s", where, time.monotonic() - started)
    return Ended(member, folder, read_metrics(folder))


def require_all(ended: Sequence[Ended], rows: Path) -> None:
    """ProtformerError, so that the command line ends as failed, where a member did; after `rows` have been written."""
    failed = [one for one in ended if one.reason is not None]
    if failed:
        raise ProtformerError(
            f"{len(failed)} of {len(ended)} members failed: {', '.join(one.member.label for one in failed)}. The first:"
            f" {failed[0].reason} The rows of the others are in {shown_path(rows)}; the same line takes them as they"
            " are and runs these again."
        )


def failures(ended: Sequence[Ended]) -> list[str]:
    """A note for each member that failed."""
    return [f"{one.member.label} did not end: {one.reason}" for one in ended if one.reason is not None]


def _overrides(member: Member, settings: JobSettings, own_key: str) -> list[str]:
    """The experiment's command line, but for what the member sets itself and what only the experiment reads."""
    taken = {override_key(override) for override in member.overrides} | {"job"}
    kept = [
        override
        for override in settings.overrides
        if override_key(override) not in taken
        and override_key(override).split(".")[0] not in (own_key, "hydra", *member.without)
    ]
    return [*kept, TRAINING, *member.overrides]


def override_key(override: str) -> str:
    """What an override of the command line sets."""
    return override.lstrip("+~").partition("=")[0]


def _folder_name(label: str) -> str:
    """Readable, and a name for a folder whatever the label holds; two labels never share one."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", label).strip("._")
    return plain if plain == label else f"{plain}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def _check_maker(folder: Path, line: Sequence[str]) -> None:
    file = folder / MADE_BY
    if not file.is_file():
        return
    try:
        made_by = [str(override) for override in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ProtformerError(
            f"{shown_path(file)} is damaged: remove its folder, and the member is run anew."
        ) from error
    # who fits the floors goes by a member's place among the others, and changes nothing of what it trains
    theirs, ours = ([o for o in each if override_key(o) != "evaluate.floors"] for each in (made_by, line))
    if sorted(theirs) != sorted(ours):
        differing = sorted(set(theirs) ^ set(ours)) or ["how often an override stands there"]
        raise ProtformerError(
            f"{shown_path(folder)} was made by another command line (differing: {', '.join(differing)}): write"
            " hydra.run.dir=runs/NAME for a folder of its own, or remove that one."
        )


def _check_line(member: Member, line: Sequence[str]) -> None:
    configuration = _root() / "conf"
    wrong = explain(line, Grounds(configuration), sweep=False) if configuration.is_dir() else None
    if wrong is not None:
        raise ProtformerError(f"Member {member.label} cannot be: {wrong}")


def _root() -> Path:
    return Path(os.environ.get("PROTFORMER_ROOT", CHECKOUT))


def _run(folder: Path, line: Sequence[str]) -> str | None:
    """Run it to its end; None, or the reason why it failed."""
    command = [sys.executable, str(_root() / "train.py"), *line, as_override("hydra.run.dir", str(folder))]
    with claimed(folder) as claim:
        _check_maker(folder, line)  # again: another process may have begun it since
        write_text(folder / MADE_BY, json.dumps(list(line)) + "\n")
        interrupted = last_checkpoint(folder)
        if interrupted is not None:
            log.info("going on from %s", shown_path(interrupted))
            warn_of_changes(Path(interrupted), written_configuration(folder))
            command.append(as_override("ckpt_path", interrupted))
        with (folder / OUTPUT).open("a" if interrupted else "w", encoding="utf-8") as output:
            code = _ended_with_us(command, output, claim)
    if code == 0 and (folder / "metrics.json").is_file():
        return None
    said = [text.strip() for text in (folder / OUTPUT).read_text(encoding="utf-8").splitlines() if text.strip()]
    return said[-1].removeprefix("protformer: ") if said and code > 0 else f"its process ended with code {code}"


def _ended_with_us(command: Sequence[str], output: IO[str], claim: IO[str]) -> int:
    """The exit code of a training run that does not outlive this process: it would write beside its next start.

    Asked to end (SIGTERM, Ctrl-C), this process ends the run first; where it is killed, Linux does (and elsewhere the
    run holds the claim on its folder until it is done).
    """
    on_posix = {"pass_fds": (claim.fileno(),), "preexec_fn": end_with_parent} if os.name == "posix" else {}
    with _raising_when_terminated():
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment(), **on_posix)
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise


@contextmanager
def _raising_when_terminated() -> Iterator[None]:
    """SIGTERM as an exception (`training.sentences` tells it), where a signal can be handled: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def told(number: int, frame: FrameType | None) -> None:
        raise SignalException("a member was waited for", signal.Signals(number))

    before = signal.signal(signal.SIGTERM, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _environment() -> Mapping[str, str]:
    # What a launcher told this process of itself is not true of its children; and they are to fail in a sentence,
    # though Hydra hands on the errors of the command line that runs (`training.sentences`).
    own = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "HYDRA_FULL_ERROR")
    of_launchers = ("TORCHELASTIC_", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_")
    return {k: v for k, v in os.environ.items() if k not in own and not k.startswith(of_launchers)}

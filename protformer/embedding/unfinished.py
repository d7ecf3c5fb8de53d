"""The folder of an unfinished run, beside its output: `out.h5.parts`, with its shards and what they were made with.

One process writes in it at a time. `--resume` goes on where settings, model and versions are the same; the input is
compared window by window, by the digest in each shard.
"""

import contextlib
import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from protformer.embedding.assemble import sidecar
from protformer.errors import ProtformerError
from protformer.files import explaining, writing

_MADE_WITH = "run.json"


class Unfinished:
    """Opens or makes the folder, and holds its lock until the end of the block.

    Args:
        made_with: settings, model hash, versions and, where it is known, the digest of the input, as plain values: what
            must not change under a resume.
        resume: go on with what is there.
        force: begin anew.

    Raises:
        ProtformerError: another process is at it; an unfinished run is there and neither was asked for; or something
            in `made_with` has changed.
    """

    def __init__(self, output: Path, made_with: dict[str, Any], *, resume: bool, force: bool) -> None:
        self.path = sidecar(output, "parts")
        self._output = output
        self._made_with: dict[str, Any] = json.loads(json.dumps(made_with))
        self._resume = resume
        self._force = force
        self._lock: IO[str] | None = None

    def __enter__(self) -> "Unfinished":
        with explaining(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("w")
        _take(self._lock, self._output)
        try:
            self._open()
        except BaseException:
            self._lock.close()
            raise
        return self

    def _open(self) -> None:
        before = self.path / _MADE_WITH
        if before.exists() and not self._force:
            if not self._resume:
                raise ProtformerError(
                    f"{self._output} was begun before and not finished: "
                    "go on with --resume, or begin anew with --force."
                )
            former = json.loads(before.read_text(encoding="utf-8"))
            if former.get("input_digest") != self._made_with.get("input_digest"):
                raise other_input(self._output)
            changed = _differences(former, self._made_with)
            if changed:
                raise ProtformerError(
                    f"{self._output} was begun with other settings and cannot be resumed with these: "
                    f"{'; '.join(changed)}. Take the former ones, or begin anew with --force."
                )
        else:
            for path in self.path.iterdir():
                if path.name != "lock":
                    path.unlink()
        with explaining(self.path):
            for path in self.path.glob("*.part"):
                path.unlink()
            with writing(before) as file:
                json.dump(self._made_with, file, indent=1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not any(self.path.glob("shard-*.safetensors")):
            self.remove()  # nothing was done that could be resumed
        if self._lock is not None:
            self._lock.close()

    def remove(self) -> None:
        """The output is in its place: the parts are not needed any more."""
        # what names the run goes last: a removal that is interrupted leaves a run that can be resumed, or removed again
        for path in sorted(self.path.iterdir(), key=lambda path: path.name in (_MADE_WITH, "lock")):
            path.unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()


def other_input(output: Path, where: str = "") -> ProtformerError:
    return ProtformerError(
        f"The input is another one than {output} was begun with{where}: give the former files in the former order, or "
        "begin anew with --force."
    )


def _take(lock: IO[str], output: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: no lock
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ProtformerError(
            f"Another process is writing {output} just now: wait for it, or name another output."
        ) from None


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """What is not the same, each as a phrase."""
    changed = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            changed.append(f"{prefix}{name} was {_short(old)}, now {_short(new)}")
    return changed


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."

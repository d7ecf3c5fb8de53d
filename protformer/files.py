"""Files that are whole or not there: written under another name, flushed to the disk, renamed. Open to all rooms."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from protformer.errors import ProtformerError


def flush(path: Path) -> None:
    """Onto the disk: a rename of what only the cache knows is lost with the power."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def replace(temporary: Path, path: Path) -> None:
    """Rename, and flush the folder too."""
    temporary.replace(path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """A text file (UTF-8) that appears under its name when the block ends well."""
    # (a name of its own: two processes that write the same file must not write into each other's)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with writing(path) as file:
        file.write(text)


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """An error of the system while `path` is written, as a sentence."""
    try:
        yield
    except OSError as error:
        # h5py's messages are a page long; the system's own sentence is in its errno
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ProtformerError(f"{path} cannot be written: {reason}.") from error

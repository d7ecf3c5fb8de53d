"""A table or page that a command was asked to write: refused where it would harm, else whole or not there."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from protformer.errors import ProtformerError
from protformer.files import explaining, writing


@contextmanager
def whole_file(path: Path, *, inputs: Iterable[Path] = ()) -> Iterator[TextIO]:
    """Gives the file to write, UTF-8; it is in place when the block ends well, and otherwise nothing is.

    An earlier file of that name is replaced; folders are made.
    Raises ProtformerError where `path` is a folder, a device, one of the `inputs`, or cannot be written.
    """
    if path.exists() and not path.is_file():
        raise ProtformerError(f"{path} is {'a folder' if path.is_dir() else 'no plain file'}: name a file to write.")
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise ProtformerError(f"{path} is what is read: give another name for what is written.")
    with explaining(path):
        path = path.resolve()  # a link stays, and what it points to is replaced
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as file:
            yield file

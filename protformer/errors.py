"""The one exception that a user is meant to read.

Every room raises `ProtformerError` for what a person can mend: a file that is not FASTA, an override that cannot be,
a model folder of another version. Its message is one or two sentences: what was wrong, where (file, record, override),
and what to do. The entry points print it without a traceback and exit with a code that is not zero.
"""

from pathlib import Path


class ProtformerError(Exception):
    """Something the user can mend; the message says what, where and how."""


def shown_path(path: str | Path) -> str:
    """A path as people read it: relative where it lies below the working directory."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

"""FASTA from any file: Biopython parses, this module opens, and says so where a file is not FASTA.

Compression is told by a file's first bytes, never by its name. What Biopython 1.88's `SimpleFastaParser` does, and what
is done about it here:
  - it skips everything before the first ">", so that a file that is not FASTA reads as empty, and a FASTQ file's
    quality lines may read as headers. Here the first line that is neither blank nor a comment must start with ">", else
    the file is refused; a first line of free text, as Pearson's tools allow, is refused too: it may be a lost header;
  - it takes comment lines for residues. Here lines that start with ";", "!" or "#" are comments, as in BLAST, and are
    counted;
  - ">" alone is a record with the id "", and a header followed by no residues a record with an empty sequence: so they
    are here, and `corpus` counts them.
"""

import bz2
import codecs
import glob
import gzip
import importlib
import io
import lzma
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from Bio.SeqIO.FastaIO import SimpleFastaParser

from protformer.errors import ProtformerError

STDIN = Path("-")

_GZIP, _BZIP2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_OTHER_CONTAINERS = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x9d": "compressed by `compress` (.Z)",
    b"\x04\x22\x4d\x18": "compressed by lz4",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
}
_WIDE_TEXT = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LOOKS_LIKE = {  # what the first line of a file that is not FASTA often starts with
    "@": "FASTQ",
    "LOCUS": "GenBank",
    "ID   ": "EMBL or UniProt text",
    "CLUSTAL": "a Clustal alignment",
    "# STOCKHOLM": "a Stockholm alignment",
    "<": "XML or HTML",
    "{": "JSON",
    "%PDF": "PDF",
}
_BOM = "\ufeff"
_COMMENT = ";!#"
_UNUSUAL_START = _COMMENT + _BOM + " \t\n\x0b\x0c"


class Record(NamedTuple):
    id: str  # the first word of the header; "" where there is none
    description: str  # the whole header line, without ">"
    sequence: str  # the letters as they stand, lines joined


def _named(path: str | Path) -> str:
    return "standard input" if str(path) == "-" else str(path)


def _reading_errors() -> tuple[type[Exception], ...]:
    """What a damaged file raises while it is read, over all decompressors."""
    module = _zstd_module()
    return (EOFError, OSError, zlib.error, lzma.LZMAError, *(() if module is None else (module.ZstdError,)))


def _zstd_module() -> Any:
    """The standard library's module (Python 3.14) or its backport, None without.

    The `zstandard` package is left out on purpose: it ends a file that was cut short without an error (seen with 0.25),
    so that records would be missing in silence.
    """
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def _open_zstd(raw: io.BufferedReader, path: str | Path) -> io.BufferedIOBase:
    module = _zstd_module()
    if module is None:
        raise ProtformerError(
            f"{_named(path)} is compressed with Zstandard, which this Python cannot read: "
            'install the extra with `pip install "protformer[zst]"`, or unpack the file with `zstd -d`.'
        )
    return module.ZstdFile(raw)


def _decompressed(raw: io.BufferedReader, path: str | Path) -> io.BufferedIOBase:
    start = raw.peek(8)[:8]
    if start.startswith(_GZIP):
        return gzip.GzipFile(fileobj=raw)
    if start.startswith(_BZIP2):
        return bz2.BZ2File(raw)
    if start.startswith(_XZ):
        return lzma.LZMAFile(raw)
    if start.startswith(_ZSTD):
        return _open_zstd(raw, path)
    for magic, what in _OTHER_CONTAINERS.items():
        if start.startswith(magic):
            raise ProtformerError(
                f"{_named(path)} is {what}, which is not read here: unpack it, or use gz, bz2, xz or zst."
            )
    return raw


def open_text(path: str | Path) -> io.TextIOWrapper:
    """A text file, plain or compressed by gzip, bzip2, xz or Zstandard, told by its first bytes; `-` is standard input.

    UTF-8, with or without a byte-order mark; bytes that are not UTF-8 survive as lone surrogates. Lines may end in LF,
    CRLF or CR.
    Raises ProtformerError, naming the file, where it is missing, unreadable, damaged at its start, or binary.
    """
    if Path(path) == STDIN:
        raw = open(os.dup(sys.stdin.fileno()), "rb")  # noqa: PTH123, SIM115 - a copy, so that closing leaves stdin open
    else:
        try:
            raw = Path(path).open("rb")  # noqa: SIM115 - closed with the text below
        except IsADirectoryError:
            raise ProtformerError(f"{path} is a folder: name its files, for instance {path}/*.fasta.") from None
        except OSError as error:
            raise ProtformerError(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        stream = io.BufferedReader(cast(Any, _decompressed(raw, path)), buffer_size=1 << 16)
        start = stream.peek(1 << 12)[: 1 << 12]
    except ProtformerError:
        raw.close()
        raise
    except _reading_errors() as error:
        raw.close()
        raise _damaged(path, error) from None
    if start.startswith(_WIDE_TEXT) or b"\x00" in start:
        stream.close()
        raw.close()
        what = "UTF-16 text: save it as UTF-8" if start.startswith(_WIDE_TEXT) else "a binary file, not text"
        raise ProtformerError(f"{_named(path)} is {what}.")
    return _Text(stream, raw)


class _Text(io.TextIOWrapper):
    """Closes the file below too: the standard decompressors leave a file that they did not open."""

    def __init__(self, stream: io.BufferedReader, raw: io.BufferedReader):
        super().__init__(stream, encoding="utf-8-sig", errors="surrogateescape")
        self._below = raw

    def close(self) -> None:
        super().close()
        self._below.close()


@contextmanager
def reading(path: str | Path) -> Iterator[io.TextIOWrapper]:
    """`open_text` for a `with` whose body reads: a file found damaged on the way is a ProtformerError that names it."""
    with open_text(path) as text:
        try:
            yield text
        except _reading_errors() as error:
            raise _damaged(path, error) from None


def _damaged(path: str | Path, error: Exception) -> ProtformerError:
    return ProtformerError(
        f"{_named(path)} cannot be read to its end, it is damaged or was cut short ({error}): fetch or write it again."
    )


def as_text(text: str) -> str:
    """Bytes that were not UTF-8, taken as Latin-1: one byte stays one character, and the text can be written again."""
    return "".join(chr(ord(letter) - 0xDC00) if "\udc80" <= letter <= "\udcff" else letter for letter in text)


def _fasta_lines(handle: Iterable[str], path: str | Path, counts: Counter[str]) -> Iterator[str]:
    """The lines that Biopython is to see: no comments, no indentation, no stray byte-order marks, and ">" first."""
    begun = False
    for number, line in enumerate(handle, start=1):
        if line[0] in _UNUSUAL_START:
            if not begun and line.startswith("# STOCKHOLM"):
                raise _not_fasta(path, number, line)
            line = line.lstrip(_BOM + " \t\x0b\x0c\n") or "\n"
            if line[0] in _COMMENT:
                counts["comment lines"] += 1
                continue
        if not begun and line != "\n":
            if line[0] != ">":
                raise _not_fasta(path, number, line)
            begun = True
        yield line


def _not_fasta(path: str | Path, number: int, line: str) -> ProtformerError:
    likely = next((what for start, what in _LOOKS_LIKE.items() if line.startswith(start)), None)
    looks = f" It looks like {likely}." if likely else ""
    shown = line.strip()
    shown = ascii(shown if len(shown) <= 40 else shown[:40] + "...")
    return ProtformerError(
        f'{_named(path)} is not FASTA: line {number} is {shown} where the first ">" should be.{looks} '
        'If the line is a comment, start it with ";".'
    )


def read_fasta(path: str | Path, *, counts: Counter[str] | None = None) -> Iterator[Record]:
    """The records of one FASTA file, in order, through Biopython.

    Wrapped lines, blank lines, CRLF, a byte-order mark and comment lines (";", "!" or "#" first) are understood. An
    empty file has no records. Letters are not judged here: see `alphabet.clean`.

    Args:
        path: plain or compressed (see `open_text`); `-` is standard input.
        counts: its "comment lines" is raised by the number of comment lines left out.

    Raises:
        ProtformerError: the file is not FASTA, is binary, or cannot be decompressed; the message names it.
    """
    counts = Counter() if counts is None else counts
    with reading(path) as handle:
        for title, sequence in SimpleFastaParser(_fasta_lines(handle, path, counts)):
            if not title.isascii():
                title = as_text(title)
            if not sequence.isascii():
                sequence = as_text(sequence)
            words = title.split(None, 1)
            yield Record(words[0] if words else "", title, sequence)


def expand_paths(spec: str | Path | Iterable[str | Path]) -> list[Path]:
    """Files named by a path, a glob or several of them, in the order given; a glob's files sorted; each file once.

    A path that exists is taken as it is, whatever characters it has; `**` matches folders at any depth; `-` is standard
    input.
    Raises ProtformerError naming what matched nothing.
    """
    entries = [spec] if isinstance(spec, str | Path) else list(spec)
    paths: dict[Path, None] = {}  # a dict keeps the order and drops repeats
    for entry in entries:
        path = Path(entry).expanduser()
        if path.is_dir():
            raise ProtformerError(f"{entry} is a folder: name its files, for instance {entry}/*.fasta.")
        if path == STDIN or path.exists():
            paths[path] = None
            continue
        matches = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = sorted(match for match in matches if not match.is_dir())
        if not found:
            what = "matches no file" if glob.has_magic(str(path)) else "does not exist"
            raise ProtformerError(f"{str(entry)!r} {what} (looked from {Path.cwd()}).")
        paths.update(dict.fromkeys(found))
    if not paths:
        raise ProtformerError("No file was named: give a FASTA file, a glob or a list of them.")
    return list(paths)

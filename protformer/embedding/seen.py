"""Ids and sequences that came before, in a file and not in memory: a hundred million records are as good as ten.

Digests of 16 bytes stand for them: two different ones agree once in 1e19 for a billion records.
"""

import sqlite3
from hashlib import blake2b

from protformer.embedding.keys import safe_key

_CACHE_KIB = 16_384  # of the table's pages that stay in memory


class Seen:
    """Ids, keys that were given out, and the record that each sequence came with first.

    The tables are a temporary database of SQLite's: on the disk beyond its cache, and gone with the process.
    """

    def __init__(self) -> None:
        self._tables = sqlite3.connect("", check_same_thread=False)
        self._unnamed = 0
        for line in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "PRAGMA temp_store = FILE",
            f"PRAGMA cache_size = -{_CACHE_KIB}",
            "CREATE TABLE ids (digest BLOB PRIMARY KEY) WITHOUT ROWID",
            "CREATE TABLE keys (digest BLOB PRIMARY KEY, suffix INTEGER) WITHOUT ROWID",
            "CREATE TABLE sequences (digest BLOB PRIMARY KEY, record INTEGER) WITHOUT ROWID",
            "BEGIN",
        ):
            self._tables.execute(line)

    def new_id(self, name: str) -> bool:
        """Whether this id (not "") comes for the first time; it is remembered."""
        return self._insert("INSERT OR IGNORE INTO ids VALUES (?)", name.encode("utf-8", "surrogatepass"))

    def key(self, name: str) -> str:
        """A key that no other record has.

        An id that comes again gets `_2`, `_3`, ...; records without an id are `unnamed_1`, `unnamed_2`, ...
        """
        if name:
            wanted = safe_key(name)
        else:
            self._unnamed += 1
            wanted = f"unnamed_{self._unnamed}"
        if self._take(wanted):
            return wanted
        row = (digest(wanted.encode()),)
        suffix: int = self._tables.execute("SELECT suffix FROM keys WHERE digest = ?", row).fetchone()[0]
        while not self._take(key := f"{wanted}_{suffix}"):
            suffix += 1
        self._tables.execute("UPDATE keys SET suffix = ? WHERE digest = ?", (suffix + 1, *row))
        return key

    def first(self, sequence: bytes, record: int) -> int | None:
        """The record that this sequence came with before; None, and remembered with `record`, where it is new."""
        if self._insert("INSERT OR IGNORE INTO sequences VALUES (?, ?)", sequence, record):
            return None
        hashed = digest(sequence)
        return self._tables.execute("SELECT record FROM sequences WHERE digest = ?", (hashed,)).fetchone()[0]

    def close(self) -> None:
        self._tables.close()

    def __enter__(self) -> "Seen":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, key: str) -> bool:
        return self._insert("INSERT OR IGNORE INTO keys VALUES (?, 2)", key.encode())

    def _insert(self, statement: str, text: bytes, *values: int) -> bool:
        return self._tables.execute(statement, (digest(text), *values)).rowcount == 1


def digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()

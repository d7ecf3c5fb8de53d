"""How a protein of a store is named to people: in tables, on pages, in warnings."""

import re
from collections import Counter
from collections.abc import Iterable

from protformer.data.corpus import Noted
from protformer.embedding.stored import StoredEmbeddings

_BREAKS = re.compile(r"[\x00-\x20\x7f\x85\u2028\u2029]+")


def names(store: StoredEmbeddings) -> list[str]:
    """One name for each protein, each different: its id, or its key where it has no id or one that comes again.

    They fit into a cell of a table: tabs and line breaks are spaces.
    """
    times, keys = Counter(store.ids), set(store.keys)
    return [
        # an id may be what another protein has as its key: a, a and a_2 have the keys a, a_2 and a_2_2
        one_line(name if name and times[name] == 1 and (name == key or name not in keys) else key)
        for name, key in zip(store.ids, store.keys, strict=True)
    ]


def titles(store: StoredEmbeddings) -> list[str]:
    """What the header lines say beside the ids; "" where that is nothing or not known."""
    return [title(name, line) for name, line in zip(store.ids, store.descriptions, strict=True)]


def title(name: str, description: str) -> str:
    """A header line without the id that it starts with."""
    words = description.split(None, 1)
    if words and words[0] == name:
        words = words[1:]
    return one_line(" ".join(words))


def one_line(text: str) -> str:
    """Control characters and line breaks are spaces, and no two spaces follow each other."""
    return _BREAKS.sub(" ", text).strip()


def some(found: Iterable[str]) -> str:
    """`12 (P12345, P67890, ...)`: how many, and the first few by name."""
    noted = Noted()
    for name in found:
        noted.add(name)
    return str(noted)

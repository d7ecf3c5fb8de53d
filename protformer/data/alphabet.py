"""ESM-2's alphabet: one residue is one token, always.

The 33 tokens stand in ESM-2's order (fair-esm `data.Alphabet.from_architecture("ESM-1b")`, Hugging Face `vocab.txt`),
so that an ESM-2 checkpoint's embedding rows need no permutation. A token fits in a byte, and encoding is one
`bytes.translate` through a table of 256 entries: about a nanosecond per residue, and no letter shifts its neighbours.

Two doors:
  `encode`  letters as they are, for text that is known to be a sequence: "-" and "." keep ESM-2's ids for them;
  `clean`   letters from a file: only residues remain, and what was done to the others is counted.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

TOKENS: tuple[str, ...] = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
CLS, PAD, EOS, UNK, MASK = 0, 1, 2, 3, 32
X = 24  # any residue

STANDARD = "LAGVSERTIDPKQNFYMHWC"  # the 20 standard residues, ids 4 to 23
RESIDUES = STANDARD + "XBUZO"  # every letter that may stand for one residue, ids 4 to 28

IS_STANDARD: Bool[np.ndarray, " tokens"] = np.array([token in STANDARD for token in TOKENS])  # [33]
IS_STANDARD.flags.writeable = False

_ID = {token: index for index, token in enumerate(TOKENS)}
_SPACE = b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"  # what str.isspace says of ASCII


def _table(letters: str) -> bytes:
    """A 256-entry table: these letters, in either case, to their ids; every other byte to X."""
    table = bytearray([X]) * 256
    for letter in letters:
        table[ord(letter)] = table[ord(letter.lower())] = _ID[letter]
    return bytes(table)


_ENCODE = _table(RESIDUES + ".-")
_CLEAN = _table(RESIDUES)  # a gap is no residue: it becomes X and is counted
_AS_EXPECTED = RESIDUES.encode() + _SPACE
_NO_GAPS = {ord(gap): None for gap in "-."}
_DECODE = bytes(ord(token) if len(token) == 1 else 0 for token in TOKENS) + bytes(256 - len(TOKENS))


def encode(sequence: str) -> UInt8[np.ndarray, " length"]:
    """One token per character, without specials. Lower case is upper; what the alphabet lacks, `J` too, is X."""
    return np.frombuffer(bytearray(sequence, "ascii", "replace").translate(_ENCODE), dtype=np.uint8)


def decode(tokens: "np.ndarray | Sequence[int] | bytes") -> str:
    """The text of tokens, specials by name: `[0, 20, 32, 2]` is `<cls>M<mask><eos>`; ValueError outside 0 to 32."""
    ids = np.frombuffer(tokens, np.uint8) if isinstance(tokens, bytes) else np.asarray(tokens).reshape(-1)
    if ids.size == 0:
        return ""
    if ids.min() < 0 or ids.max() >= len(TOKENS):
        raise ValueError(f"tokens are ids from 0 to {len(TOKENS) - 1}, not {ids.min()} to {ids.max()}")
    text = ids.astype(np.uint8).tobytes().translate(_DECODE)
    if 0 in text:  # a special token has more letters than one
        return "".join(TOKENS[index] for index in ids.tolist())
    return text.decode("ascii")


class Cleaned(NamedTuple):
    """The residues of a sequence as it stood in a file, and what became of the other characters."""

    tokens: bytes  # one byte per residue
    replaced: dict[str, int]  # letter (upper case) -> how many became X; an X that stood there is not counted
    lower_case: int  # lower-case letters read as upper
    stop_dropped: bool  # one final "*" was dropped: it marks the stop codon, not a residue

    gaps_dropped: int = 0  # "-" and "." of an alignment


_NOTHING: dict[str, int] = {}


def clean(sequence: str, *, aligned: bool = False) -> Cleaned:
    """Residues of a sequence read from a file. `aligned`: gaps are an alignment's, and go.

    Whitespace goes; one final `*` goes; lower case is upper; `J`, gaps, digits, an inner `*` and any other character
    become X in their place, so that every residue keeps its position.
    """
    if aligned and (gaps := sequence.count("-") + sequence.count(".")):
        return clean(sequence.translate(_NO_GAPS))._replace(gaps_dropped=gaps)
    foreign = None
    if not sequence.isascii():
        sequence = "".join(sequence.split())  # knows Unicode's spaces too
        foreign = Counter(letter for letter in sequence if not letter.isascii())
    raw = sequence.encode("ascii", "replace")
    tokens = raw.translate(_CLEAN, _SPACE)
    odd = raw.translate(None, _AS_EXPECTED)
    if not odd:
        return Cleaned(tokens, _NOTHING, 0, False)

    counts = np.bincount(np.frombuffer(odd, np.uint8), minlength=256)
    stop_dropped = raw.rstrip(_SPACE).endswith(b"*")
    if stop_dropped:
        tokens = tokens[:-1]
        counts[ord("*")] -= 1
    lower_case = int(counts[ord("a") : ord("z") + 1].sum())
    if foreign:
        counts[ord("?")] -= foreign.total()  # "?" is what `replace` wrote for them
    replaced = Counter(foreign)
    for code in np.flatnonzero(counts).tolist():
        letter = chr(code).upper()
        if letter not in RESIDUES:
            replaced[letter] += int(counts[code])
    return Cleaned(tokens, dict(replaced), lower_case, stop_dropped)

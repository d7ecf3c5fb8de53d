"""One residue is one token: round trips, positions kept, everything counted."""

import random
import string

import numpy as np
import pytest

from protformer.data import alphabet
from protformer.data.alphabet import RESIDUES, STANDARD, TOKENS, clean, decode, encode


def test_the_alphabet_is_esm2s():
    assert len(TOKENS) == len(set(TOKENS)) == 33
    assert [TOKENS[index] for index in (alphabet.CLS, alphabet.PAD, alphabet.EOS, alphabet.UNK, alphabet.MASK)] == [
        "<cls>",
        "<pad>",
        "<eos>",
        "<unk>",
        "<mask>",
    ]
    # the order of `facts.md`, from fair-esm: standard residues by frequency, then the rare ones
    assert "".join(TOKENS[4:31]) == "LAGVSERTIDPKQNFYMHWCXBUZO.-"
    assert TOKENS[alphabet.X] == "X"
    assert "".join(TOKENS[index] for index in np.flatnonzero(alphabet.IS_STANDARD)) == STANDARD


def test_decode_inverts_encode_on_every_letter_of_the_alphabet():
    letters = "".join(random.Random(0).choices(RESIDUES + ".-", k=1000))
    assert decode(encode(letters)) == letters
    assert np.array_equal(encode(letters.lower()), encode(letters))
    assert encode(letters).dtype == np.uint8
    assert encode("").size == 0
    assert decode(encode("")) == ""


def test_encode_gives_one_token_per_character_whatever_the_character():
    text = string.printable + "éß中\x00\u200b"
    tokens = encode(text)
    assert len(tokens) == len(text)
    outside = [token for token, letter in zip(tokens, text, strict=True) if letter.upper() not in RESIDUES + ".-"]
    assert set(outside) == {alphabet.X}


def test_decode_names_specials_and_refuses_what_is_no_token():
    assert decode([0, 20, 32, 2]) == "<cls>M<mask><eos>"
    assert decode(np.array([20, 4], dtype=np.int64)) == decode(bytes([20, 4])) == "ML"
    with pytest.raises(ValueError, match="0 to 32"):
        decode([33])
    with pytest.raises(ValueError, match="0 to 32"):
        decode(np.array([-1]))


@pytest.mark.parametrize(
    ("text", "residues", "replaced", "lower", "stop"),
    [
        ("MKV", "MKV", {}, 0, False),
        ("mkv", "MKV", {}, 3, False),
        ("MKV*", "MKV", {}, 0, True),
        ("MKV* \n", "MKV", {}, 0, True),
        ("MKV**", "MKVX", {"*": 1}, 0, True),
        ("M*KV", "MXKV", {"*": 1}, 0, False),
        ("M-K.V3", "MXKXVX", {"-": 1, ".": 1, "3": 1}, 0, False),
        ("MJjK", "MXXK", {"J": 2}, 1, False),
        ("XBUZO", "XBUZO", {}, 0, False),  # ESM-2 has tokens for these: not replaced
        (" M K\tV\r\n", "MKV", {}, 0, False),
        ("MéK?V", "MXKXV", {"é": 1, "?": 1}, 0, False),
        ("M\u00a0K", "MK", {}, 0, False),  # a no-break space
        ("*", "", {}, 0, True),
        ("", "", {}, 0, False),
    ],
)
def test_clean(text, residues, replaced, lower, stop):
    cleaned = clean(text)
    assert (decode(cleaned.tokens), cleaned.replaced) == (residues, replaced)
    assert (cleaned.lower_case, cleaned.stop_dropped) == (lower, stop)


def test_cleaning_keeps_every_position_and_its_counts_add_up():
    rng = random.Random(1)
    for _ in range(200):
        text = "".join(rng.choices(string.ascii_letters + "*-.0 \t?é", k=rng.randrange(30)))
        cleaned = clean(text)
        letters = "".join(text.split())
        assert len(cleaned.tokens) == len(letters) - cleaned.stop_dropped
        kept = letters[:-1] if cleaned.stop_dropped else letters
        replaced = sum(letter.upper() not in RESIDUES for letter in kept)
        assert sum(cleaned.replaced.values()) == replaced
        for token, letter in zip(cleaned.tokens, kept, strict=True):
            assert TOKENS[token] == (letter.upper() if letter.upper() in RESIDUES else "X")

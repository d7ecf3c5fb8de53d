import string

import pytest

from protformer.embedding.keys import LONGEST_KEY, safe_key
from protformer.embedding.seen import Seen

SAFE = ["P12345", "sp|P12345|NAME_HUMAN", "NP_000001.1", "gi|5|ref|x:1-20", "Käse", "A=1,B", "x" * LONGEST_KEY]
UNSAFE = [
    "../../evil",
    "..",
    ".",
    "/",
    "/etc/passwd",
    "a\0b",
    "a b",
    ".hidden",
    "a..b",
    "x" * 300,
    "\n",
    "é" * 150,
    "\udc80",
]


@pytest.mark.parametrize("name", SAFE)
def test_a_safe_id_is_its_key(name):
    assert safe_key(name) == name


def test_an_unsafe_id_gets_a_key_that_is_safe_and_its_own():
    keys = [safe_key(name) for name in UNSAFE]
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert safe_key(key) == key, "a key that was made is safe itself"
        assert not any(part in key for part in ("/", "..", "\0", " ", "\n"))
        assert 0 < len(key.encode()) <= 255


def test_ids_that_differ_only_in_what_is_unsafe_stay_apart():
    assert len({safe_key(f"a{letter}b") for letter in " /\t\0\\'\"<>*?"}) == 11


def test_each_key_is_given_once():
    seen = Seen()
    given = [seen.key(name) for name in ["a", "a", "b", "", "a", "a_2", "", "unnamed_1", "a", "../x", "../x"]]
    assert len(set(given)) == len(given)
    assert given[:7] == ["a", "a_2", "b", "unnamed_1", "a_3", "a_2_2", "unnamed_2"]
    assert given[10] == given[9] + "_2"


def test_every_byte_of_an_id_is_survived():
    for letter in map(chr, range(256)):
        key = safe_key(f"x{letter}y")
        assert set(key) <= set(string.printable) - set("/ \t\n\r\x0b\x0c") or letter.isalnum()

"""From ids to keys of a store: any id, whatever it holds, names one dataset and nothing else.

An HDF5 name may not hold `/` or NUL, and tools write files named by key: an id such as `../../evil` once wrote outside
the output folder (fair-esm). The id itself stays beside the key, as `original_id`.
"""

import re
from hashlib import blake2b

LONGEST_KEY = 200  # bytes: below the 255 that file systems take, with room for a suffix
_KEPT = 80  # characters of an id that is not safe as it is
_LETTERS = r"\w.|:=+,@#~()\[\]-"
_SAFE = re.compile(rf"(?!\.)(?!.*\.\.)[{_LETTERS}]+")
_UNSAFE_RUN = re.compile(rf"[^{_LETTERS}]+|\.\.+")


def safe_key(name: str) -> str:
    """`name` itself where it is safe (UniProt's `sp|P12345|NAME_HUMAN` is); else what is safe of it, and a hash of it.

    The hash keeps apart ids that differ only in what was taken out. The empty id has no key.
    """
    raw = name.encode("utf-8", "surrogatepass")
    if _SAFE.fullmatch(name) and len(raw) <= LONGEST_KEY:
        return name
    if not name:
        raise ValueError("the empty id has no key of its own")
    readable = _UNSAFE_RUN.sub("_", name)[:_KEPT].strip("._")
    return f"{readable}_{blake2b(raw, digest_size=4).hexdigest()}".lstrip("_")

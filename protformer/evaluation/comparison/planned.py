"""Members that a sweep's last command line named, begun or not: from `multirun.yaml`, which Hydra writes."""

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

SWEEP_FILE = "multirun.yaml"
Choice = tuple[str, ...]
"""What a member is told, and no other: ("method=exact", "seed=0")."""


def planned(folder: Path) -> list[Choice]:
    """In Hydra's order; empty where the folder is no sweep's, or its choices are no plain lists."""
    try:
        hydra = yaml.safe_load((folder / SWEEP_FILE).read_text(encoding="utf-8"))["hydra"]
        told = {str(key): str(value) for key, value in (hydra["sweeper"].get("params") or {}).items()}
        for override in hydra["overrides"]["task"]:
            key, _, value = str(override).lstrip("+").partition("=")
            if key in told or len(split(value)) > 1:
                told[key] = value
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return []
    if any(re.match(r"\s*(choice|range|interval|glob|sort|shuffle|tag)\(", value) for value in told.values()):
        return []
    return list(itertools.product(*([f"{key}={one}" for one in split(value)] for key, value in told.items())))


def split(text: str) -> list[str]:
    """At the commas that are in no bracket and in no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _normal(override: str) -> str:
    """One spelling of what Hydra takes for the same: runs record 0.001 where the command line said 1e-3."""
    key, _, value = override.partition("=")
    # (what is in quotes stays)
    parts = re.split(r"""('[^']*'|"[^"]*")""", value)
    value = "".join(part if n % 2 else _numbers(re.sub(r"\s+", "", part)) for n, part in enumerate(parts))
    return f"{key.strip().lstrip('+')}={value}"


def _numbers(text: str) -> str:
    def plain(word: str) -> str:
        if word.casefold() in ("true", "false", "null"):
            return word.casefold()
        try:
            return repr(float(word)) if word[:1] in "+-.0123456789" else word
        except ValueError:
            return word

    return "".join(plain(word) for word in re.split(r"([,:\[\]{}()])", text))


def never_began(folder: Path, ended: Iterable[Sequence[str]], unfinished: int) -> str | None:
    """A sentence for members that have no folder yet; None where there are none.

    Args:
        ended: the overrides of each run that ended.
        unfinished: folders of members that did not end. Which members they are is not known.
    """
    choices = planned(folder)
    done = [{_normal(override) for override in overrides} for overrides in ended]
    waiting = [choice for choice in choices if not any({_normal(o) for o in choice} <= overrides for overrides in done)]
    count = len(waiting) - unfinished
    if count <= 0:
        return None
    names = "; ".join(" ".join(choice) for choice in waiting[:12]) + " ..." * (len(waiting) > 12)
    which = names if not unfinished else f"{count} of: {names}"
    return f"{count} of the {len(choices)} members of its last command line never began ({which})"

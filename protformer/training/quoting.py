"""Values that Hydra's grammar cannot read as they stand, and how they are typed.

An override passes two readers, the shell and Hydra's grammar, and each takes quotation marks of its own.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf


def as_argument(key: str, value: str | Sequence[str]) -> str | None:
    """`key=value` as it is typed in a shell, quoted for Hydra's grammar if that needs it; None if nothing would do.

    Each proposal is read back, so that what a sentence shows is what works.
    """
    if not isinstance(value, str):
        elements = [_quoted(element) for element in value]
        return None if None in elements else shlex.quote(f"{key}=[{','.join(filter(None, elements))}]")
    quoted = _quoted(value)
    return None if quoted is None else shlex.quote(f"{key}={quoted}")


def as_override(key: str, value: str) -> str:
    """`key=value` quoted for Hydra alone: one argument of a new process. ValueError where nothing would do."""
    quoted = _quoted(value)
    if quoted is None:
        raise ValueError(f"Hydra cannot read {value!r} in any quotation")
    return f"{key}={quoted}"


def _quoted(value: str) -> str | None:
    if _reads_back(value, value):
        return value
    for mark in ('"', "'"):
        # Hydra's grammar: a backslash counts before a quotation mark or at the end alone; "\${" is no interpolation
        text = re.sub(rf"(\\*)({mark}|$)", lambda m: m[1] * 2 + ("\\" + m[2] if m[2] else ""), value)
        quoted = mark + text.replace("${", "\\${") + mark
        if _reads_back(quoted, value):
            return quoted
    return None


def _reads_back(text: str, value: str) -> bool:
    try:
        override = OverridesParser.create().parse_overrides([f"key={text}"])[0]
        return not override.is_sweep_override() and OmegaConf.create({"key": override.value()}).key == value
    except Exception:
        return False


def unreadable(overrides: Sequence[str], index: int) -> str:
    """The sentence for an override that the grammar cannot read."""
    text = overrides[index]
    key, equals, value = text.partition("=")
    if not equals:
        before, equals, start = (overrides[index - 1] if index else "").partition("=")
        joined = as_argument(before, f"{start} {text}") if equals else None
        hint = f" If it belongs to the value before it, quote the whole: {joined}" if joined else ""
        return f'{text!r} has no "=": overrides are GROUP=CHOICE or KEY=VALUE, such as trainer.max_steps=1000.{hint}'
    if not re.fullmatch(r"(~|\+{0,2})[\w./@:-]+", key):
        return f"{key!r} (in {text!r}) can be no key: keys are names with dots between them, such as trainer.max_steps."
    if value.startswith("~"):
        value = str(Path(value).expanduser())
    as_list = value.startswith("[") and value.endswith("]")
    argument = as_argument(key, [v.strip().strip("'\"") for v in value[1:-1].split(",")] if as_list else value)
    if argument is None:
        return f"Hydra cannot read {text}, and no quoting would do: rename the file."
    return (
        f"Hydra cannot read {text}: a value with =, commas, spaces, quotation marks, brackets or parentheses is quoted"
        f" for Hydra, and the whole for the shell. Write {argument}"
    )


def ambiguous(override: Override, *, is_group: bool) -> str:
    """The sentence for an override with several values where no sweep was asked for."""
    text = override.input_line or ""
    key, _, value = text.partition("=")
    if is_group:
        return f"{text} has several choices: write one of them, or add -m to run one job for each."
    parts = [part.strip() for part in value.split(",")]
    as_list, as_one = as_argument(key, parts), as_argument(key, value)
    return (
        f"{text} has several values: add -m to run one job for each, or write {as_list} for a list of them,"
        f" or {as_one} for one value with a comma in it."
    )

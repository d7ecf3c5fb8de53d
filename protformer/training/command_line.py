"""What is wrong with a command line that Hydra refuses, and what to write instead.

Hydra says that an override cannot be; a person who misspelt one wants to read the spelling. Each override is looked at
by itself: can the grammar read it, does its group have that choice, does the configuration have that key, has the
value the type of the default.
"""

import inspect
import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import OmegaConf

from protformer.errors import ProtformerError
from protformer.training.quoting import ambiguous, unreadable

# Keys that take "auto" beside a number, and keys whose number may be a count or a share.
OF_SEVERAL_TYPES = ("trainer.devices",)
COUNT_OR_SHARE = ("trainer.val_check_interval", "trainer.limit_")
MORE = "python train.py --help names the groups, python train.py --cfg job shows every value."


@dataclass(frozen=True)
class Grounds:
    """Where the configuration is."""

    config_dir: Path
    config_name: str = "train"

    @contextmanager
    def loader(self) -> Iterator[ConfigLoader]:
        """Hydra's loader: that of the job which is running, or one for the time being."""
        if GlobalHydra.instance().is_initialized():
            yield GlobalHydra.instance().config_loader()
            return
        with initialize_config_dir(str(self.config_dir.resolve()), job_name="train", version_base="1.3"):
            yield GlobalHydra.instance().config_loader()


def explain(overrides: Sequence[str], grounds: Grounds, *, sweep: bool) -> str | None:
    """The sentence for the first override that cannot be; None where each of them can."""
    parser = OverridesParser.create()
    parsed: list[Override] = []
    for index, text in enumerate(overrides):
        try:
            parsed.append(parser.parse_overrides([text])[0])
        except HydraException:
            return unreadable(overrides, index)
    swept = [override for override in parsed if override.is_sweep_override()]
    with grounds.loader() as loader:
        if swept and not sweep:
            return ambiguous(swept[0], is_group=swept[0].key_or_group in loader.list_groups(""))
        for member in _members(parsed, loader):
            found = _Member(parser.parse_overrides(member), loader, grounds).explain()
            if found is not None:
                return found
    return None


def _members(parsed: Sequence[Override], loader: ConfigLoader, most: int = 64) -> list[list[str]]:
    """The command lines of a sweep's jobs; the line itself where there is no sweep."""
    lines = []
    for override in parsed:
        override.config_loader = loader
        if override.is_sweep_override() and override.is_discrete_sweep():
            lines.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            lines.append([override.input_line or ""])
    return [list(line) for line in itertools.islice(itertools.product(*lines), most)]


def check_values(overrides: Sequence[str], grounds: Grounds) -> None:
    """Refuses a value that is not of its default's type, such as trainer.max_steps=abc.

    The configuration has no schema: without this such a value would surface as a TypeError deep in a library, and
    freeze=no, a string, would be taken for true.
    """
    if not overrides:
        return
    with grounds.loader() as loader:
        found = _Member(OverridesParser.create().parse_overrides(list(overrides)), loader, grounds).wrong_type()
    if found is not None:
        raise ProtformerError(found)


class _Member:
    """The overrides of one job, each readable."""

    def __init__(self, overrides: list[Override], loader: ConfigLoader, grounds: Grounds) -> None:
        self.loader = loader
        self.grounds = grounds
        self.groups = [group for group in loader.list_groups("") if group not in ("hydra", "paths")]
        hydra_groups = {f"hydra/{group}" for group in loader.list_groups("hydra")}
        named = {*self.groups, *hydra_groups}
        self.of_groups = [o for o in overrides if o.key_or_group.split("@")[0] in named]
        self.of_keys = [o for o in overrides if o not in self.of_groups]

    def explain(self) -> str | None:
        for override in self.of_groups:
            found = self._wrong_choice(override)
            if found is not None:
                return found
        config, choices = self._compose()
        for override in self.of_keys:
            found = self._wrong_key(override, config, choices)
            if found is not None:
                return found
        return None

    def _compose(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The configuration that the group choices give, without the values; and the choices."""
        lines = [o.input_line or "" for o in self.of_groups]
        composed = compose(self.grounds.config_name, lines, return_hydra_config=True)
        choices = dict(composed.hydra.runtime.choices)
        plain = OmegaConf.to_container(composed, resolve=False, throw_on_missing=False)
        assert isinstance(plain, dict)
        return {str(k): v for k, v in plain.items()}, choices

    def _wrong_choice(self, override: Override) -> str | None:
        group, line = override.key_or_group, override.input_line or ""
        options = self.loader.get_group_options(group)
        if override.is_delete() or group.startswith("hydra/"):
            return None
        if override.is_add():
            return f"{line}: {group} is there already; write {line.lstrip('+')}, without the +."
        value = override.value()
        optional = group in ("experiment", "method", "debug")
        for choice in value if isinstance(value, list) else [value]:
            if choice in options or (choice is None and optional):
                continue
            meant = " or ".join(f"{group}={close}" for close in _choices_like(choice, options))
            meant = f" Did you mean {meant}?" if meant else ""
            return f"{line}: the group {group} has no such choice; it has {_listed(options)}.{meant}"
        return None

    def _wrong_key(self, override: Override, config: dict[str, Any], choices: dict[str, Any]) -> str | None:
        key, line = override.key_or_group, override.input_line or ""
        exists = _at(config, key) is not None
        if override.is_add():
            return f"{line}: {key} is there already; write {line.lstrip('+')}, without the +." if exists else None
        if exists or override.is_force_add():
            return None
        if override.is_delete():
            return f"{line}: there is no {key} to leave out. {MORE}"
        return self._unknown_key(key, line.partition("=")[2], config, choices)

    def _unknown_key(self, key: str, value: str, config: dict[str, Any], choices: dict[str, Any]) -> str:
        parent_key, _, leaf = key.rpartition(".")
        line = f"{key}={value}"
        top = [*self.groups, *(k for k in config if k not in (*self.groups, "hydra", "paths"))]
        if not parent_key:
            return self._unknown_at_the_top(key, value, config, top)
        group = key.split(".")[0]
        if group not in top and group not in ("hydra", "paths"):
            close = _closest(group, top)
            meant = f"; did you mean {close}{key[len(group) :]}={value}?" if close else f". {MORE}"
            return f"{line}: there is no group {group}{meant}"
        having = self._choices_with(group, key)
        chosen = choices.get(group)
        if having:
            options = _listed([f"{group}={choice}" for choice in having])
            has, advice = ("has", f"add {options}") if len(having) == 1 else ("have", "choose one of them")
            return f"{line}: {group}={chosen} has no {leaf}, {options} {has}; {advice}, or leave {key} out."
        found = _at(config, parent_key)
        parent = found[0] if found else None
        if isinstance(parent, dict):
            if leaf in self.groups:
                options = _listed(self.loader.get_group_options(leaf))
                return f"{line}: {leaf} is a group of its own; write {leaf}={value} (it has {options})."
            if _takes(parent, leaf) or _is_free(config, parent_key):
                # (quoted for the grammar already, else this line would not have come so far)
                return f"{line}: to add {leaf} to {parent_key}, write it with a plus: {shlex.quote(f'+{line}')}"
            names = [name for name in parent if not name.startswith("_")]
            close = _closest(leaf, names)
            if close:
                return f"{line}: {parent_key} has no {leaf}; did you mean {parent_key}.{close}={value}?"
        elsewhere = _elsewhere(config, leaf)
        if elsewhere:
            return f"{line}: {parent_key} has no {leaf}; did you mean {elsewhere}={value}?"
        if not isinstance(parent, dict):
            return f"{line}: {parent_key} is {'a single value' if found else 'unknown'}. {MORE}"
        return f"{line}: {parent_key} has no {leaf}; it has {_listed(names)}."

    def _unknown_at_the_top(self, key: str, value: str, config: dict[str, Any], top: list[str]) -> str:
        line = f"{key}={value}"
        close = _closest(key, top)
        if close in self.groups:
            options = self.loader.get_group_options(close)
            choice = value if value in options else _closest(value, options)
            meant = f"{close}={choice}" if choice else close
            has = f"(The group {close} has {_listed(options)}.)"
            return f"{line}: there is no group or value {key}; did you mean {meant}? {has}"
        meant = close or _elsewhere(config, key)
        if meant:
            return f"{line}: there is no group or value {key}; did you mean {meant}={value}?"
        values = [k for k in top if k not in self.groups]
        there_are = f"groups are {_listed(self.groups)}; values are {_listed(values)}"
        return f"{line}: there is no group or value {key}; {there_are}. {MORE}"

    def _choices_with(self, group: str, key: str) -> list[str]:
        """Choices of `group` that have `key`."""
        if group not in self.groups:
            return []
        inside = key.partition(".")[2]
        return [c for c in self.loader.get_group_options(group) if _at(self._own(group, c), inside) is not None]

    def _own(self, group: str, choice: str) -> dict[str, Any]:
        """What a choice's file and the files that it builds on say."""
        path = self.grounds.config_dir / group / f"{choice}.yaml"
        if not path.is_file():
            return {}
        said: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False, throw_on_missing=False)
        merged: dict[str, Any] = {}
        for base in said.pop("defaults", []) if isinstance(said, dict) else []:
            if isinstance(base, str) and base not in ("_self_", choice):
                merged |= self._own(group, base)
        return merged | said

    def wrong_type(self) -> str | None:
        if not self.of_keys:
            return None
        config, _ = self._compose()
        for override in self.of_keys:
            key, line = override.key_or_group, override.input_line or ""
            found = _at(config, key)
            if found is None or override.is_delete() or key in OF_SEVERAL_TYPES or key.startswith("hydra"):
                continue
            default, value = found[0], override.value()
            if key.startswith(COUNT_OR_SHARE) and isinstance(default, int):
                default = float(default)
            if isinstance(value, str) and "${" in value:
                continue
            wanted = _wanted(default, value)
            if wanted is not None:
                return f"{line}: {key} is {wanted}{_shown_default(default)}."
        return None


def _wanted(default: Any, value: Any) -> str | None:
    """What kind of value belongs in the place of `default`, where `value` is of none such."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int | float):
        fits = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        if fits and isinstance(default, int) and isinstance(value, float):
            return f"a whole number: write {int(value)}" if value.is_integer() else "a whole number"
        return None if fits else "a number"
    if isinstance(default, list) and value is not None and not isinstance(value, list):
        return None if str(value).startswith("${") else f"a list: write [{value}]"
    if isinstance(default, dict) and default and not isinstance(value, dict) and value is not None:
        return f"no single value, it has {_listed([k for k in default if not k.startswith('_')])}"
    return None


def _shown_default(default: Any) -> str:
    if isinstance(default, dict):
        return ""
    return f" (the default is {str(default).lower() if isinstance(default, bool) else default})"


def _at(config: Mapping[str, Any], key: str) -> tuple[Any] | None:
    """The value at a dotted key, in a tuple; None where there is none."""
    node: Any = config
    for part in re.split(r"[.\[]", key):
        part = part.rstrip("]")
        if isinstance(node, Mapping) and part in node:
            node = node[part]
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            return None
    return (node,)


def _takes(parent: Mapping[str, Any], name: str) -> bool:
    """Whether what `parent` builds has a parameter of this name."""
    try:
        return name in inspect.signature(get_object(parent["_target_"])).parameters
    except Exception:
        return False


def _is_free(config: dict[str, Any], key: str) -> bool:
    """Whether the mapping at `key` is an argument, whose keys are the user's, such as data.more."""
    above = _at(config, key.rpartition(".")[0])
    mapping = _at(config, key)
    assert mapping is not None
    return above is not None and isinstance(above[0], dict) and "_target_" in above[0] and "_target_" not in mapping[0]


def _elsewhere(config: dict[str, Any], leaf: str) -> str | None:
    """The key of another place that ends in `leaf`, or in something close to it."""
    keys = {}
    for key in _dotted(config):
        name = key.rpartition(".")[2]
        if not name.startswith("_") and (name not in keys or key.count(".") < keys[name].count(".")):
            keys[name] = key
    close = leaf if leaf in keys else _closest(leaf, list(keys), 0.8)
    return keys[close] if close else None


def _dotted(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if not prefix and key in ("hydra", "paths"):
            continue
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")


def _choices_like(choice: Any, options: Sequence[str]) -> list[str]:
    """What may have been meant: the names that have the word in them (`performer`), or else one spelt alike."""
    if choice is None:
        return ["none"] if "none" in options else []
    word = str(choice).casefold()
    having = [option for option in options if len(word) > 2 and word in option.casefold()]
    close = _closest(str(choice), options)
    return having if 0 < len(having) <= 4 else [close] if close else []


def _closest(word: str, words: Sequence[str], cutoff: float = 0.6) -> str | None:
    found = get_close_matches(word, words, n=1, cutoff=cutoff)
    return found[0] if found else None


def _listed(words: Sequence[str]) -> str:
    words = [str(word) for word in words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"

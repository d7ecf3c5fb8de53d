"""What is compared: run folders, sweep folders, experiments' rows and benchmark rows, found and read.

A folder with `metrics.json` is a run, one with `rows.json` an experiment's analysis, one whose subfolders are such a
sweep. A folder that was a run's (it has a configuration, or nothing) and holds neither is missing: named, not dropped.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from protformer.errors import ProtformerError, shown_path
from protformer.evaluation.analysis import Analysis, read_analysis
from protformer.evaluation.attention_benchmark import read_rows
from protformer.evaluation.comparison.planned import SWEEP_FILE, never_began
from protformer.evaluation.comparison.proteins import Proteins, contradiction, diverged, read_proteins
from protformer.evaluation.runs import read_metrics
from protformer.training.sweep import FAILURE, is_claimed

NO_MEMBERS = {"wandb", "csv", "model", "checkpoints"}
"""Folders that a run or a sweep keeps beside its members."""
REPORT = "comparison.json"
"""A folder with this file is a report, and no run that did not end."""
PICTURES = "pictures"
"""Of a report, in its folder (which may be the sweep's own)."""
GROUPS = ("attention", "trainer")
"""Of a run's configuration, which every run has: where one is lacking, the file was cut."""
SWEEPS = Path("multirun")
"""Where sweeps lie unless `hydra.sweep.dir` says otherwise, each in a folder of its group's name."""
LOOSE = "single runs"
"""The title of the comparison of runs that were given one by one."""


@dataclass(frozen=True)
class Run:
    """A training run that ended."""

    folder: Path
    metrics: dict[str, Any]
    config: dict[str, Any]
    """The resolved configuration, flat: {"trainer.max_steps": 300, ...}; empty where the folder keeps none."""
    proteins: dict[str, Proteins] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return shown_path(self.folder)

    @property
    def method(self) -> str:
        return str(self.metrics["method"])

    @property
    def seed(self) -> int:
        return int(self.metrics["seed"])

    @property
    def comparison(self) -> dict[str, Any]:
        return self.metrics["comparison"]


@dataclass(frozen=True)
class Missing:
    """A member that takes no part: it did not end, or diverged."""

    folder: Path
    reason: str
    begun: bool = True
    """False where `reason` is of members without a folder yet, and `folder` is that of their sweep."""

    @property
    def name(self) -> str:
        return self.folder.name if self.begun else "members that never began"


@dataclass
class Group:
    """Runs that are to be comparable: a sweep's, or those given one by one."""

    title: str
    runs: list[Run] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)


@dataclass
class Inputs:
    groups: list[Group] = field(default_factory=list)
    analyses: list[tuple[str, Analysis]] = field(default_factory=list)
    benchmarks: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    """Benchmarks' rows that lie in a folder of runs: they take part where they are given by name."""


def read_inputs(sources: Sequence[Path | str]) -> Inputs:
    """Whatever `sources` hold, in their order; each run once. ProtformerError, by name, for what holds nothing."""
    inputs, loose, seen = Inputs(), Group(LOOSE), set()
    for source in map(_found, sources):
        if source.resolve() in seen or source.name == SWEEP_FILE:  # (SWEEP/* names what Hydra keeps there too)
            continue
        seen.add(source.resolve())
        if source.is_file():
            _read_file(source, inputs, loose)
        elif not _read_folder(source, inputs, loose):
            if (source / REPORT).is_file():
                raise ProtformerError(f"{source} is a report: give the runs that it was made of.")
            raise ProtformerError(
                f"{source} holds no run: neither metrics.json nor rows.json, nor subfolders with them. A run writes"
                " metrics.json when it ends."
            )
    if loose.runs or loose.missing:
        inputs.groups.insert(0, loose)
    if not (any(group.runs for group in inputs.groups) or inputs.analyses or inputs.benchmarks):
        missing = [member for group in inputs.groups for member in group.missing]
        names = "; ".join(f"{shown_path(member.folder)}: {member.reason}" for member in missing[:5])
        told = f" ({names}{'; ...' * (len(missing) > 5)})" if names else ""
        raise ProtformerError(f"No run has ended with figures, so there is nothing to compare{told}.")
    titles = Counter(group.title for group in inputs.groups)
    for group in inputs.groups:
        if titles[group.title] > 1 and (group.runs or group.missing):
            group.title = shown_path((group.runs or group.missing)[0].folder.parent)
    return inputs


def _found(source: Path | str) -> Path:
    """The file or folder; a W&B group's name stands for its sweep's folder below `multirun/`."""
    for path in (Path(source), SWEEPS / source):
        if path.exists():
            return path
    nor = "" if Path(source).is_absolute() else f", nor {SWEEPS / source}"
    raise ProtformerError(f"{source} does not exist{nor}: give folders of runs, of sweeps or of experiments.")


def _read_file(file: Path, inputs: Inputs, loose: Group) -> None:
    if file.name == "metrics.json":
        _add_run(loose, file.parent)
        return
    if _is_benchmark(file):
        inputs.benchmarks.append((file.stem, read_rows(file)))
    else:
        inputs.analyses.append((file.parent.name or file.stem, read_analysis(file)))


def _is_benchmark(file: Path) -> bool:
    with file.open("rb") as opened:
        return file.suffix == ".jsonl" or opened.read(200).lstrip().startswith(b"[")


def _read_folder(folder: Path, inputs: Inputs, loose: Group) -> bool:
    """False where nothing was found."""
    found = False
    if (folder / "rows.json").is_file():
        inputs.analyses.append((folder.resolve().name, read_analysis(folder / "rows.json")))
        found = True
    if (folder / "metrics.json").is_file():
        _add_run(loose, folder)
        return True
    if found:
        return True
    if (folder / "config.yaml").is_file():
        loose.missing.append(_missing(folder))
        return True
    members = sorted(
        child for child in folder.iterdir() if child.is_dir() and child.name[0] != "." and not _is_no_member(child)
    )
    group = Group(folder.resolve().name)
    nested = []
    for member in members:
        if (member / "metrics.json").is_file():
            _add_run(group, member)
        elif (member / "config.yaml").is_file() or not any(child.is_dir() for child in member.iterdir()):
            if (member / "rows.json").is_file():
                nested.append(member)
            else:
                group.missing.append(_missing(member))
        else:
            nested.append(member)
    is_sweep = found = bool(group.runs) or any((m.folder / "config.yaml").is_file() for m in group.missing)
    if is_sweep:
        inputs.groups.append(group)
        waiting = never_began(folder, [run.metrics.get("overrides") or [] for run in group.runs], len(group.missing))
        if waiting is not None:
            group.missing.append(Missing(folder, waiting, begun=False))
    for member in nested:
        if _read_folder(member, inputs, group):
            found = True
        elif is_sweep:
            group.missing.append(_missing(member))
    inputs.left_out += sorted(f for f in folder.glob("*.json*") if found and f.is_file() and _is_benchmark(f))
    return found


def _is_no_member(folder: Path) -> bool:
    of_report = folder.name == PICTURES and (folder.parent / REPORT).is_file()
    return folder.name in NO_MEMBERS or of_report or (folder / REPORT).is_file()


def _missing(folder: Path) -> Missing:
    """What it was, as far as its configuration tells, and what became of it."""
    config = _config(folder / "config.yaml")
    targets = ("attention._target_", "attention.features._target_")
    told = [str(config[key]).rpartition(".")[2] for key in targets if key in config]
    told += [f"seed {config['seed']}"] if "seed" in config else []
    what = f"{', '.join(told)}; " if told else ""
    if is_claimed(folder):  # (it may have failed before)
        return Missing(folder, f"{what}it is running")
    failure = folder / FAILURE
    if failure.is_file():
        said = failure.read_text(encoding="utf-8", errors="replace").strip()
        return Missing(folder, f"{what}it failed: {said[:300]}")
    return Missing(folder, f"{what}no metrics.json: it did not end")


def _add_run(group: Group, folder: Path) -> None:
    if all(run.folder.resolve() != folder.resolve() for run in group.runs):
        run = read_run(folder)
        lost = diverged(run.metrics, run.proteins)
        if lost is None:
            group.runs.append(run)
        else:
            group.missing.append(Missing(folder, f"{run.method}, seed {run.seed}; {lost}"))


def read_run(folder: Path) -> Run:
    """ProtformerError, by name, for a run of an older version, which does not say what it was trained on."""
    metrics = read_metrics(folder)
    absent = [key for key in ("method", "seed", "comparison", "training") if metrics.get(key) is None]
    if absent:
        raise ProtformerError(
            f"{shown_path(folder)}: its metrics.json has no {' and no '.join(absent)}, so nobody can say what it may be"
            " compared with. It is of an older version: train it again, or leave it out."
        )
    file = folder / "per_protein.tsv"
    proteins = read_proteins(file)
    wrong = contradiction(metrics, proteins) if file.is_file() else None
    if wrong:
        raise ProtformerError(
            f"{shown_path(folder)}: its metrics.json and its per_protein.tsv contradict each other ({wrong}), so one of"
            " them is another run's or has been edited: restore it, or run this run again."
        )
    config = _config(folder / "config.yaml")
    cut = [key for key in GROUPS if not any(name.startswith(f"{key}.") for name in config)]
    if cut and (folder / "config.yaml").is_file():
        raise ProtformerError(
            f"{shown_path(folder / 'config.yaml')} is cut short: it has no {' and no '.join(cut)}. Restore it, or leave"
            " this run out."
        )
    return Run(folder, metrics, config, proteins)


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return flat(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise ProtformerError(f"{file} is not a configuration ({str(error).splitlines()[0]}).") from error


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; lists stay values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found

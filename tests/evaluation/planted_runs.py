"""Run folders with a known truth, written as a training run writes them: what a comparison must find again."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from protformer.cli.main import main

BINS = ("nohit", "remote", "homolog")
CLASSES = {"exact": "ExactAttention", "uniform": "UniformAttention", "performer": "FavorAttention"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run of `method`: on each protein its NLL per target is `nll(protein's own difficulty)` and noise."""

    method: str
    seed: int = 0
    nll: float = 2.8
    noise: float = 0.02
    proteins: int = 200
    sets: Sequence[str] = ("valid", "test")
    ids: Callable[[int], str] = "P{:05d}".format
    bins: bool = False
    steps: int = 100
    residues: int = 5_000_000
    parameters_of_attention: int = 0
    task: dict[str, Any] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    """Other hashes than all runs have, by set."""
    config: dict[str, Any] = field(default_factory=dict)
    """Settings beside those that follow from the method, nested."""
    training: dict[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    name: str = "a run"
    curve: bool = True


def write_run(folder: Path, plan: Plan) -> Path:
    """`folder` with metrics.json, config.yaml and per_protein.tsv."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = _metrics(plan)
    lines = []
    for place, name in enumerate(plan.sets):
        columns = _proteins(plan, name)
        lines += [(name, *row) for row in columns]
        metrics["sets"][name] = _set(plan, columns)
        metrics["comparison"]["data"][name] = _data(plan, name, plan.proteins + place)
    _write_table(folder / "per_protein.tsv", lines)
    config = {
        "seed": plan.seed,
        "attention": {"_target_": f"protformer.attention.{CLASSES.get(plan.method.split('-')[0], plan.method)}"},
        "trainer": {"max_steps": plan.steps},
        "paths": {"run_dir": str(folder)},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **plan.config}))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def _proteins(plan: Plan, name: str) -> list[tuple[str, str, int, float, int]]:
    """The same proteins, targets and difficulties for all runs of a set; noise by method and seed."""
    shared = np.random.default_rng([7, *name.encode()])
    targets = shared.integers(5, 120, plan.proteins)
    difficulty = shared.normal(0, 0.25, plan.proteins)  # far more than methods differ: pairing must cancel it
    own = np.random.default_rng([plan.seed, *plan.method.encode(), *name.encode()])
    nll = targets * (plan.nll + difficulty + own.normal(0, plan.noise, plan.proteins))
    correct = own.binomial(targets, 0.12)
    bins = [BINS[i % len(BINS)] if plan.bins else "" for i in range(plan.proteins)]
    identities = [plan.ids(i) for i in range(plan.proteins)]
    return list(zip(identities, bins, targets.tolist(), nll.tolist(), correct.tolist(), strict=True))


def _set(plan: Plan, columns: list[tuple[str, str, int, float, int]]) -> dict[str, Any]:
    targets, nll, correct = (float(np.sum([row[place] for row in columns])) for place in (2, 3, 4))
    figures = {
        "perplexity_mask": float(np.exp(nll / targets)), "accuracy_mask": correct / targets,
        "perplexity_all": 0.9 * float(np.exp(nll / targets)), "accuracy_all": 0.2,
    }  # fmt: skip
    rows = [
        {"name": "unigram", "figures": {"perplexity_mask": 18.03, "accuracy_mask": 0.097}, "note": ""},
        {"name": "own composition", "figures": {"perplexity_mask": 17.38, "accuracy_mask": 0.106}, "note": ""},
        {"name": "untrained", "figures": {"perplexity_mask": 42.0 + plan.seed, "accuracy_mask": 0.05}, "note": ""},
        {"name": "trained", "figures": figures, "note": ""},
    ]
    return {"sequences": len(columns), "residues": int(7 * targets), "rows": rows}


def _data(plan: Plan, name: str, sequences: int) -> dict[str, Any]:
    return {"sha256": plan.data.get(name, f"{name}0" * 10), "sequences": sequences, "residues": 300 * sequences}


def _metrics(plan: Plan) -> dict[str, Any]:
    goal, start = float(np.exp(plan.nll)), 42.0
    slow = 1.0 if plan.method == "exact" else 0.7
    points = [
        {"step": step, "residues": plan.residues * step // 100,
         "seconds": slow * step * 3.0, "cpu_seconds": slow * step * 2.9,
         "figures": {"perplexity_mask": goal + (start - goal) * 0.9**step + 0.01 * plan.seed, "accuracy_mask": 0.12}}
        for step in range(0, 101, 10)
    ]  # fmt: skip
    return {
        "task": "masked_residue",
        "run": plan.name,
        "method": plan.method,
        "seed": plan.seed,
        "choices": {},
        "overrides": list(plan.overrides),
        "parameters": 1_800_000 + plan.parameters_of_attention,
        "parameters_of_attention": plan.parameters_of_attention,
        "weights": "last",
        "training": {
            "optimiser_steps": plan.steps, "residues": plan.residues,
            "seconds": slow * 300.0, "cpu_seconds": slow * 290.0,
            "residues_per_second": plan.residues / slow / 300, "peak_memory_bytes": int(slow * 9e8), "world_size": 1,
            "redraws": 0, "threads": 1, **plan.training,
        },
        "comparison": {
            "data": {"train": _data(plan, "train", 1000)},
            "task": {"name": "masked_residue", "rate": 0.15, **plan.task},
            "evaluation_seed": 0,
            "order_seed": plan.seed,
            "budget": {"optimiser_steps": plan.steps, "batch_tokens": 2560, "residues": plan.residues},
        },
        "curve": points if plan.curve else [],
        "sets": {},
        "versions": {"torch": "2.13.0"},
        "measured": {"commit": "abc1234", "cpu": "a processor", "time": "2026-11-22T12:00:00+00:00", "torch": "2.13.0"},
        "command": ["train.py"],
    }  # fmt: skip


def _write_table(path: Path, lines: list[tuple]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("set", "id", "bin", "targets", "nll", "correct"))
        writer.writerows((*row[:4], f"{row[4]:.6f}", row[5]) for row in lines)


def sweep(folder: Path, *plans: Plan) -> Path:
    """A run for each plan, as members of a sweep."""
    for number, plan in enumerate(plans):
        write_run(folder / f"member{number}", plan)
    return folder


def command(*words: object) -> int:
    """The exit code of `protformer compare WORDS`."""
    return main(["compare", *map(str, words), "--no-wandb"])

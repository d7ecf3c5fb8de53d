"""What a run leaves for later comparisons: `metrics.json`, and `per_protein.tsv` beside it."""

import csv
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import rank_zero_only

from protformer.attention import method_of
from protformer.files import write_text, writing
from protformer.model import ProteinModel, parameter_count
from protformer.surroundings import hardware, surroundings, versions
from protformer.training.callbacks import Throughput
from protformer.training.curve import Point
from protformer.training.module import peak_memory_bytes
from protformer.training.scoring import intervals
from protformer.training.settings import JobSettings
from protformer.training.tasks import Row, Split, Task

COLUMNS = ("set", "id", "bin", "targets", "nll", "correct")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that has been trained and scored."""

    settings: JobSettings
    task: Task
    model: ProteinModel
    splits: Mapping[str, Split]
    whole: Mapping[str, int]
    """Sequences of each set before it was sampled."""
    rows: dict[str, list[Row]]
    details: dict[str, dict[str, Any]]
    bins: Mapping[str, str]
    curve: list[Point]
    training: dict[str, Any]
    weights: str


def training_figures(trainer: Trainer, throughput: Throughput, redraws: int) -> dict[str, Any]:
    """Cost of the training; `seconds` are those of `fit`, validation and interrupted attempts included."""
    return {
        "optimiser_steps": trainer.global_step,
        "residues": throughput.residues,
        "seconds": throughput.whole_seconds,
        "cpu_seconds": throughput.cpu_seconds,
        "residues_per_second": throughput.residues / max(throughput.seconds, 1e-9),
        "peak_memory_bytes": peak_memory_bytes(trainer.strategy.root_device),
        "world_size": trainer.world_size,
        "threads": torch.get_num_threads(),
        "redraws": redraws,
    }


def write_record(run: Finished) -> None:
    """`per_protein.tsv`, then `metrics.json`: where the latter stands, the run has ended."""
    folder, settings = Path(run.settings.run_dir), run.settings
    _write_proteins(run, folder / "per_protein.tsv")
    attention = run.model.trunk.encoder.attentions
    sets = {
        name: {
            "sequences": len(run.splits[name].corpus),
            "residues": len(run.splits[name].corpus.tokens),
            "rows": [_plain(row) for row in rows],
            **run.details.get(name, {}),
            **_by_bin(run, name),
        }
        for name, rows in run.rows.items()
    }
    content = {
        "task": run.task.name,
        "run": settings.run_name,
        "method": method_of(attention[0].config()),
        "seed": int(settings.config["seed"]),
        "choices": settings.choices,
        "overrides": settings.overrides,
        "parameters": parameter_count(run.model),
        "parameters_of_attention": sum(p.numel() for a in attention for p in a.parameters()),
        "weights": run.weights,
        "training": run.training,
        "comparison": _comparison(run),
        "curve": run.curve,
        "sets": sets,
        "versions": versions("pytorch-lightning"),
        "measured": {**surroundings(), "hardware": hardware(_device(run.model))},
        "command": sys.argv,
    }
    write_metrics(folder / "metrics.json", content)


@rank_zero_only
def log_final(trainer: Trainer, rows: dict[str, list[Row]]) -> None:
    figures = {
        f"final/{name}/{row.name.replace(' ', '_')}/{figure}": value
        for name, found in rows.items()
        for row in found
        for figure, value in row.figures.items()
        if value == value
    }
    for logger in trainer.loggers:
        logger.log_metrics(figures, trainer.global_step)


def _comparison(run: Finished) -> dict[str, Any]:
    """What two runs must share for their figures to be compared."""
    config, task = run.settings.config, run.settings.config["task"]
    data = {}
    joined = {k: v for k, v in config["data"].items() if k == "concatenate" and v is not None}
    for name, split in run.splits.items():
        corpus = split.corpus
        data[name] = {"sha256": corpus.digest(), "sequences": len(corpus), "residues": len(corpus.tokens)}
        if run.whole[name] != len(corpus):
            data[name]["sampled_from"] = run.whole[name]
    return {
        "data": data,
        "task": {"name": run.task.name, **{k: v for k, v in task.items() if not k.startswith("_")}, **joined},
        "evaluation_seed": int(config["evaluate"]["seed"]),
        "order_seed": int(config["seed"]),
        "budget": {
            "optimiser_steps": run.training["optimiser_steps"],
            "batch_tokens": int(config["data"]["batch_tokens"]),
            "residues": run.training["residues"],
        },
    }


def _device(model: ProteinModel) -> str:
    return next(model.parameters()).device.type


def _plain(row: Row) -> dict[str, Any]:
    return {"name": row.name, "figures": row.figures, "note": row.note}


def _write_proteins(run: Finished, path: Path) -> None:
    with writing(path) as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, rows in run.rows.items():
            corpus, scores = run.splits[name].corpus, rows[-1].per_sequence
            for record, nll, targets, correct in [] if scores is None else scores.tolist():
                protein = corpus.id(int(record))
                writer.writerow([name, protein, run.bins.get(protein, ""), int(targets), f"{nll:.6f}", int(correct)])


def _by_bin(run: Finished, name: str) -> dict[str, Any]:
    """Each row's figures over the proteins of each bin; nothing without bins, or without figures per protein."""
    rows = [row for row in run.rows[name] if row.per_sequence is not None]
    if not run.bins or not rows:
        return {}
    corpus, headline = run.splits[name].corpus, run.task.monitor.rpartition("_")[2]
    bin_of = np.array([run.bins.get(corpus.id(i), "not in the table") for i in range(len(corpus))])
    found: dict[str, Any] = {}
    for bin_name in sorted(set(bin_of.tolist())):
        found[bin_name] = {"proteins": int((bin_of == bin_name).sum()), "rows": []}
        for row in rows:
            assert row.per_sequence is not None
            chosen = row.per_sequence[bin_of[row.per_sequence[:, 0].astype(int)] == bin_name]
            figures = intervals(chosen, headline, int(run.settings.config["evaluate"]["seed"])) if len(chosen) else {}
            found[bin_name]["rows"].append({"name": row.name, "figures": figures})
    return {"by_bin": found}


def write_metrics(path: Path, content: dict[str, Any]) -> None:
    """JSON, written whole."""
    write_text(path, json.dumps(_finite(content), indent=2) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value

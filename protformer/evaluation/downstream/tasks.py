"""The labelled sets of a downstream comparison, as overrides of a training run.

Files lie in one folder, as DeepLoc's localization (`localization/{train,val,test}.csv.gz`), FLIP's secondary structure
with CB513 (`secondary_structure/{train,valid,test,cb513}.jsonl.gz`) and FLIP's GB1 (`gb1/SPLIT.csv.gz`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protformer.errors import ProtformerError
from protformer.training.quoting import as_override


@dataclass(frozen=True)
class DownstreamTask:
    """A labelled set: its files below the folder, and what tells a training run how to read them."""

    metric: str
    files: dict[str, str]
    """Keys of the group `data`, and files."""
    options: tuple[str, ...]

    def overrides(self, folder: Path) -> tuple[str, ...]:
        """Of a training run; ProtformerError where a file is missing."""
        for name in self.files.values():
            if not (folder / name).is_file():
                raise ProtformerError(f"downstream.data={folder}: there is no {name} in it. The folder holds {_FILES}.")
        return (*self.options, *(as_override(key, str(folder / name)) for key, name in self.files.items()))


_FILES = "localization/, secondary_structure/ and gb1/"


def _localization(settings: dict[str, Any]) -> DownstreamTask:
    return DownstreamTask(
        metric="accuracy",
        files={f"data.{key}": f"localization/{name}.csv.gz" for key, name in
               (("train", "train"), ("valid", "val"), ("test", "test"))},
        options=("task=sequence_classification", "task.pooling=attention", "data.label_column=label",
                 "data.id_column=accession", "data.unknown_labels=skip"),
    )  # fmt: skip


def _secondary_structure(settings: dict[str, Any]) -> DownstreamTask:
    files = {f"data.{name}": f"secondary_structure/{name}.jsonl.gz" for name in ("train", "valid", "test")}
    return DownstreamTask(
        metric="accuracy",
        files={**files, "+data.more.cb513": "secondary_structure/cb513.jsonl.gz"},
        options=("task=residue_classification", "data.sequence_column=seq", "data.label_column=ss3",
                 "data.mask_column=mask", "data.id_column=id"),
    )  # fmt: skip


def _gb1(settings: dict[str, Any]) -> DownstreamTask:
    return DownstreamTask(
        metric="spearman",
        files={"data.train": f"gb1/{settings['gb1_split']}.csv.gz"},
        options=("task=regression", "data.label_column=target", "+data.train_where={set: train, validation: false}",
                 "+data.valid_where={set: train, validation: true}", "+data.test_where={set: test}"),
    )  # fmt: skip


_TASKS: dict[str, Callable[[dict[str, Any]], DownstreamTask]] = {
    "localization": _localization,
    "secondary_structure": _secondary_structure,
    "gb1": _gb1,
}


def downstream_task(name: str, settings: dict[str, Any]) -> DownstreamTask:
    """By its name, with the experiment's settings; ProtformerError where there is none."""
    if name not in _TASKS:
        raise ProtformerError(f"downstream: {name!r} is no task; there are {', '.join(_TASKS)}.")
    return _TASKS[name](settings)

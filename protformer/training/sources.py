"""From the data group of a configuration to splits: FASTA files, labelled tables, or one file that is split here."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from protformer.data.corpus import Corpus
from protformer.data.labels import (
    Labelled,
    LabelledTable,
    LabelReport,
    class_labels,
    multi_labels,
    number_targets,
    read_labelled,
    residue_labels,
)
from protformer.data.splits import homology_warning, split_by_cluster, split_by_hash
from protformer.data.tables import read_rows
from protformer.errors import ProtformerError
from protformer.training.tasks.base import LabelKind, Row, Split

log = logging.getLogger(__name__)

Paths = str | Path | Sequence[str | Path]
# What the labels of the demo set are called, for a sequence and for its residues.
DEMO_LABELS: dict[LabelKind, str] = {"class": "family", "residue": "states"}


class FastaSource:
    """Splits from FASTA files; `labels` may name a table for each split, joined to the sequences by id.

    `reference` is what `protformer simulate` wrote of the best reachable perplexity of its files. Without `valid`, it
    (and `test`, without one) is split off `train` by the hash of each sequence, or by `clusters`. `more` names further
    evaluation sets.
    """

    def __init__(
        self,
        *,
        train: Paths,
        valid: Paths | None = None,
        test: Paths | None = None,
        more: Mapping[str, Paths] | None = None,
        clusters: str | None = None,
        allow_missing_clusters: bool = False,
        fractions: Mapping[str, float] | None = None,
        labels: Mapping[str, Paths] | None = None,
        id_column: str = "id",
        label_column: str | None = None,
        reference: str | None = None,
        split_seed: int = 0,
    ) -> None:
        self.reference = reference
        self.files: dict[str, Paths | None] = {"train": train, "valid": valid, "test": test, **(more or {})}
        self.clusters = clusters
        self.allow_missing_clusters = allow_missing_clusters
        self.fractions = dict(fractions or {"train": 0.9, "valid": 0.05, "test": 0.05})
        self.labels = dict(labels or {})
        self.id_column = id_column
        self.label_column = label_column
        self.split_seed = split_seed

    def load(self, kind: LabelKind) -> dict[str, Split]:
        """Splits by name, "train" first."""
        corpora = {name: _read(name, paths) for name, paths in self.files.items() if paths is not None}
        if "valid" not in corpora:
            corpora = {**self._split(corpora.pop("train"), given=set(corpora)), **corpora}
        if kind == "none":
            return {name: Split(name, corpus) for name, corpus in corpora.items()}
        return self._with_labels(corpora, kind)

    def references(self) -> dict[str, list[Row]]:
        """For simulated sequences, the perplexities of those who know how they were made, by split.

        They are of the simulator's own files, told by their SHA-256: nothing is known of a file put in place of one.
        """
        if self.reference is None:
            return {}
        known = _of_files(Path(self.reference))
        names = {"state_oracle": "knowing the true state", "best_reachable": "best reachable"}
        found = {}
        for split, paths in self.files.items():
            if paths is None or split == "train":  # (nothing is scored on train)
                continue
            values = known.get(_digest_of_file(paths) or "")
            if values is not None:
                rows = [Row(name, {"perplexity_mask": float(values[key])}, "simulated") for key, name in names.items()]
                found[split] = rows
            else:
                log.info(
                    "%s: not a file that %s tells of, so its best reachable perplexity is unknown",
                    split,
                    Path(self.reference).name,
                )
        return found

    def _split(self, corpus: Corpus, given: set[str]) -> dict[str, Corpus]:
        """Parts of `corpus`; those that have files of their own take nothing of it."""
        wanted = {name: share for name, share in self.fractions.items() if name not in given}
        if len(wanted) < len(self.fractions):
            wanted = {name: share / sum(wanted.values()) for name, share in wanted.items()}
        if self.clusters:
            parts = split_by_cluster(
                corpus, self.clusters, wanted, self.split_seed, allow_missing=self.allow_missing_clusters
            )
        else:
            log.warning(homology_warning())
            parts = split_by_hash(corpus, wanted, self.split_seed)
        parts = {name: indices for name, indices in parts.items() if len(indices)}  # a fraction may be 0
        for name, indices in parts.items():
            log.info("%s: %s of %s sequences", name, f"{len(indices):,}", f"{len(corpus):,}")
        return {name: corpus.subset(indices) for name, indices in parts.items()}

    def _with_labels(self, corpora: dict[str, Corpus], kind: LabelKind) -> dict[str, Split]:
        column = self.label_column or DEMO_LABELS.get(kind)
        if not self.labels or column is None:
            raise ProtformerError(
                "This task needs labels and the data has none for it: use data=labelled with a table"
                " (data.train=FILE.csv data.label_column=NAME)."
            )
        splits: dict[str, Split] = {}
        vocabulary: tuple[str, ...] | None = None
        for name, corpus in corpora.items():
            # what was split off train has its labels in train's table
            tables = self.labels.get(name if self.files.get(name) is not None else "train")
            if tables is None:
                log.info("%s: no table of labels, left out of this task", name)
                continue
            labelled = _targets(self._join(corpus, tables, column), kind, vocabulary)
            vocabulary = labelled.vocabulary if name == "train" else vocabulary
            splits[name] = Split(name, labelled.corpus, labelled.values, labelled.vocabulary)
        return splits

    def _join(self, corpus: Corpus, paths: Paths, column: str) -> LabelledTable:
        paths = [paths] if isinstance(paths, str | Path) else list(paths)
        cells = {}
        for path in paths:
            for row in read_rows(Path(path), [self.id_column, column], []):
                cells[str(row[self.id_column])] = row[column]
        labels = [cells.get(corpus.id(i)) for i in range(len(corpus))]
        report = LabelReport(files=[str(p) for p in paths], rows=len(cells), records=len(corpus))
        return LabelledTable(corpus, labels, None, report, column)


class TableSource:
    """Splits from labelled tables (CSV, TSV, JSON lines), by file or by a column's value (`train_where` and so on)."""

    def __init__(
        self,
        *,
        train: Paths,
        valid: Paths | None = None,
        test: Paths | None = None,
        more: Mapping[str, Paths] | None = None,
        sequence_column: str = "sequence",
        label_column: str = "label",
        id_column: str | None = None,
        mask_column: str | None = None,
        label_separator: str = ";",
        unknown_labels: Literal["error", "skip"] = "error",
        train_where: Mapping[str, Any] | None = None,
        valid_where: Mapping[str, Any] | None = None,
        test_where: Mapping[str, Any] | None = None,
        clusters: str | None = None,
        allow_missing_clusters: bool = False,
        fractions: Mapping[str, float] | None = None,
        split_seed: int = 0,
    ) -> None:
        where = {"train": train_where, "valid": valid_where, "test": test_where}
        # `valid_where` without a file of its own is a part of the training file
        files: dict[str, Paths | None] = {
            "train": train,
            "valid": valid or (train if valid_where else None),
            "test": test or (train if test_where else None),
            **(more or {}),
        }
        self.files = {name: paths for name, paths in files.items() if paths is not None}
        self.where = {name: dict(w) if w else None for name, w in where.items()}
        self.columns: dict[str, Any] = {
            "sequence_column": sequence_column,
            "label_column": label_column,
            "id_column": id_column,
            "mask_column": mask_column,
        }
        self.label_separator = label_separator
        self.unknown_labels: Literal["error", "skip"] = unknown_labels
        self.clusters = clusters
        self.allow_missing_clusters = allow_missing_clusters
        self.fractions = dict(fractions or {"train": 0.9, "valid": 0.1})
        self.split_seed = split_seed

    def load(self, kind: LabelKind) -> dict[str, Split]:
        """Splits by name, "train" first; classes are those of train."""
        splits: dict[str, Split] = {}
        vocabulary: tuple[str, ...] | None = None
        for name, paths in self.files.items():
            table = read_labelled(paths, where=self.where.get(name), **self.columns)
            if kind == "none":
                splits[name] = Split(name, table.corpus)
                continue
            labelled = _targets(table, kind, vocabulary, self.label_separator, self.unknown_labels)
            vocabulary = labelled.vocabulary if name == "train" else vocabulary
            log.info("%s: %s", name, labelled.report.summary())
            _report(name, labelled.corpus)
            splits[name] = Split(name, labelled.corpus, labelled.values, labelled.vocabulary)
        if "valid" not in splits:
            splits = {**self._split_off_valid(splits["train"]), **{k: v for k, v in splits.items() if k != "train"}}
        return splits

    def _split_off_valid(self, train: Split) -> dict[str, Split]:
        if self.clusters:
            corpus, missing = train.corpus, self.allow_missing_clusters
            parts = split_by_cluster(corpus, self.clusters, self.fractions, self.split_seed, allow_missing=missing)
        else:
            log.warning(homology_warning())
            parts = split_by_hash(train.corpus, self.fractions, self.split_seed)
        splits = {}
        for name, indices in parts.items():
            if not len(indices):
                continue  # a fraction may be 0
            splits[name] = replace(train.subset(indices), name=name)
            log.info("%s: %s of %s sequences", name, f"{len(indices):,}", f"{len(train.corpus):,}")
        return splits


def _of_files(path: Path) -> dict[str, dict[str, Any]]:
    """What the simulator wrote of the perplexities of each of its files, by the file's SHA-256."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        perplexity, files = report["perplexity"], report["files"]
        return {files[f"{split}.fasta"]["sha256"]: values for split, values in perplexity.items()}
    except FileNotFoundError as error:
        raise ProtformerError(f"data.reference={path}: no such file (data.reference=null does without).") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProtformerError(
            f"data.reference={path}: not the report that protformer simulate writes beside its files"
            f" ({type(error).__name__}: {error}); data.reference=null does without."
        ) from error


def _digest_of_file(paths: Paths) -> str | None:
    """SHA-256 of the file, in hexadecimal; None where there is not just one."""
    several = [paths] if isinstance(paths, str | Path) else list(paths)
    if len(several) != 1 or not Path(several[0]).is_file():  # (a pattern, or standard input)
        return None
    with Path(several[0]).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(name: str, paths: Paths) -> Corpus:
    corpus = Corpus.from_fasta(paths)
    _report(name, corpus)
    return corpus


def _report(name: str, corpus: Corpus) -> None:
    log.info("%s: %s", name, corpus.report.summary())
    for warning in corpus.report.warnings:
        log.warning("%s: %s", name, warning)


def _targets(
    table: LabelledTable,
    kind: LabelKind,
    vocabulary: tuple[str, ...] | None,
    separator: str = ";",
    unknown: Literal["error", "skip"] = "error",
) -> Labelled:
    if kind == "class":
        return class_labels(table, vocabulary, unknown=unknown)
    if kind == "multi_label":
        return multi_labels(table, vocabulary, separator=separator, unknown=unknown)
    if kind == "residue":
        return residue_labels(table, vocabulary, unknown=unknown)
    return number_targets(table)

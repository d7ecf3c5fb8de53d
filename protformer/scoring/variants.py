"""The whole job of `protformer variants`: a wild type, a file of variants and a model to a table of scores."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from protformer.data.fasta import expand_paths
from protformer.errors import ProtformerError
from protformer.scoring.job import Records
from protformer.scoring.marginals import Marginals, blosum_score, marginal_score, masked_marginals
from protformer.scoring.mutations import Variant, Variants, better_offset, read_variants, written
from protformer.scoring.passes import DoesNotFit, LanguageModel
from protformer.scoring.perplexity import NOT_FINITE
from protformer.scoring.ranking import Ranking, rank, said
from protformer.scoring.tables import Failure, checked_output, table, write_failures

COLUMNS = ("substitutions", "substitution_count", "masked_marginal", "blosum62", "notes")
MODEL, BLOSUM, COUNT = "the model", "BLOSUM62", "fewer substitutions"
_NAMED_IDS = 10


@dataclass
class VariantsReport:
    """What a job did. `scored + len(failures)` variants were read."""

    output: Path | None
    wild_type: str
    residues: int
    variants: int
    sites: int
    column: str | None
    notes: list[str] = field(default_factory=list)
    scored: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    failures_file: Path | None = None
    rankings: dict[str, Ranking] = field(default_factory=dict)
    ranking_lines: list[str] = field(default_factory=list)

    def plan(self) -> str:
        """What will be computed."""
        source = f" (column {self.column!r})" if self.column else ""
        return (
            f"{self.variants:,} variant{'s' * (self.variants != 1)}{source} of {self.wild_type or 'the wild type'}, "
            f"{self.residues:,} residues; to compute: {self.sites * self.residues:,} residues, a pass for each of "
            f"{self.sites:,} site{'s' * (self.sites != 1)}"
        )

    def summary(self) -> str:
        """What was done, a line each, then the rank correlations."""
        done = f"{self.scored:,} variant{'s' * (self.scored != 1)} scored in {self.seconds:,.1f} s"
        return "\n".join([*self.notes, done + (f": {self.output}" if self.output else ""), *self.ranking_lines])


def score_variants(
    fasta: str | Path,
    mutations: Path,
    language_model: LanguageModel,
    output: Path | None = None,
    *,
    wild_type: str | None = None,
    offset: int = 0,
    target: str | None = None,
    force: bool = False,
    on_start: Callable[[VariantsReport], None] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> VariantsReport:
    """Masked-marginal scores of all variants in a file, a row each, in their order (`COLUMNS` behind the file's own).

    Args:
        fasta: holds the wild type, alone or as the record named by `wild_type`.
        mutations, offset: as in `read_variants`.
        output: the table, renamed into place when whole; None writes to standard output. Variants without a score have
            a row with empty figures, and stand with the reason in `<output>.failures.tsv`.
        target: a column of measured numbers, to correlate with the scores and with floors beside them.
        force: replace an output that exists.
        on_start: called once, before the model computes.
        on_batch: called after each pack with the residues that it held.

    Raises:
        ProtformerError: an input or the output cannot be used, or the model was trained on the next residue.
    """
    if language_model.next_residue:
        raise ProtformerError(
            f"{language_model.folder} predicts the next residue and was never shown a mask, so it has no masked "
            "marginals: use a model trained with task=masked_residue."
        )
    paths = expand_paths(fasta)
    output = checked_output(output, [*paths, mutations], force=force)
    name, residues, notes = choose_wild_type(paths, wild_type)
    found = read_variants(mutations, residues, offset=offset)
    measured = _measured(found, target)
    sites = {site.index for variant in found.variants for site in variant.substitutions}
    report = VariantsReport(output, name, len(residues), len(found.variants), len(sites), found.column, notes)
    if on_start is not None:
        on_start(report)
    begun = time.perf_counter()
    marginals = masked_marginals(language_model, residues, sites, on_batch=on_batch)
    scores = [marginal_score(marginals, variant.substitutions) for variant in found.variants]
    floors = [blosum_score(variant.substitutions) for variant in found.variants]
    report.seconds = time.perf_counter() - begun
    _write(report, found, scores, floors, marginals, offset)
    if (hint := _offset_hint(report, found, residues, offset)) is not None:
        notes.append(hint)
    if measured is not None:
        _correlate(report, found, scores, floors, measured, str(target))
    return report


def choose_wild_type(paths: Sequence[Path], wanted: str | None) -> tuple[str, UInt8[np.ndarray, " length"], list[str]]:
    """Id and tokens of the one record, or of the one named so, and what was done to its letters."""
    records = Records(paths)
    file = ", ".join(records.corpus.report.files)
    ids = [place.id for place in records.places]
    shown = ", ".join(ids[:_NAMED_IDS]) + (", ..." if len(ids) > _NAMED_IDS else "")
    if wanted is None and len(ids) > 1:
        raise ProtformerError(f"{file} holds {len(ids):,} records: name the wild type with --wildtype ID ({shown}).")
    places = [number for number, name in enumerate(ids) if wanted is None or name == wanted]
    if not places:
        raise ProtformerError(f"{file} has no record {wanted!r}; its ids are {shown}.")
    if len(places) > 1:
        raise ProtformerError(f"{file} has {len(places):,} records {wanted!r}: the wild type must be one.")
    number = places[0]
    if number in records.empty:
        raise ProtformerError(f"The wild type {ids[number]!r} of {file} has no residue.")
    before = sum(empty < number for empty in records.empty)
    note = records.notes.get(number)
    notes = [*records.corpus.report.warnings, *([f"the wild type's letters: {note}"] if note else [])]
    return ids[number], records.corpus.sequence(number - before), notes


def _measured(found: Variants, target: str | None) -> np.ndarray | None:
    """The target column as numbers `[variants]`, NaN where there is none."""
    if target is None:
        return None
    if target not in found.columns:
        columns = ", ".join(found.columns)
        raise ProtformerError(
            f"{found.path} has no column {target!r} for --target; "
            + (f"its columns are {columns}." if columns else "it is a list without columns: give a CSV or TSV table.")
        )
    place = found.columns.index(target)
    values = np.array([_number(variant.cells[place]) for variant in found.variants])
    if not np.isfinite(values).any():
        raise ProtformerError(f"{found.path}: the column {target!r} for --target holds no number.")
    return values


def _number(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        return float("nan")
    return value if math.isfinite(value) else float("nan")


def _write(
    report: VariantsReport,
    found: Variants,
    scores: Sequence[float],
    floors: Sequence[float],
    marginals: Marginals,
    offset: int,
) -> None:
    carried = found.columns or ("variant",)
    names = _free_names(carried)
    if names != COLUMNS:
        report.notes.append(f"columns of {found.path} have names of ours, which are therefore {', '.join(names)}")
    with table(report.output) as rows:
        rows.write((*carried, *names))
        for variant, score, floor in zip(found.variants, scores, floors, strict=True):
            reason = variant.reason or (None if math.isfinite(score) else _why(variant, marginals))
            own = variant.cells or (variant.text,)
            if reason is None:
                report.scored += 1
                sites = written(variant.substitutions, offset)
                rows.write((*own, sites, len(variant.substitutions), score, floor, ""))
            else:
                identity = variant.text if len(variant.text) <= 60 else variant.text[:60] + "..."
                report.failures.append(Failure(str(found.path), variant.line, identity, reason))
                rows.write((*own, "", "", "", "", f"not scored: {reason}"))
    report.failures_file = write_failures(report.output, report.failures)


def _why(variant: Variant, marginals: Marginals) -> str:
    for site in variant.substitutions:
        if isinstance(read := marginals[site.index], DoesNotFit):
            return read.reason
    return NOT_FINITE


def _free_names(carried: Sequence[str]) -> tuple[str, ...]:
    """Our columns' names, with _2, _3, ... where the table has such columns, as one that we wrote does."""
    number = 1
    while True:
        names = COLUMNS if number == 1 else tuple(f"{name}_{number}" for name in COLUMNS)
        if not set(names) & set(carried):
            return names
        number += 1


def _offset_hint(report: VariantsReport, found: Variants, residues: np.ndarray, offset: int) -> str | None:
    """Where most variants fail, perhaps their numbering starts elsewhere."""
    texts = [variant.text for variant in found.variants if variant.reason is not None]
    if 2 * len(texts) <= len(found.variants):
        return None
    other, agreeing, sites = better_offset(texts, residues)
    if other == offset or 4 * agreeing < 3 * sites or sites < 2:
        return None
    return (
        f"most variants disagree with the wild type; with --offset {other} the letters of {agreeing:,} of "
        f"{sites:,} sites named in them would agree"
    )


def _correlate(
    report: VariantsReport,
    found: Variants,
    scores: Sequence[float],
    floors: Sequence[float],
    measured: np.ndarray,
    target: str,
) -> None:
    values = np.array(scores)
    usable = np.isfinite(values) & np.isfinite(measured)
    usable &= np.array([variant.reason is None for variant in found.variants])
    without = int((~np.isfinite(measured)).sum())
    if without:
        report.ranking_lines.append(
            f"not ranked: {without:,} variant{'s' * (without != 1)} without a number in {target!r}"
        )
    counts = np.array([len(variant.substitutions) for variant in found.variants], np.float64)
    columns = {MODEL: values, BLOSUM: np.array(floors), COUNT: -counts}
    report.rankings = rank({name: column[usable] for name, column in columns.items()}, measured[usable])
    report.ranking_lines += said(report.rankings, int(usable.sum()), target)

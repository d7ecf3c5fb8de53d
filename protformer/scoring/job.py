"""The whole job of `protformer score`: FASTA files and a model folder to a table with a row for every record."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from protformer.data import alphabet
from protformer.data.corpus import Corpus, CorpusBuilder, ReadReport
from protformer.data.fasta import expand_paths, read_fasta
from protformer.errors import ProtformerError
from protformer.scoring.passes import LanguageModel
from protformer.scoring.perplexity import NEXT_RESIDUE, method_of, residues_to_compute, score_corpus
from protformer.scoring.tables import Failure, checked_output, table, write_failures

COLUMNS = ("id", "residues", "scored", "pseudo_perplexity", "mean_log_likelihood", "method", "notes")
NO_RESIDUE = "the sequence has no residue"


class Place(NamedTuple):
    """Where a record stands."""

    file: str
    record: int  # its number in that file, from 1
    id: str


class Records:
    """The records of some files in order: those with residues in a corpus, and what was done to their letters."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read them all (`-` is standard input). ProtformerError: one is no FASTA, or none has a record."""
        self.places: list[Place] = []
        self.notes: dict[int, str] = {}  # record -> letters replaced and the like
        self.empty: set[int] = set()  # records without a residue: they are not in the corpus
        builder = CorpusBuilder()
        report = builder.report
        for path in paths:
            file = "standard input" if str(path) == "-" else str(path)
            start, residues_before = len(self.places), len(builder.tokens)
            comments: Counter[str] = Counter()
            for record in read_fasta(path, counts=comments):
                number = len(self.places)
                self.places.append(Place(file, number - start + 1, record.id))
                if note := letters_note(alphabet.clean(record.sequence)):
                    self.notes[number] = note
                if not builder.add(record.id, record.sequence):
                    self.empty.add(number)
            report.files.append(file)
            report.comment_lines += comments["comment lines"]
            if len(self.places) == start:
                report.empty_files.append(file)
            builder.warn_of_nucleotides(file, residues_before)
        if not self.places:
            raise ProtformerError(f"There is no record in {', '.join(report.files)}.")
        self.corpus: Corpus = builder.build()


def letters_note(cleaned: alphabet.Cleaned) -> str:
    """What was done to a sequence's letters, "" where nothing was."""
    told = []
    if cleaned.replaced:
        letters = ", ".join(f"{letter!r} {count:,}" for letter, count in sorted(cleaned.replaced.items()))
        told.append(f"read as X: {letters}")
    if cleaned.lower_case:
        told.append(f"{cleaned.lower_case:,} lower-case residues read as upper case")
    if cleaned.stop_dropped:
        told.append("final '*' dropped")
    return "; ".join(told)


@dataclass
class ScoringPlan:
    """What a job will compute, known before it begins."""

    read: ReadReport
    proteins: int
    residues: int  # of all passes
    methods: dict[str, int]  # method -> proteins

    def summary(self) -> str:
        methods = ", ".join(f"{method} {count:,}" for method, count in self.methods.items())
        told = f"to compute: {self.residues:,} residues in all passes (proteins by method: {methods or 'none'})"
        if NEXT_RESIDUE in self.methods:
            told += "\nthe model predicts the next residue: one pass of each protein gives the true perplexity"
        return told


@dataclass
class ScoringReport:
    """What a job did. `plan.read.records == scored + len(failures)`."""

    output: Path | None
    plan: ScoringPlan
    device: str
    precision: str
    scored: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    failures_file: Path | None = None

    def summary(self) -> str:
        rate = self.plan.residues / max(self.seconds, 1e-9)
        return (
            f"{self.scored:,} protein{'s' * (self.scored != 1)} scored in {self.seconds:,.1f} s "
            f"({rate:,.0f} residues per second, {self.device}, {self.precision})"
            + (f": {self.output}" if self.output else "")
        )


def score_fasta(
    inputs: Sequence[str | Path],
    language_model: LanguageModel,
    output: Path | None = None,
    *,
    passes: int | None,
    seed: int = 0,
    force: bool = False,
    on_start: Callable[[ScoringPlan], None] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> ScoringReport:
    """Score the records of FASTA files: a row each (`COLUMNS`), in the order of the input.

    Args:
        inputs: paths and globs, plain or compressed; "-" is standard input.
        output: the table, renamed into place when whole; None writes to standard output. Records without a score have
            a row with empty figures, and stand with the reason in `<output>.failures.tsv`.
        passes, seed: as in `passes_of`.
        force: replace an output that exists.
        on_start: called once with what there is to compute.
        on_batch: called after each pack with the residues that it held.

    Raises:
        ProtformerError: an input or the output cannot be used.
    """
    paths = expand_paths(inputs)
    output = checked_output(output, paths, force=force)
    records = Records(paths)
    corpus, causal = records.corpus, language_model.next_residue
    standard = corpus.standard_counts.tolist()
    plan = ScoringPlan(
        corpus.report,
        sum(count > 0 for count in standard),
        residues_to_compute(corpus, passes, next_residue=causal),
        dict(Counter(method_of(count, passes, next_residue=causal) for count in standard if count)),
    )
    report = ScoringReport(output, plan, language_model.device.type, language_model.precision)
    if on_start is not None:
        on_start(plan)
    begun = time.perf_counter()
    scores = score_corpus(language_model, corpus, passes=passes, seed=seed, on_batch=on_batch)
    lengths = iter(corpus.lengths.tolist())
    with table(output) as rows:
        rows.write(COLUMNS)
        for number, place in enumerate(records.places):
            note = records.notes.get(number, "")
            if number in records.empty:
                failure, cells = NO_RESIDUE, (0, 0, "", "", "")
            else:
                score = next(scores)
                failure = score.failure
                figures = (score.perplexity, score.mean_log_likelihood, score.method) if not failure else ("", "", "")
                cells = (next(lengths), score.scored, *figures)
            if failure:
                report.failures.append(Failure(*place, failure))
                note = "; ".join(part for part in (note, f"not scored: {failure}") if part)
            else:
                report.scored += 1
            rows.write((place.id, *cells, note))
    report.seconds = time.perf_counter() - begun
    report.failures_file = write_failures(output, report.failures)
    return report

"""FASTA files to a corpus in which every record is accounted for: it is in the corpus, or it is a `Failure`."""

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from protformer.data.corpus import Corpus, CorpusBuilder
from protformer.data.fasta import read_fasta
from protformer.embedding.store import Failure
from protformer.errors import ProtformerError

NO_RESIDUE = "the sequence has no residue"


class Records:
    """The sequences of some files, the records that have none, and where each came from."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read them all (`-` is standard input). ProtformerError: one is no FASTA, or none has a record."""
        self.failures: list[Failure] = []
        self._numbers = array("q")  # of each sequence: its record's number over all files, from 0
        self._files: list[str] = []
        self._starts: list[int] = []  # the number of each file's first record
        builder = CorpusBuilder()
        report = builder.report
        for path in paths:
            file = "standard input" if str(path) == "-" else str(path)
            start, residues_before = report.records, len(builder.tokens)
            self._files.append(file)
            self._starts.append(start)
            comments: Counter[str] = Counter()
            for record in read_fasta(path, counts=comments):
                number = report.records
                if builder.add(record.id, record.sequence):
                    self._numbers.append(number)
                else:
                    self.failures.append(Failure(file, number - start + 1, record.id, NO_RESIDUE))
            report.files.append(file)
            report.comment_lines += comments["comment lines"]
            if report.records == start:
                report.empty_files.append(file)
            builder.warn_of_nucleotides(file, residues_before)
        if not report.records:
            raise ProtformerError(f"There is no record in {', '.join(self._files)}.")
        self.corpus: Corpus = builder.build()

    def failure(self, index: int, reason: str) -> Failure:
        """Sequence `index` of the corpus, by the place where the user finds it."""
        number = self._numbers[index]
        place = bisect_right(self._starts, number) - 1
        return Failure(self._files[place], number - self._starts[place] + 1, self.corpus.id(index), reason)

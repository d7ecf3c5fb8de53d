"""The whole job of `protformer embed`: FASTA files and a model folder to a store, with an account of every record."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import torch

from protformer import __version__
from protformer.data.alphabet import TOKENS
from protformer.data.corpus import Noted, ReadReport
from protformer.data.fasta import expand_paths
from protformer.embedding.embed import Precision, choose_device, embed_corpus
from protformer.embedding.keys import safe_key
from protformer.embedding.records import Records
from protformer.embedding.store import EmbeddingWriter, Failure, failures_path, write_failures
from protformer.errors import ProtformerError
from protformer.model import find_model_folder, load_model
from protformer.model.folder import WEIGHTS_NAME

NOT_FINITE = "the model gave numbers that are not finite"


@dataclass
class EmbeddingReport:
    """What a job did. `read.records == embedded + len(failures)`."""

    output: Path
    read: ReadReport
    device: str
    precision: Precision
    embedded: int = 0
    residues: int = 0  # of the proteins embedded
    seconds: float = 0.0  # of computing and writing
    failures: list[Failure] = field(default_factory=list)
    failures_file: Path | None = None
    changed_keys: Noted = field(default_factory=Noted)  # ids that are not safe as keys

    def summary(self) -> str:
        """What was read, what was changed, and what was written, a line each. Failures and warnings are not in it."""
        lines = [self.read.summary()]
        if self.read.duplicate_ids.count:
            lines.append("ids that came before: the keys of later ones end in _2, _3, ..., original_id keeps the id")
        if self.changed_keys.count:
            lines.append(f"ids not safe as keys, kept in original_id: {self.changed_keys}")
        rate = self.residues / max(self.seconds, 1e-9)
        lines.append(
            f"{self.embedded:,} protein{'s' * (self.embedded != 1)} embedded in {self.seconds:,.1f} s "
            f"({rate:,.0f} residues per second, {self.device}, {self.precision}): {self.output}"
        )
        return "\n".join(lines)


def check_output(output: Path | str, inputs: Sequence[Path], *, force: bool) -> Path:
    """The output's path, its folder made. ProtformerError: it is a folder or an input, or exists and is to stay."""
    output = Path(output)
    if output.is_dir():
        raise ProtformerError(f"{output} is a folder: name the file to write, for instance {output / 'out.h5'}.")
    if any(path.resolve() == output.resolve() for path in inputs):
        raise ProtformerError(f"{output} is an input too: choose another output.")
    if output.exists() and not force:
        raise ProtformerError(f"{output} exists already: choose another output, or replace it with --force.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProtformerError(f"The folder {output.parent} cannot be made: {error.strerror}.") from error
    return output


def embed_fasta(
    inputs: Sequence[str | Path],
    model_folder: Path | str,
    output: Path | str,
    *,
    per_residue: bool = False,
    batch_tokens: int | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    force: bool = False,
    on_start: Callable[[int], None] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> EmbeddingReport:
    """Embed the records of FASTA files into an HDF5 store (`protformer.embedding.store`), in the order of the input.

    Args:
        inputs: paths and globs, plain or compressed; "-" is standard input.
        model_folder: a model folder, or a run that holds one; a Performer keeps the projections that stand in it.
        output: the file to write, renamed into place when whole. Records without an embedding are listed in
            `<output>.failures.tsv`, which is there only where there are some.
        per_residue, batch_tokens, precision: as in `embed_corpus`.
        device: "auto", "cpu" or "cuda".
        force: replace an output that exists.
        on_start: called once with the residues to embed.
        on_batch: called after each batch with the residues that it held.

    Raises:
        ProtformerError: the model, an input or the output cannot be used, or no record at all could be embedded.
    """
    paths = expand_paths(inputs)
    output = check_output(output, paths, force=force)
    chosen = choose_device(device)
    folder = find_model_folder(model_folder)
    model, configuration = load_model(folder)
    if configuration.get("tokens") != list(TOKENS):
        raise ProtformerError(
            f"{folder} was trained with another alphabet than this protformer's: it cannot embed here."
        )
    weights_hash = model_hash(folder)
    model.to(chosen)
    records = Records(paths)
    corpus = records.corpus
    report = EmbeddingReport(output, corpus.report, chosen.type, precision, failures=list(records.failures))
    if on_start is not None:
        on_start(int(corpus.tokens.size))
    begun = time.perf_counter()
    with EmbeddingWriter(output) as writer:
        vectors = embed_corpus(
            model, corpus, per_residue=per_residue, batch_tokens=batch_tokens, precision=precision, on_batch=on_batch
        )
        for index, vector in enumerate(vectors):
            if not np.isfinite(vector).all():
                report.failures.append(records.failure(index, NOT_FINITE))
                continue
            name, residues = corpus.id(index), len(corpus.sequence(index))
            writer.write(name, vector, residues=residues)
            report.residues += residues
            if name and safe_key(name) != name:
                report.changed_keys.add(ascii(name[:60])[1:-1])
        report.embedded = writer.written
        report.seconds = time.perf_counter() - begun
        if report.failures:
            order = {file: place for place, file in enumerate(corpus.report.files)}
            report.failures.sort(key=lambda failure: (order[failure.file], failure.record))
            report.failures_file = write_failures(output, report.failures)
        if not report.embedded:
            raise ProtformerError(
                f"None of the {corpus.report.records:,} records could be embedded: "
                f"the reasons are in {report.failures_file}."
            )
        writer.commit(
            model_hash=weights_hash,
            settings={
                "output": "per_residue" if per_residue else "per_protein",
                "pooling": None if per_residue else "mean",
                "layer": "last",
                "precision": precision,
                "device": chosen.type,
            },
            versions={
                "protformer": __version__,
                "torch": str(torch.__version__),
                "numpy": np.__version__,
                "h5py": h5py.__version__,
            },
            counts={
                "records": corpus.report.records,
                "proteins": report.embedded,
                "residues": report.residues,
                "failures": len(report.failures),
                "letters_replaced": sum(corpus.report.replaced.values()),
                "hidden_size": model.trunk.encoder.hidden_size,
            },
        )
    if not report.failures:
        failures_path(output).unlink(missing_ok=True)  # of an output that --force replaced
    return report


def model_hash(folder: Path) -> str:
    """BLAKE2b (256 bits, hex) of the weights' file: two stores with the same hash came from the same weights."""
    with (folder / WEIGHTS_NAME).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()

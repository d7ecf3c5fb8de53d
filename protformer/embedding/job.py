"""The whole job of `protformer embed`: FASTA files and a model folder to a file of vectors, every record accounted for.

scan      the input once, without the model: counts, policies, sizes (not of standard input)
compute   windows of the input to shards, each whole or not there; under --resume those that are there are taken
assemble  the shards to the output, in the order of the input; renamed into place, then the manifest
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from protformer import __version__
from protformer.data.alphabet import TOKENS
from protformer.data.fasta import STDIN, expand_paths
from protformer.embedding.assemble import Counts, Shards, assemble, deliver, sha256, sidecar
from protformer.embedding.formats import FORMAT, FORMAT_VERSION, SUFFIXES, format_of, writer
from protformer.embedding.options import Options, Output
from protformer.embedding.records import Account, Reader
from protformer.embedding.shards import is_whole, shard_path
from protformer.embedding.sizes import check_disk, output_bytes
from protformer.embedding.unfinished import Unfinished, other_input
from protformer.embedding.windows import Window, window_tokens, windows
from protformer.embedding.workers import Work, compute_here, compute_in_processes
from protformer.errors import ProtformerError
from protformer.files import explaining
from protformer.model import find_model_folder
from protformer.model.folder import WEIGHTS_NAME, read_config
from protformer.model.inference import BATCH_TOKENS, choose_device


@dataclass
class Watch:
    """What a caller wants to hear of. Residues are of sequences that come for the first time."""

    on_start: Callable[[int | None], None] = lambda residues: None  # to compute; None where that is not known
    on_batch: Callable[[int], None] = lambda residues: None  # computed
    on_resumed: Callable[[int], None] = lambda residues: None  # found in a shard


@dataclass
class EmbeddingReport:
    """What a job did, or under `dry_run` would do."""

    output: Path
    account: Account
    counts: Counts
    device: str
    precision: str
    outputs: tuple[Output, ...]
    output_bytes: int | None = None  # estimated; None for standard input
    shard_bytes: int | None = None
    seconds: float = 0.0  # of computing and assembling
    computed: int = 0  # residues, by this run
    windows: int = 0
    resumed_windows: int = 0
    retried: int = 0  # batches that did not fit into memory
    complete: bool = False  # it was there already
    failures_file: Path | None = None


def embed_fasta(
    inputs: Sequence[str | Path],
    model_folder: Path | str,
    output: Path | str,
    *,
    options: Options | None = None,
    format_name: str | None = None,
    device: str = "auto",
    devices: int = 1,
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    watch: Watch | None = None,
) -> EmbeddingReport:
    """Embed the records of FASTA files, in the order of the input.

    Args:
        inputs: paths and globs, plain or compressed; "-" is standard input.
        model_folder: a model folder, or a run that holds one; a Performer keeps the projections that stand in it.
        output: the file to write, or a folder to write it into. Beside it: its manifest, the table of all records, and
            that of failures where there are some (`assemble.py`).
        options: what is stored, and how records that are not plain are treated.
        format_name: a key of `formats.SUFFIXES`; None: by the output's ending, else HDF5.
        device: "auto", "cpu" or "cuda".
        devices: so many GPUs, or processes on a CPU, share the work. The result has the same bytes.
        resume: go on with an unfinished run; what is finished already is left as it is.
        force: replace an output that exists, and begin anew where a run is unfinished.
        dry_run: read the input and say what would be done; nothing is written.

    Raises:
        ProtformerError: the model, an input or the output cannot be used; a policy is "error" and met; no record at all
            could be embedded.
    """
    watch = watch or Watch()
    chosen = choose_device(device)
    options = options or Options(batch_tokens=BATCH_TOKENS["cpu" if chosen.type == "cpu" else "cuda"])
    paths = expand_paths(inputs)
    folder = find_model_folder(model_folder)
    config = read_config(folder, tokens=TOKENS)
    trunk = config["model"]["trunk"]
    outputs = options.outputs(hidden_size=trunk["hidden_size"], num_layers=trunk["num_layers"])
    output, format_name = place(output, format_name, paths)
    writer(format_name)  # (a format that cannot be written here is said before anything is computed)
    report = EmbeddingReport(output, Account.empty(), Counts(), chosen.type, options.precision, outputs)
    settings = {"outputs": [o._asdict() for o in outputs], "format": format_name, "device": chosen.type}
    settings |= {k: v for k, v in options.as_dict().items() if k not in ("layers", "pool", "per_residue", "logits")}
    made_with = {"model_hash": model_hash(folder), "settings": settings, "versions": versions(format_name)}
    done = sidecar(output, "manifest.json")
    if output.exists() and not (force or resume or dry_run):
        raise ProtformerError(f"{output} exists already: choose another output, or replace it with --force.")
    scanned = None
    if STDIN not in paths:
        scanned = _scan(paths, options)
        report.account = scanned.account
        sizes = output_bytes(outputs, 2 if options.dtype == "fp16" else 4, format_name, scanned.account)
        report.output_bytes, report.shard_bytes = sizes
    elif dry_run:
        raise ProtformerError("--dry-run reads the input once, and standard input cannot be read again: name a file.")
    if dry_run:
        return report
    with explaining(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    if resume and not force and done.exists() and not sidecar(output, "parts").exists():
        return _finished(
            report, json.loads(done.read_text(encoding="utf-8")), made_with, scanned or _scan(paths, options)
        )
    if report.output_bytes is not None and report.shard_bytes is not None:
        there = sum(path.stat().st_size for path in sidecar(output, "parts").glob("shard-*"))
        check_disk(output.parent, max(0, report.output_bytes + report.shard_bytes - there))
    begun_with = {**made_with, "input_digest": None if scanned is None else scanned.prefix}
    with Unfinished(output, begun_with, resume=resume, force=force) as unfinished:
        begun = time.perf_counter()
        work = Work(folder, outputs, options, unfinished.path)
        prefix = _compute(report, work, paths, chosen, devices, watch, scanned)
        _assemble(report, work, format_name, made_with, prefix)
        report.seconds = time.perf_counter() - begun
        unfinished.remove()
    if not report.counts.embedded:
        raise ProtformerError(
            f"None of the {report.counts.records:,} records could be embedded: "
            f"the reasons are in {report.failures_file}."
        )
    return report


def place(output: Path | str, format_name: str | None, inputs: Sequence[Path]) -> tuple[Path, str]:
    """The file to write and its format. ProtformerError: it is an input, or its ending and the format disagree."""
    text, output = str(output), Path(output)
    if text.endswith("/") or output.is_dir():
        output = output / f"embeddings{SUFFIXES[format_name or 'hdf5'][0]}"
    if any(path.resolve() == output.resolve() for path in inputs):
        raise ProtformerError(f"{output} is an input too: choose another output.")
    return output, format_of(output, format_name)


def _scan(paths: Sequence[Path], options: Options) -> Reader:
    """Read the input to its end: what is in it, and whether every policy can be kept."""
    reader = Reader(paths, options.policies)
    for _ in reader:
        pass
    return reader


def _compute(
    report: EmbeddingReport,
    work: Work,
    paths: Sequence[Path],
    device: torch.device,
    devices: int,
    watch: Watch,
    scanned: Reader | None,
) -> str:
    """All shards; the digest of the input."""
    reader = Reader(paths, work.options.policies)
    count = 0

    def missing() -> Iterator[Window]:
        nonlocal count
        for window in windows(reader, window_tokens(work.outputs, work.options.batch_tokens)):
            count += 1
            whole = is_whole(work.shards, window)
            if whole is None:
                first, last = window.entries[0].record, window.entries[-1].record
                raise other_input(report.output, f" (records {first:,} to {last:,})")
            if whole:
                report.resumed_windows += 1
                watch.on_resumed(sum(len(entry.tokens) for entry in window.computed))
            else:
                yield window

    def computed(residues: int) -> None:
        report.computed += residues
        watch.on_batch(residues)

    watch.on_start(None if scanned is None else scanned.account.computed)
    with explaining(report.output):
        if devices > 1:
            names = [f"cuda:{i}" for i in range(devices)] if device.type == "cuda" else ["cpu"] * devices
            compute_in_processes(work, names, missing(), computed)
        else:
            embedder = work.embedder(device)
            compute_here(work, embedder, missing(), computed)
            report.retried = embedder.retried
    if shard_path(work.shards, count).exists() or (scanned is not None and scanned.prefix != reader.prefix):
        raise other_input(report.output)
    report.account = reader.account
    report.windows = count
    return reader.prefix


def _assemble(report: EmbeddingReport, work: Work, format_name: str, made_with: dict[str, Any], prefix: str) -> None:
    with explaining(report.output):
        shards = Shards(work.shards, report.windows, work.outputs)
        report.counts = shards.counts
        counts = shards.counts.__dict__ | {"letters_replaced": sum(report.account.read.replaced.values())}
        attributes = {"format": FORMAT, "format_version": FORMAT_VERSION, **made_with, "counts": counts}
        made = assemble(shards, format_name, work.dtype, attributes, work.shards)
        manifest = {
            **attributes,
            "file": report.output.name,
            "sha256": sha256(made[""]) if "" in made else None,
            "inputs": report.account.read.files,
            "input_digest": prefix,
            "read": report.account.read.as_dict(),
        }
        deliver(made, report.output, manifest)
    if report.counts.failed:
        report.failures_file = sidecar(report.output, "failures.tsv")


def _finished(
    report: EmbeddingReport, manifest: dict[str, Any], made_with: dict[str, Any], scanned: Reader
) -> EmbeddingReport:
    """Of an output that is complete. ProtformerError: it was made from something else."""
    former = {name: manifest.get(name) for name in made_with}
    if former != json.loads(json.dumps(made_with)) or manifest.get("input_digest") != scanned.prefix:
        raise ProtformerError(
            f"{report.output} is complete, and was made with another input, model or settings: choose another output, "
            "or replace it with --force."
        )
    report.account = scanned.account
    known = manifest["counts"]
    report.counts = Counts(**{name: known[name] for name in Counts().__dict__})
    report.complete = True
    if report.counts.failed:
        report.failures_file = sidecar(report.output, "failures.tsv")
    return report


def versions(format_name: str) -> dict[str, str]:
    """Of what the bytes depend on."""
    package = {"hdf5": "h5py", "parquet": "pyarrow", "npz": "numpy", "safetensors": "numpy"}[format_name]
    found = {"protformer": __version__, "torch": str(torch.__version__)}
    try:
        return found | {package: version(package)}
    except PackageNotFoundError:
        return found


def model_hash(folder: Path) -> str:
    """BLAKE2b (256 bits, hex) of the weights' file: two stores with the same hash came from the same weights."""
    with (folder / WEIGHTS_NAME).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()

"""`protformer embed`: FASTA files and a trained model to vectors on disk, every record accounted for."""

import argparse
import sys
from typing import TYPE_CHECKING

from protformer.cli.arguments import add_speed, positive

if TYPE_CHECKING:
    from protformer.embedding import EmbeddingReport, Options

DESCRIPTION = """\
Embed proteins: one vector each (the mean over its residues of the model's last hidden states),
or with --per-residue one matrix each, in the order of the input. Any length is read whole;
nothing is truncated unless you ask for it.
"""

EPILOG = """\
examples:
  protformer embed proteins.fasta --model runs/my_run -o proteins.h5
  protformer embed 'proteomes/*.faa.gz' extra.fasta.xz --model my_model/ -o all.h5 --resume
  protformer embed proteins.fasta --model my_model/ -o out/ --format parquet \\
    --per-residue --layers -1,6 --pool mean,max,cls
  zcat big.fasta.gz | protformer embed - --model runs/my_run -o big.npz --precision bf16

Written: OUT; OUT.records.tsv, what became of every record of the input; OUT.failures.tsv, the
records that have no embedding, with the reason, where there are some; OUT.manifest.json, model,
settings, versions, counts and checksum, last of all. Until then the work stands in OUT.parts,
in shards that are whole or not there: after a crash, a kill or a full disk, run the same
command with --resume, and the output has the same bytes as if nothing had happened.
`protformer verify OUT --input FASTA` proves it complete.

An HDF5 file has one dataset for each protein, named by its id (made safe where it holds such as
"/" or "..", with _2, _3, ... where an id comes again; the attribute original_id has it as it
stood). With several outputs, a group for each protein and a dataset for each output. NPZ and
safetensors hold all proteins end to end, with offsets.

Exit codes: 0 every record was embedded; 1 some were not (they are in OUT.failures.tsv), or the
run failed; 2 the command line cannot be.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand `embed` to the parser of `protformer`."""
    parser = subparsers.add_parser(
        "embed",
        help="embed FASTA files with a trained model",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("fasta", nargs="+", metavar="FASTA", help="file, glob or - (standard input); plain, gz, bz2, xz or zst")
    add("--model", required=True, metavar="DIR", help="model folder, or the folder of a run that holds one")
    add("-o", "--output", required=True, metavar="OUT", help="file to write, or a folder (ending in /) for it")
    add("--resume", action="store_true", help="go on with a run that was interrupted; what is complete stays as it is")
    add("--force", action="store_true", help="replace OUT where it exists, and begin anew")
    add("--dry-run", action="store_true", help="read the input, say what would be done and how large OUT becomes")

    add = parser.add_argument_group("what is stored").add_argument
    add("--per-residue", action="store_true", help="a matrix [residues, hidden] for each protein")
    add(
        "--pool",
        type=_names,
        metavar="POOL",
        help="one vector each: mean, max, cls, or several (default mean, none with --per-residue)",
    )
    add(
        "--layers",
        type=_numbers,
        default=(-1,),
        metavar="N",
        help="0 the input, 1 the first block, ..., -1 the last with its norm; several by commas (default -1)",
    )
    add(
        "--logits",
        action="store_true",
        help="the language model's logits [residues, 33] too, in the order of its alphabet",
    )
    add("--format", choices=("hdf5", "parquet", "npz", "safetensors"), help="default: by OUT's ending, else hdf5")
    add("--dtype", choices=("fp32", "fp16"), default="fp32", help="of the stored numbers (default %(default)s)")

    add = parser.add_argument_group("records that are not plain").add_argument
    add(
        "--on-invalid",
        choices=("x", "skip", "error"),
        default="x",
        help="letters outside the alphabet: each becomes an X (default), the record fails, or the run ends",
    )
    add("--aligned", action="store_true", help="- and . are gaps of an alignment, and go")
    add(
        "--on-duplicate",
        choices=("suffix", "keep-first", "error"),
        default="suffix",
        help="an id that came before: its key gets _2, _3, ... (default), the record is dropped, or the run ends",
    )
    add(
        "--on-long",
        choices=("full", "window", "truncate", "error"),
        default="full",
        help="more than --max-length residues: computed whole (default), in overlapping windows, cut, or the run ends",
    )
    add("--max-length", type=positive, metavar="N", help="residues; needed by the other three of --on-long")
    add("--overlap", type=int, default=0, metavar="N", help="residues that neighbouring windows share (default 0)")

    add = add_speed(parser).add_argument
    add(
        "--devices",
        type=positive,
        default=1,
        metavar="N",
        help="GPUs, or processes on a CPU, that share the work (default 1)",
    )
    add("--compile", action="store_true", help="through torch.compile: minutes to begin with, for long runs on a GPU")
    add("--log-json", action="store_true", help="progress as lines of JSON on standard error, for programs")
    parser.set_defaults(run=run)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _names(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as -1,6") from None


def _options(args: argparse.Namespace) -> "Options":
    from protformer.embedding import Options, Policies
    from protformer.model.inference import BATCH_TOKENS, choose_device

    policies = Policies(
        on_invalid=args.on_invalid,
        aligned=args.aligned,
        on_duplicate=args.on_duplicate,
        on_long=args.on_long,
        max_length=args.max_length,
        overlap=args.overlap,
    )
    kind = "cpu" if choose_device(args.device).type == "cpu" else "cuda"
    return Options(
        per_residue=args.per_residue,
        pool=args.pool,
        layers=args.layers,
        logits=args.logits,
        dtype=args.dtype,
        precision=args.precision,
        batch_tokens=args.batch_tokens or BATCH_TOKENS[kind],
        compile=args.compile,
        policies=policies,
    )


def run(args: argparse.Namespace) -> int:
    """Embeds, and prints what was done. Returns 1 where a record has no embedding; ProtformerError where none has."""
    from protformer.cli.progress import reporting
    from protformer.embedding import Watch, embed_fasta

    options = _options(args)
    with reporting("embedding", as_json=args.log_json) as progress:
        report = embed_fasta(
            args.fasta,
            args.model,
            args.output,
            options=options,
            format_name=args.format,
            device=args.device,
            devices=args.devices,
            resume=args.resume,
            force=args.force,
            dry_run=args.dry_run,
            watch=Watch(progress.start, progress.advance, progress.skip),
        )
    for warning in report.account.read.warnings:
        print(f"protformer: warning: {warning}", file=sys.stderr)
    print(_plan(report) if args.dry_run else _summary(report))
    if report.counts.failed:
        print(
            f"protformer: {report.counts.failed:,} of {report.counts.records:,} records could not be embedded; they "
            f"are listed with the reason in {report.failures_file}, and {report.output} holds all others.",
            file=sys.stderr,
        )
    return 1 if report.counts.failed else 0


def _read(report: "EmbeddingReport") -> list[str]:
    """What was read, and what was done to it, a line each."""
    account = report.account
    lines = [account.read.summary()]
    if account.read.duplicate_ids.count:
        lines.append("their keys end in _2, _3, ...; original_id keeps the id")
    for count, what in (
        (
            account.dropped.count and account.dropped,
            "records dropped because their id came before",
        ),
        (account.changed_keys.count and account.changed_keys, "ids not safe as keys, kept in original_id"),
        (account.gaps_dropped, "gaps dropped (--aligned)"),
        (account.truncated, "records truncated (--on-long truncate)"),
        (account.windowed, "records computed in windows (--on-long window)"),
    ):
        if count:
            lines.append(f"{what}: {count if not isinstance(count, int) else format(count, ',')}")
    return lines


def _summary(report: "EmbeddingReport") -> str:
    counts = report.counts
    lines = _read(report)
    if report.complete:
        return "\n".join([*lines, f"{report.output} is complete: there was nothing to do."])
    if report.resumed_windows:
        lines.append(f"resumed: {report.resumed_windows:,} of {report.windows:,} windows were there")
    if report.retried:
        lines.append(f"batches that did not fit into memory and were divided: {report.retried:,}")
    rate = report.computed / max(report.seconds, 1e-9)
    lines.append(
        f"{counts.embedded:,} protein{'s' * (counts.embedded != 1)} embedded in {report.seconds:,.1f} s "
        f"({rate:,.0f} residues per second, {report.device}, {report.precision}): {report.output}"
    )
    return "\n".join(lines)


def _plan(report: "EmbeddingReport") -> str:
    from protformer.embedding.sizes import human

    account = report.account
    stored = ", ".join(
        f"{output.name} [{'residues, ' * output.per_residue}{output.width}]" for output in report.outputs
    )
    unplaced = account.read.records - account.embeddable
    return "\n".join(
        [
            *_read(report),
            f"would embed {account.embeddable:,} of {account.read.records:,} records, and compute "
            f"{account.computed:,} residues ({report.device}, {report.precision})",
            *([f"without an embedding: {unplaced:,} (--dry-run does not name them; a run does)"] if unplaced else []),
            f"stored of each: {stored}",
            f"{report.output}: about {human(report.output_bytes or 0)}, "
            f"and {human(report.shard_bytes or 0)} beside it while it is made",
            "nothing was written (--dry-run)",
        ]
    )

"""Residues per second of a training step: ours (Performer, exact) beside Hugging Face's `EsmForMaskedLM`, in one run.

    python benchmarks/training_step.py --fasta proteins.fasta.gz --model medium --precision bf16 --json rows.json

A step is forward, backward and AdamW of masked-residue modeling. Every contender sees the same proteins with the same
masks, at the same budget of real tokens per step, so all take about the same number of steps; they differ in what
stands around the real tokens (packing has nothing, a padded rectangle has padding). The contenders take turns step by
step, so that a busy machine slows all of them, and ratios are of the same pass. Batches are made beforehand and not
timed. The ceiling is the matrix products that no attention can avoid: the linear layers of the same shape on the same
tokens.

The proteins are a stratified sample: the whole file is sorted by length and cut into batches, as a user of padded
batches would, and one batch is drawn from each stratum of lengths. Sorting a plain sample of a hundred proteins
would pad by 16 % (at 4,096 tokens a step) where sorting the file pads by 0.01 %: we would have won by that. The
price is that file order pads less here than in the file, whose figure stands beside it.

Needs the extra `peers` (transformers). The CPU only.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import (
    SHAPES,
    Contender,
    HuggingFace,
    LinearLayers,
    Ours,
    Padded,
    attention_cells,
    build_ours,
    consecutive,
    draw_sorted_batches,
    first_sequence,
    import_transformers,
    our_model,
    pack,
    pad,
    padded_rows_per_token,
    rows_computed,
)
from rich.console import Console
from rich.table import Table
from surroundings import REPOSITORY, surroundings

from protformer.data.batch import Batch
from protformer.data.corpus import Corpus
from protformer.data.objectives import MaskedResidues
from protformer.data.packing import PackingPlan
from protformer.errors import ProtformerError
from protformer.files import write_text
from protformer.model import parameter_count

OUT_OF_EAGERS_REACH = 4 << 30  # bytes of attention weights kept for the backward; eager is not tried beyond
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
NOTE = (
    "Ours and the ceiling compute the language-model head at targets only, Hugging Face's at all positions, padding"
    " too; not timed: making batches, redrawing projections; no dropout, no token dropout, no clipping"
)


class Trainer:
    """A contender with its optimiser."""

    def __init__(self, contender: Contender, precision: str) -> None:
        self.module = contender.build(*contender.arguments).train()
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-4, weight_decay=0.01)
        self.bf16 = precision == "bf16"

    def step(self, batch: Batch | Padded) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.module(batch)
        loss.backward()
        self.optimizer.step()

    def seconds(self, batches: Sequence[Batch | Padded], clock: str) -> float:
        now = CLOCKS[clock]
        start = now()
        for batch in batches:
            self.step(batch)
        return now() - start


def faster_attention(shape: str, precision: str, clock: str, batches: Sequence[Padded]) -> str:
    """`eager` or `sdpa`, by the best of three steps on each of the batches at the quartiles of attention's cost."""
    _, layers, heads, _ = SHAPES[shape]
    by_cost = sorted(batches, key=attention_cells)
    if 4 * layers * heads * attention_cells(by_cost[-1]) > OUT_OF_EAGERS_REACH:
        return "sdpa"
    quartiles = [by_cost[len(by_cost) * quarter // 4] for quarter in (1, 2, 3)]
    trainers = {
        name: Trainer(Contender("", "", batches, HuggingFace, (shape, name)), precision) for name in ("eager", "sdpa")
    }
    times = dict.fromkeys(trainers, 0.0)
    for batch in quartiles:
        tries = [{name: trainer.seconds([batch], clock) for name, trainer in trainers.items()} for _ in range(3)]
        for name in times:
            times[name] += min(timed[name] for timed in tries)
    return min(times, key=lambda name: times[name])


def agreement(shape: str, records: np.ndarray, objective: MaskedResidues) -> float:
    """Hugging Face's loss less ours, exact attention, the same weights, fp32: near zero, or the comparison is void."""
    batch = pack(objective, records)
    with torch.no_grad():
        return float(HuggingFace(shape, "sdpa")(pad(batch)) - Ours(our_model(shape, "exact"))(batch))


def peak_extra_memory(contender: Contender, precision: str, threads: int) -> float | None:
    """MB that the heaviest steps add to a new process that has taken a step of one protein. Linux only."""
    if not Path("/proc/self/status").exists():
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_extra_memory, (contender, precision, threads))


def _peak_extra_memory(contender: Contender, precision: str, threads: int) -> float:
    torch.set_num_threads(threads)
    trainer = Trainer(contender, precision)
    trainer.step(first_sequence(contender.batches[0]))
    before = _peak_resident_mb()
    for cost in (attention_cells, rows_computed):  # which one decides depends on the attention
        trainer.step(max(contender.batches, key=cost))
    return _peak_resident_mb() - before


def _peak_resident_mb() -> float:
    # Not getrusage: its maximum is inherited from the parent over fork and exec.
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


# The run


def contenders(arguments: argparse.Namespace, lengths: np.ndarray, objective: MaskedResidues) -> list[Contender]:
    shape, budget = arguments.model, arguments.batch_tokens
    by_length = draw_sorted_batches(lengths, budget, arguments.batches, arguments.seed)
    chosen = np.sort(np.concatenate(by_length))  # in file order
    difference = agreement(shape, by_length[0], objective)
    if abs(difference) > 1e-4:
        raise SystemExit(f"Hugging Face's loss is {difference:+.1e} off ours on the same weights: nothing to compare.")
    plan = PackingPlan(lengths[chosen], budget=budget, seed=arguments.seed)
    packed = [pack(objective, chosen[step]) for step in plan.epoch_steps(0)]
    features = arguments.num_features
    rows = [
        Contender("linear layers alone", "packed", packed, LinearLayers, (shape,)),
        Contender(f"protformer performer {features}", "packed", packed, build_ours, (shape, "performer", features)),
        Contender("protformer exact", "packed", packed, build_ours, (shape, "exact", features)),
    ]
    for order, steps, whole in (
        ("sorted", by_length, np.argsort(lengths, kind="stable")),
        ("file order", consecutive(chosen, lengths, budget), np.arange(len(lengths))),
    ):
        of_file = padded_rows_per_token(consecutive(whole, lengths, budget), lengths)
        batches = [pad(pack(objective, step)) for step in steps]
        attention = faster_attention(shape, arguments.precision, arguments.clock, batches)
        name = f"EsmForMaskedLM {attention}"
        rows.append(Contender(name, f"padded, {order}", batches, HuggingFace, (shape, attention), of_file))
    return rows


def measure(rows: list[Contender], arguments: argparse.Namespace, source: str) -> list[dict[str, Any]]:
    memory = [peak_extra_memory(row, arguments.precision, arguments.threads) for row in rows]
    trainers = [Trainer(row, arguments.precision) for row in rows]
    for trainer, row in zip(trainers, rows, strict=True):
        trainer.step(row.batches[0])
    seconds = [[0.0] * arguments.repeats for _ in rows]
    for repeat in range(arguments.repeats):
        for step in range(max(len(row.batches) for row in rows)):
            for place in range(len(rows)):
                index = (place + step + repeat) % len(rows)
                batches = rows[index].batches[step : step + 1]
                seconds[index][repeat] += trainers[index].seconds(batches, arguments.clock)
    packed = [batch for batch in rows[0].batches if isinstance(batch, Batch)]
    residues = sum(batch.residues for batch in packed)
    hidden, layers, heads, intermediate = SHAPES[arguments.model]
    shared = {
        "precision": arguments.precision, "model": arguments.model, "hidden_size": hidden, "num_layers": layers,
        "num_heads": heads, "intermediate_size": intermediate, "batch_tokens": arguments.batch_tokens,
        "source": source, "proteins": sum(len(batch.cu_seqlens) - 1 for batch in packed), "note": NOTE,
        "residues": residues, "repeats": arguments.repeats, "threads": arguments.threads, "clock": arguments.clock,
        "seed": arguments.seed, "transformers": import_transformers().__version__, **surroundings(),
    }  # fmt: skip
    return [
        {
            "implementation": row.name,
            "batching": row.batching,
            "parameters": parameter_count(trainer.module),
            "steps": len(row.batches),
            "rows_per_token": sum(map(rows_computed, row.batches)) / sum(map(rows_computed, rows[0].batches)),
            "rows_per_token_of_the_file": row.file_rows_per_token,
            "ms_median": 1e3 * statistics.median(times),
            "ms_min": 1e3 * min(times),
            "ms_max": 1e3 * max(times),
            "residues_per_second": residues / statistics.median(times),
            # Of the same pass: what else the machine did then, it did to both.
            "ratio_to_hf_sorted": statistics.median(ratios := paired(seconds[-2], times)),
            "ratio_to_hf_sorted_min": min(ratios),
            "ratio_to_hf_sorted_max": max(ratios),
            "ratio_to_ceiling": statistics.median(paired(seconds[0], times)),
            "peak_extra_memory_mb": extra,
            **shared,
        }
        for row, trainer, times, extra in zip(rows, trainers, seconds, memory, strict=True)
    ]


def paired(reference: list[float], times: list[float]) -> list[float]:
    return [there / here for there, here in zip(reference, times, strict=True)]


def show(rows: list[dict[str, Any]]) -> None:
    one = rows[0]
    table = Table(
        title=f"Training step, {one['model']}, {one['precision']}, {one['threads']} thread(s), {one['clock']} time"
    )
    for column in ("implementation", "batching"):
        table.add_column(column)
    for column in (
        "rows/token (file)",
        "ms (min to max)",
        "residues/s",
        "x HF sorted",
        "x ceiling",
        "extra MB",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        extra = row["peak_extra_memory_mb"]
        ratios = (row[f"ratio_to_hf_sorted{which}"] for which in ("", "_min", "_max"))
        table.add_row(
            row["implementation"],
            row["batching"],
            f"{row['rows_per_token']:.2f} ({row['rows_per_token_of_the_file']:.2f})",
            f"{row['ms_median']:,.0f} ({row['ms_min']:,.0f} to {row['ms_max']:,.0f})",
            f"{row['residues_per_second']:,.0f}",
            "{:.2f} ({:.2f} to {:.2f})".format(*ratios),
            f"{row['ratio_to_ceiling']:.2f}",
            "-" if extra is None else f"{extra:,.0f}",
        )
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    for note in (
        f"{one['proteins']} proteins, {one['residues']:,} residues of {one['source']};"
        f" {one['batch_tokens']:,} real tokens a step; {one['repeats']} interleaved passes, ms is a pass.",
        f"{one['note']}.",
        f"{one['cpu']}, {one['cores']} cores, load {one['load_average']}; torch {one['torch']},"
        f" transformers {one['transformers']}, commit {one['commit']}.",
    ):
        console.print(note, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fasta", type=Path, help="else PROTFORMER_SHARED_DATA's mlm/train, else data/train")
    parser.add_argument("--model", choices=SHAPES, default="medium")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="real tokens of one step, specials included")
    parser.add_argument("--batches", type=int, default=12, help="how many such batches of proteins")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-features", type=int, default=64, help="of the Performer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="CPU time for one thread on a busy machine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shared = os.environ.get("PROTFORMER_SHARED_DATA")
    demo = REPOSITORY / "data" / "train.fasta"
    fasta = arguments.fasta or (Path(shared) / "mlm" / "train.fasta.xz" if shared else demo)
    source = fasta.name + (" (the demo set: SIMULATED proteins)" if fasta.resolve() == demo else "")
    try:
        corpus = Corpus.from_fasta(fasta)
        objective = MaskedResidues(corpus, seed=arguments.seed)
        results = measure(contenders(arguments, corpus.lengths + 2, objective), arguments, source)
    except ProtformerError as error:
        raise SystemExit(str(error)) from error
    show(results)
    if arguments.json:
        write_text(arguments.json, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Residues per second of embedding: ours (Performer, exact) beside fair-esm's and Hugging Face's way, in one run.

    python benchmarks/embedding.py --fasta proteins.fasta.gz --long titin.fasta --precision bf16 --json rows.json

A pass is: sequences in, one mean vector each out, specials left out. All models have the same shape and random weights
(ours and Hugging Face's the same ones, and their vectors agree before anything is timed). What differs is what a user
of each would do: ours packs windows of the input; fair-esm's `FastaBatchedDataset` sorts by length and pads; Hugging
Face's tokenised sequences are padded, sorted by length or in file order. The budget of tokens of a batch is the same,
padding counted. The contenders take turns, batch list by batch list, so that a busy machine slows all of them. The
ceiling is the linear layers alone, on the same tokens, packed.

The proteins are batches drawn from strata of the whole file sorted by length (see `training_step.py`): a small sorted
sample would pad more than the file does. `--long` times one protein alone, with the Performer and with exact attention.

Needs the extra `peers` and `pip install fair-esm`. The CPU only.
"""

import argparse
import importlib
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import SHAPES, consecutive, draw_sorted_batches, import_transformers, our_model
from rich.console import Console
from rich.table import Table
from surroundings import surroundings
from torch import Tensor, nn

from protformer.data import alphabet
from protformer.data.batch import segment
from protformer.data.corpus import Corpus
from protformer.embedding import Embedder, Options
from protformer.embedding.windows import SPECIALS
from protformer.files import write_text
from protformer.model.esm2 import to_hugging_face

Sequences = Sequence[np.ndarray]
Vectors = list[np.ndarray]
Run = Callable[[Sequences], Vectors]


def ours(shape: str, attention: str, precision: str, budget: int) -> Run:
    hidden, layers, _, _ = SHAPES[shape]
    options = Options(batch_tokens=budget, precision="bf16" if precision == "bf16" else "fp32")
    outputs = options.outputs(hidden_size=hidden, num_layers=layers)
    embedder = Embedder(our_model(shape, attention).eval(), outputs, batch_tokens=budget, precision=options.precision)

    def run(sequences: Sequences) -> Vectors:
        return [made["mean"] for made in embedder(sequences) if not isinstance(made, str)]

    return run


def padded_batches(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Runs of `order` whose rectangles have at most `budget` tokens."""
    batches: list[list[int]] = []
    longest = 0
    for index in order.tolist():
        longest = max(longest, int(lengths[index])) if batches else int(lengths[index])
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = int(lengths[index])
        batches[-1].append(index)
    return [np.array(batch) for batch in batches]


def padded(forward: Callable[[Tensor, Tensor], Tensor], precision: str, budget: int, *, by_length: bool) -> Run:
    """Rectangles of tokens through `forward(ids, mask)`, and the mean over the residues of each row."""

    @torch.inference_mode()
    def run(sequences: Sequences) -> Vectors:
        lengths = np.array([len(x) + SPECIALS for x in sequences])
        order = np.argsort(-lengths, kind="stable") if by_length else np.arange(len(lengths))
        found: dict[int, np.ndarray] = {}
        for batch in padded_batches(order, lengths, budget):
            rows = [torch.from_numpy(segment(sequences[i])) for i in batch]
            ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=alphabet.PAD)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                hidden = forward(ids, (ids != alphabet.PAD).long())
            for i, row, states in zip(batch.tolist(), rows, hidden.float(), strict=True):
                found[i] = states[1 : len(row) - 1].mean(0).numpy()
        return [found[i] for i in range(len(sequences))]

    return run


def hugging_face(shape: str, precision: str, budget: int, *, by_length: bool) -> Run:
    hidden, layers, heads, intermediate = SHAPES[shape]
    transformers = import_transformers()
    config = transformers.EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=alphabet.PAD, hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=intermediate, position_embedding_type="rotary",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, token_dropout=False, layer_norm_eps=1e-5,
        emb_layer_norm_before=False, max_position_embeddings=1026, attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.EsmForMaskedLM(config)
    model.load_state_dict(to_hugging_face(our_model(shape, "exact").state_dict()), strict=False)
    trunk = model.esm.eval()
    return padded(
        lambda ids, mask: trunk(input_ids=ids, attention_mask=mask).last_hidden_state,
        precision, budget, by_length=by_length,
    )  # fmt: skip


def fair_esm(shape: str, precision: str, budget: int) -> Run:
    """`esm.model.esm2.ESM2` without its contact head, as `extract.py` runs it, and its dataset's batches: by length."""
    esm = importlib.import_module("esm")
    model_class = importlib.import_module("esm.model.esm2").ESM2
    hidden, layers, heads, _ = SHAPES[shape]
    theirs = esm.Alphabet.from_architecture("ESM-1b")
    model = model_class(
        num_layers=layers, embed_dim=hidden, attention_heads=heads, alphabet=theirs, token_dropout=False
    ).eval()
    convert = theirs.get_batch_converter()

    @torch.inference_mode()
    def run(sequences: Sequences) -> Vectors:
        texts = [alphabet.decode(x) for x in sequences]
        dataset = esm.FastaBatchedDataset([str(i) for i in range(len(texts))], texts)
        found: dict[int, np.ndarray] = {}
        for batch in dataset.get_batch_indices(budget, extra_toks_per_seq=1):
            labels, strings, tokens = convert([dataset[i] for i in batch])
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                states = model(tokens, repr_layers=[layers])["representations"][layers].float()
            for label, text, rows in zip(labels, strings, states, strict=True):
                found[int(label)] = rows[1 : len(text) + 1].mean(0).numpy()
        return [found[i] for i in range(len(sequences))]

    return run


def linear_layers(shape: str, precision: str, budget: int) -> Run:
    """The ceiling: q, k, v, out and feed-forward of every layer, packed."""
    hidden, layers, _, intermediate = SHAPES[shape]
    embedding = nn.Embedding(33, hidden)
    mix = [[nn.Linear(hidden, hidden) for _ in range(4)] for _ in range(layers)]
    expand = [nn.Linear(hidden, intermediate) for _ in range(layers)]
    contract = [nn.Linear(intermediate, hidden) for _ in range(layers)]

    @torch.inference_mode()
    def run(sequences: Sequences) -> Vectors:
        lengths = np.array([len(x) + SPECIALS for x in sequences])
        found: Vectors = []
        for batch in consecutive(np.argsort(-lengths, kind="stable"), lengths, budget):
            x = embedding(torch.from_numpy(np.concatenate([segment(sequences[i]) for i in batch])))
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                for (query, key, value, out), wide, narrow in zip(mix, expand, contract, strict=True):
                    x = narrow(wide(out(query(x) + key(x) + value(x))))
            found.append(x.float().mean(0).numpy())
        return found

    return run


def contenders(shape: str, precision: str, budget: int) -> dict[str, tuple[Any, ...]]:
    """Builders and their arguments, so that another process can make one."""
    return {
        "linear layers alone, packed": (linear_layers, shape, precision, budget),
        "protformer Performer, packed": (ours, shape, "performer", precision, budget),
        "protformer exact, packed": (ours, shape, "exact", precision, budget),
        "EsmModel (sdpa), padded, sorted": (_hf_sorted, shape, precision, budget),
        "EsmModel (sdpa), padded, file order": (_hf_file_order, shape, precision, budget),
        "fair-esm ESM2, padded, sorted": (fair_esm, shape, precision, budget),
    }


def _hf_sorted(shape: str, precision: str, budget: int) -> Run:
    return hugging_face(shape, precision, budget, by_length=True)


def _hf_file_order(shape: str, precision: str, budget: int) -> Run:
    return hugging_face(shape, precision, budget, by_length=False)


def peak_extra_mb(builder: tuple[Any, ...], sequences: Sequences, threads: int) -> float:
    """MB that a pass adds to a new process that has embedded one short protein."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_extra_mb, (builder, sequences, threads))


def _peak_extra_mb(builder: tuple[Any, ...], sequences: Sequences, threads: int) -> float:
    torch.set_num_threads(threads)
    run: Run = builder[0](*builder[1:])
    run([min(sequences, key=len)])
    before = _peak_resident_mb()
    run(sequences)
    return _peak_resident_mb() - before


def _peak_resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fasta", type=Path, required=True)
    parser.add_argument("--long", type=Path, help="FASTA of one long protein")
    parser.add_argument("--model", choices=sorted(SHAPES), default="esm2_8m")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--budget", type=int, default=4096, help="tokens of a batch, padding counted")
    parser.add_argument("--batches", type=int, default=12, help="strata of the file, one batch each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    now = {"wall": time.perf_counter, "cpu": time.process_time}[args.clock]
    torch.set_num_threads(args.threads)

    corpus = Corpus.from_fasta(args.fasta)
    chosen = draw_sorted_batches(corpus.lengths + SPECIALS, args.budget, args.batches, seed=0)
    order = np.random.default_rng(0).permutation(np.concatenate(chosen))  # the file's own order is arbitrary
    sequences = [np.array(corpus.sequence(int(i))) for i in order]
    residues = sum(map(len, sequences))
    built = contenders(args.model, args.precision, args.budget)
    runs = {name: builder[0](*builder[1:]) for name, builder in built.items()}
    short = sorted(sequences, key=len)[:8]
    ours_exact, theirs = runs["protformer exact, packed"](short), runs["EsmModel (sdpa), padded, sorted"](short)
    disagreement = max(float(np.abs(a - b).max()) for a, b in zip(ours_exact, theirs, strict=True))

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(sequences[:4])
    for _ in range(args.repeats):
        for name, run in runs.items():
            start = now()
            run(sequences)
            seconds[name].append(now() - start)
    peer = statistics.median(seconds["EsmModel (sdpa), padded, sorted"])
    about = surroundings() | {"threads": args.threads, "clock": args.clock}
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times)
        rows.append(
            {
                "part": "proteins", "implementation": name, "model": args.model, "precision": args.precision,
                "proteins": len(sequences), "residues": residues, "budget": args.budget, "seconds": times,
                "residues_per_second": residues / median, "times_sorted_peer": peer / median,
                "peak_extra_mb": peak_extra_mb(built[name], sequences, args.threads), "surroundings": about,
                "disagreement": disagreement,
            }
        )  # fmt: skip
    if args.long:
        titin = [np.array(Corpus.from_fasta(args.long).sequence(0))]
        for name in ("protformer Performer, packed", "protformer exact, packed"):
            times = []
            for _ in range(args.repeats if "Performer" in name else 1):
                start = now()
                runs[name](titin)
                times.append(now() - start)
            rows.append(
                {
                    "part": "long", "implementation": name, "model": args.model, "precision": args.precision,
                    "residues": len(titin[0]), "seconds": times,
                    "peak_extra_mb": peak_extra_mb(built[name], titin, args.threads), "surroundings": about,
                }
            )  # fmt: skip
    show(rows, disagreement)
    if args.json:
        write_text(args.json, json.dumps(rows, indent=1) + "\n")


def show(rows: list[dict[str, Any]], disagreement: float) -> None:
    table = Table(title=f"Embedding; our exact attention and EsmModel differ by at most {disagreement:.1e}")
    for name in ("implementation", "residues", "s a pass (min to max)", "residues/s", "x EsmModel sorted", "extra MB"):
        table.add_column(name, justify="left" if name == "implementation" else "right")
    for row in rows:
        times = row["seconds"]
        spread = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        rate, ratio = row["residues"] / statistics.median(times), row.get("times_sorted_peer")
        told = "" if ratio is None else f"{ratio:.2f}"
        table.add_row(
            row["implementation"], f"{row['residues']:,}", spread, f"{rate:,.0f}", told, f"{row['peak_extra_mb']:,.0f}"
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

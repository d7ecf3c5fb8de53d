"""A model and sequences to vectors: packed by a budget of tokens, returned in the order of the input.

    corpus    a  bb  ccc | d  ee  f |         windows of neighbours: what is held before it can be written in order
    batches   [ccc bb] [a] | [ee d] [f]       longest first within a window, filled to the budget

Nothing is padded and nothing truncated: a sequence longer than the budget is a batch by itself. The law: a protein's
vectors are the same alone, packed with others and in any order, within 1e-5 in fp32.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from protformer.data.batch import segment
from protformer.data.corpus import Corpus
from protformer.errors import ProtformerError
from protformer.model import Pooling, ProteinModel

# Tokens of a batch. A GPU wants many; on a CPU activations should stay in the caches: at ESM-2 8M's size one core gave
# 4,500 residues per second in fp32 and 6,900 in bf16 with 16,384 tokens, 4,800 and 8,600 with 4,096.
BATCH_TOKENS = {"cuda": 16_384, "cpu": 4_096}
SPECIALS = 2  # <cls> and <eos> of each segment
# A window is this many batches: enough to sort by length in. Matrices per residue are large, so their window is also
# held to this many bytes (or to one batch, where that is more).
WINDOW_BATCHES = 32
WINDOW_BYTES = 256 << 20

Precision = Literal["fp32", "bf16"]


def choose_device(name: str = "auto") -> torch.device:
    """`cpu`, `cuda`, or `auto`: the GPU where there is one. ProtformerError for `cuda` without one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ProtformerError(f"device {name} was asked for, but PyTorch sees no GPU here: use cpu or auto.")
    return torch.device(name)


def embed_corpus(
    model: ProteinModel,
    corpus: Corpus,
    *,
    per_residue: bool = False,
    batch_tokens: int | None = None,
    precision: Precision = "fp32",
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[Float32[np.ndarray, "..."]]:
    """One array for each sequence, in the order of the corpus: the last layer's hidden states, after the final norm.

    The model computes where its parameters are, and must be in evaluation mode.

    Args:
        per_residue: `[residues, hidden]` for each sequence instead of their mean, `[hidden]`. Specials are in neither.
        batch_tokens: budget of a batch, `<cls>` and `<eos>` counted; by default what suits the device.
        precision: of the arithmetic; "bf16" is autocast, with norms, residual stream and pooling in fp32.
        on_batch: called after each batch with the residues that it held.

    Raises:
        ValueError: the model is in training mode, or the budget is not positive.
        ProtformerError: a batch did not fit into memory.
    """
    if model.training:
        raise ValueError("the model is in training mode, where dropout makes vectors random: call model.eval() first")
    if batch_tokens is None:
        batch_tokens = BATCH_TOKENS["cpu" if model.trunk.embedding.weight.device.type == "cpu" else "cuda"]
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, not {batch_tokens}")
    return _in_order(model, corpus, per_residue, batch_tokens, precision, on_batch)


def _in_order(
    model: ProteinModel,
    corpus: Corpus,
    per_residue: bool,
    batch_tokens: int,
    precision: Precision,
    on_batch: Callable[[int], None] | None,
) -> Iterator[Float32[np.ndarray, "..."]]:
    lengths = corpus.lengths + SPECIALS
    window_tokens = WINDOW_BATCHES * batch_tokens
    if per_residue:
        window_tokens = min(window_tokens, WINDOW_BYTES // (4 * model.trunk.encoder.hidden_size))
    for window in plan_windows(lengths, max(window_tokens, batch_tokens)):
        done: dict[int, np.ndarray] = {}
        for places in plan_batches(lengths[window.start : window.stop], batch_tokens):
            batch = [window[place] for place in places]
            sequences = [corpus.sequence(index) for index in batch]
            done.update(zip(batch, embed_batch(model, sequences, per_residue, precision), strict=True))
            if on_batch is not None:
                on_batch(sum(map(len, sequences)))
        for index in window:
            yield done.pop(index)


def plan_windows(lengths: Int64[np.ndarray, " n"], window_tokens: int) -> Iterator[range]:
    """Runs of neighbours of at most `window_tokens` tokens each; a longer sequence is a window by itself."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + window_tokens, side="right")), start + 1)
        yield range(start, stop)
        start = stop


def plan_batches(lengths: Int64[np.ndarray, " n"], batch_tokens: int) -> list[list[int]]:
    """Indices of each batch, longest first, so that neighbours in a batch are alike and memory shows its need early."""
    batches: list[list[int]] = []
    room = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        if not batches or length > room:
            batches.append([])
            room = batch_tokens
        batches[-1].append(index)
        room -= length
    return batches


@torch.inference_mode()
def embed_batch(
    model: ProteinModel, sequences: list[UInt8[np.ndarray, "_"]], per_residue: bool, precision: Precision
) -> list[Float32[np.ndarray, "..."]]:
    """The arrays of one pack. The one place where the model runs."""
    device = model.trunk.embedding.weight.device
    segments = [segment(residues) for residues in sequences]
    offsets = np.cumsum([0, *map(len, segments)])
    tokens = torch.from_numpy(np.concatenate(segments)).to(device)
    cu_seqlens = torch.from_numpy(offsets.astype(np.int32)).to(device)
    half = torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
    try:
        with half:
            hidden = model(tokens, cu_seqlens)
        hidden = hidden.float()
        if not per_residue:
            return list(Pooling(hidden_size=hidden.shape[1], pooling="mean")(hidden, cu_seqlens).cpu().numpy())
        rows = hidden.cpu().numpy()
    except torch.OutOfMemoryError as error:
        longest = max(map(len, sequences))
        raise ProtformerError(
            f"A batch of {offsets[-1]:,} tokens ({len(sequences):,} sequences, the longest of {longest:,} residues) "
            f"does not fit into the memory of {device}: use a smaller --batch-tokens, or --device cpu."
        ) from error
    return [rows[start + 1 : stop - 1] for start, stop in pairwise(offsets)]

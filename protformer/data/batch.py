"""The packed batch: sequences end to end, with the targets that the loss reads.

    tokens      <cls> M K V <eos> <cls> G A <eos>        [total = 9]
    cu_seqlens  0                 5               9      [segments + 1]

A segment is `<cls>` residues `<eos>`. There is no padding, so there is no padding mask.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from protformer.data.alphabet import CLS, EOS


class Batch(NamedTuple):
    """What one model step reads. A NamedTuple: Lightning moves those between devices and refuses frozen dataclasses."""

    tokens: Int64[Tensor, "total"]
    cu_seqlens: Int32[Tensor, "segments_plus_one"]
    rows: Int64[Tensor, "targets"]
    """Which row of the outputs each target belongs to: a row of the pack; a segment for one target a sequence."""
    targets: Tensor
    """`[targets]` token ids, classes or numbers; `[targets, classes]` for several labels at once."""
    headline: Bool[Tensor, "targets"]
    """Targets that the headline figures count: shown as `<mask>`; a residue and not `<eos>`; all of them elsewhere."""
    records: Int64[Tensor, "targets"]
    """The record that each target belongs to, for figures per protein."""
    step_weight: Float[Tensor, ""]
    """Sum of the targets' weights over the whole optimiser step: all ranks and micro-batches."""

    @property
    def residues(self) -> int:
        """Rows of the pack that are no specials: also where a segment holds several proteins."""
        return int(((self.tokens != CLS) & (self.tokens != EOS)).sum())


class Example(NamedTuple):
    """One record as a task shows it: its segment, and targets by row of the segment (0 is `<cls>`)."""

    tokens: np.ndarray  # int64 [residues + 2]
    rows: np.ndarray  # int64 [targets]
    targets: np.ndarray  # [targets] or [targets, classes]
    headline: np.ndarray  # bool [targets]


def segment(residues: np.ndarray) -> np.ndarray:
    """`<cls>` residues `<eos>`, int64."""
    tokens = np.empty(len(residues) + 2, np.int64)
    tokens[0], tokens[-1] = CLS, EOS
    tokens[1:-1] = residues
    return tokens


def collate(
    examples: Sequence[Example], records: Sequence[int], step_weight: float, *, per_sequence: bool, empty: Example
) -> Batch:
    """Pack examples. With `per_sequence` a target's row is its segment, else its row of the pack.

    No examples (a rank that an optimiser step leaves without a sequence) give one segment that no loss reads: `empty`,
    of which only the types of its targets matter.
    """
    shown = list(examples) or [empty]
    lengths = [len(example.tokens) for example in shown]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = [
        np.full(len(example.rows), index, np.int64) if per_sequence else example.rows + offsets[index]
        for index, example in enumerate(shown)
    ]
    owners = [np.full(len(e.rows), r, np.int64) for e, r in zip(shown, list(records) or [-1], strict=True)]
    return Batch(
        tokens=torch.from_numpy(np.concatenate([example.tokens for example in shown])),
        cu_seqlens=torch.from_numpy(offsets.astype(np.int32)),
        rows=torch.from_numpy(np.concatenate(rows)),
        targets=torch.from_numpy(np.concatenate([example.targets for example in shown])),
        headline=torch.from_numpy(np.concatenate([example.headline for example in shown])),
        records=torch.from_numpy(np.concatenate(owners)),
        step_weight=torch.tensor(step_weight, dtype=torch.float32),
    )


def concatenated(batch: Batch, tokens: int) -> Batch:
    """The same rows in fewer segments: neighbours are joined while a segment has at most `tokens` of them.

        <cls> M K V <eos> <cls> G A <eos> <cls> L <eos>      cu_seqlens 0 5 9 12, at most 9: 0 9 12

    Each protein keeps its `<cls>` and `<eos>`, attention and positions run over the whole segment, and a target still
    belongs to its protein. Nothing is cut or dropped: the last segment is shorter, and a protein of more than `tokens`
    stays alone.
    """
    ends = batch.cu_seqlens.tolist()
    kept = [0]
    for before, end in pairwise(ends[1:]):
        if end - kept[-1] > tokens:
            kept.append(before)
    offsets = torch.tensor([*kept, ends[-1]], dtype=batch.cu_seqlens.dtype)
    return batch._replace(cu_seqlens=offsets)

"""The model on sequences: packed by a budget of tokens, nothing padded, nothing cut. The one place where it runs.

The law: a protein's vectors are the same alone, packed with others and in any order, within 1e-5 in fp32; and the same
bytes wherever the same window of the input is computed again, on the same machine.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from protformer.data.batch import segment
from protformer.embedding.options import Output
from protformer.embedding.windows import SPECIALS, plan_batches
from protformer.errors import ProtformerError
from protformer.model import LanguageModelHead, ProteinModel
from protformer.model.inference import Precision, arithmetic, attempt, within_memory

log = logging.getLogger(__name__)

NOT_FINITE = "the model gave numbers that are not finite"
Vectors = dict[str, Float[np.ndarray, "..."]]  # by the outputs' names
Made = Vectors | str  # or why there are none
Residues = UInt8[np.ndarray, "_"]


class Piece(NamedTuple):
    """Residues `start` to `stop` of a sequence; its rows from `first` to `last` are kept, counted in the sequence."""

    sequence: int
    start: int
    stop: int
    first: int
    last: int


class Packed(NamedTuple):
    """A segment of a batch, and which of its residues' rows are kept."""

    tokens: np.ndarray  # specials included
    first: int
    last: int

    @classmethod
    def of(cls, sequence: Residues, piece: Piece) -> "Packed":
        start = piece.start
        return cls(segment(sequence[start : piece.stop]), piece.first - start, piece.last - start)


class Embedder:
    """A model in evaluation mode, and what is wanted of it.

    Args:
        outputs: of `Options.outputs`.
        batch_tokens: budget of a batch, specials counted.
        precision, compile: as in `Options`.
        max_length, overlap: longer sequences are computed in windows of `max_length` residues that overlap; None:
            whole.
    """

    def __init__(
        self,
        model: ProteinModel,
        outputs: Sequence[Output],
        *,
        batch_tokens: int,
        precision: Precision = "fp32",
        compile: bool = False,
        max_length: int | None = None,
        overlap: int = 0,
    ) -> None:
        if model.training:
            raise ValueError("the model is in training mode, where dropout makes vectors random: call model.eval()")
        if any(output.kind == "logits" for output in outputs) and not isinstance(model.head, LanguageModelHead):
            raise ProtformerError(
                "--logits are a language model's, and this model has another head: leave them out, or take a model "
                "that was trained on masked or next residues."
            )
        self.outputs = tuple(outputs)
        self.batch_tokens = batch_tokens
        self.precision: Precision = precision
        self.max_length = max_length
        self.overlap = overlap
        self._layers = sorted({output.layer for output in outputs})
        self._model = model
        self._states = torch.compile(model.trunk.states, dynamic=True) if compile else model.trunk.states
        self._on_cpu: ProteinModel | None = None  # made when a record does not fit into the device's memory
        self.retried = 0  # batches that did not fit and were halved

    @property
    def device(self) -> torch.device:
        return self._model.trunk.embedding.weight.device

    def __call__(self, sequences: Sequence[Residues], on_batch: Callable[[int], None] | None = None) -> list[Made]:
        """For each sequence its vectors by output, `[width]` or `[residues, width]` in fp32; or why there are none.

        `on_batch` is called with the residues of each batch.
        """
        pieces = [piece for index, x in enumerate(sequences) for piece in self._pieces(index, len(x))]
        found: list[list[tuple[Piece, Made]]] = [[] for _ in sequences]
        lengths = np.array([piece.stop - piece.start + SPECIALS for piece in pieces], np.int64)
        for places in plan_batches(lengths, self.batch_tokens):
            batch = [pieces[place] for place in places]
            made = self._fitting([Packed.of(sequences[piece.sequence], piece) for piece in batch])
            for piece, vectors in zip(batch, made, strict=True):
                found[piece.sequence].append((piece, vectors))
            if on_batch is not None:
                on_batch(sum(piece.last - piece.first for piece in batch))
        return [self._whole(parts) for parts in found]

    def _pieces(self, index: int, length: int) -> list[Piece]:
        """The whole sequence, or windows of even steps; of an overlap each window keeps the half that is its own."""
        longest = self.max_length
        if longest is None or length <= longest:
            return [Piece(index, 0, length, 0, length)]
        count = -(-(length - self.overlap) // (longest - self.overlap))
        starts = [round(i * (length - longest) / (count - 1)) for i in range(count)]
        seams = [0, *((before + longest + after) // 2 for before, after in pairwise(starts)), length]
        return [
            Piece(index, start, start + longest, *ends) for start, ends in zip(starts, pairwise(seams), strict=True)
        ]

    def _fitting(self, segments: list[Packed]) -> list[Made]:
        """Out of memory: halves, down to one record, and that one on the CPU."""

        def retried() -> None:
            self.retried += 1

        return within_memory(
            self.run, segments, device=self.device, alone=self._alone, refused=self._too_long, on_retry=retried
        )

    def _too_long(self, one: Packed) -> Made | None:
        longest = self._model.trunk.encoder.longest
        if longest is None or len(one.tokens) <= longest:
            return None
        return (
            f"{len(one.tokens) - SPECIALS:,} residues, and this model's attention takes at most"
            f" {longest - SPECIALS:,}: --on-long window --max-length {longest - SPECIALS} computes windows"
        )

    def _alone(self, one: Packed) -> Made:
        residues = len(one.tokens) - SPECIALS
        if self.device.type == "cpu":
            return f"{residues:,} residues do not fit into memory"
        log.warning("%s residues do not fit into the memory of %s: on the CPU", f"{residues:,}", self.device)
        made = attempt(self._cpu().run, [one])
        if made is None:
            return f"{residues:,} residues fit neither into the memory of {self.device} nor into the CPU's"
        return made[0]

    def _cpu(self) -> "Embedder":
        if self._on_cpu is None:
            self._on_cpu = copy.deepcopy(self._model).cpu()
        return Embedder(self._on_cpu, self.outputs, batch_tokens=self.batch_tokens, precision=self.precision)

    @torch.inference_mode()
    def run(self, segments: Sequence[Packed]) -> list[Vectors]:
        """The vectors of one pack of segments, from the rows that are kept of each."""
        offsets = np.cumsum([0, *(len(x.tokens) for x in segments)])
        tokens = torch.from_numpy(np.concatenate([x.tokens for x in segments])).to(self.device)
        cu_seqlens = torch.from_numpy(offsets.astype(np.int32)).to(self.device)
        with arithmetic(self.precision, self.device):
            states = dict(zip(self._layers, self._states(tokens, cu_seqlens, self._layers), strict=True))
            rows: dict[str, Tensor] = {}
            for output in self.outputs:
                hidden = states[output.layer]
                if output.kind == "logits":
                    hidden = self._model.read(hidden, cu_seqlens)
                rows[output.name] = hidden.float()
        made: list[Vectors] = [{} for _ in segments]
        starts = offsets[:-1].tolist()
        # (<cls> is a segment's first row)
        kept = [slice(at + 1 + x.first, at + 1 + x.last) for at, x in zip(starts, segments, strict=True)]
        for output in self.outputs:
            x = rows[output.name]
            if output.per_residue:
                numbers = x.cpu().numpy()
                parts = [numbers[part] for part in kept]
            elif output.kind == "cls":
                parts = x[starts].cpu().numpy()
            else:  # (one after the other: sums over the pack would depend, in their last bits, on what else is in it)
                pooled = [x[part].mean(dim=0) if output.kind == "mean" else x[part].amax(dim=0) for part in kept]
                parts = torch.stack(pooled).cpu().numpy()
            for vectors, part in zip(made, parts, strict=True):
                vectors[output.name] = part
        return made

    def _whole(self, parts: list[tuple[Piece, Made]]) -> Made:
        """The vectors of a sequence from those of its pieces."""
        parts.sort(key=lambda part: part[0].start)
        for _, vectors in parts:
            if isinstance(vectors, str):
                return vectors
        pieces = [(piece, vectors) for piece, vectors in parts if not isinstance(vectors, str)]
        if len(pieces) == 1:
            whole = pieces[0][1]
        else:
            whole = {output.name: _stitched(output, pieces) for output in self.outputs}
        return whole if all(np.isfinite(x).all() for x in whole.values()) else NOT_FINITE


def _stitched(output: Output, pieces: list[tuple[Piece, Vectors]]) -> Float[np.ndarray, "..."]:
    """Of windows: the rows that each keeps in turn; their mean or greatest; of `<cls>`, which each has, the mean."""
    vectors = [part[output.name] for _, part in pieces]
    if output.per_residue:
        return np.concatenate(vectors)
    if output.kind == "max":
        return np.max(vectors, axis=0)
    weights = [piece.last - piece.first if output.kind == "mean" else 1 for piece, _ in pieces]
    return np.average(vectors, axis=0, weights=weights).astype(np.float32)

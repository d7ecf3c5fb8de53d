"""Reformer attention (arXiv 2001.04451): a token attends to those that a locality-sensitive hash puts beside it."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor
from torch.nn.functional import rms_norm

from protformer.attention.bands import (
    UNSEEN,
    Permutations,
    accumulator_type,
    band_logits,
    distances,
    of_neighbours,
    rows_of,
    segment_numbers,
    softmax_part,
    with_unused,
)
from protformer.attention.base import Attention
from protformer.features.projections import gaussian, projection_generator

# Logit of a token with itself: chosen where there is nothing else, and not otherwise (the paper subtracts 10^5).
ITSELF = -1e20
# Directions of one rotation, hence half of the buckets that one rotation tells apart.
DIRECTIONS = 64


class ReformerAttention(Attention):
    """softmax over the tokens that share a bucket in any of `rounds` hashes: about linear in a segment's length.

    Queries and keys are shared: token j's key is its query scaled to norm sqrt(dim), so that the logit is
    q_i . q_j / |q_j| (the authors' code; the paper's "shared-QK"). The query arrives with its rotary embedding, which
    is hashed with it. The `key` that is given is not used, so the block's key weights are dead: their gradients are
    zeros (and not missing, so that distributed training needs no `find_unused_parameters`).

    - Hash: the paper's argmax of [xR, -xR], a rotation R for each round and head. A segment of n tokens has one bucket
      if n <= bucket_size, else 2 ceil(n / bucket_size): the paper's m = 2 l / n_buckets, a bucket half a chunk on
      average. Beyond 128 buckets, two rotations make a number of two digits (as the authors' code factorises).
    - Who is seen: in each round, the tokens of the own bucket at most `bucket_size` places away in it, found in chunks
      of `bucket_size` with the chunk before, and with the one after where attention is two-way (the paper has causal
      attention alone, and its look-back would make who sees whom depend on who comes first). The paper lets a chunk see
      all of the chunk before, so that the reach depends on where chunks begin, which tokens of other sequences of the
      pack, and of the future, would decide. Ours depends on the segment alone, and if causal on the past alone, but for
      the number of buckets: that goes by the segment's length.
    - Rounds: softmax over the union of what they see. A pair that N rounds see counts 1/N in each (the paper's N_ij).
    - A token does not attend to itself, unless it sees nothing else in any round.

    With one bucket (n <= bucket_size) this is softmax attention with shared queries and keys and that last rule,
    whatever the number of rounds.

    Nothing random happens in `forward`: the rotations are a buffer, drawn at construction and by `redraw_`, for each
    layer its own, as the projections of a Performer are. `redraw=every redraw.every=1` draws them at every step, as the
    paper does.

    Memory: of the order of total x rounds x heads x 3 bucket_size numbers (2 if causal).
    """

    rotations: Tensor

    def __init__(
        self, *, num_heads: int, head_dim: int, bucket_size: int = 64, rounds: int = 4, causal: bool = False
    ) -> None:
        super().__init__()
        if bucket_size < 1 or rounds < 1:
            raise ValueError(
                "Reformer attention needs bucket_size >= 1 and rounds >= 1,"
                f" not bucket_size={bucket_size} and rounds={rounds}"
            )
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.bucket_size = bucket_size
        self.rounds = rounds
        self.causal = causal
        self.register_buffer("rotations", torch.zeros(2, rounds, num_heads, head_dim, DIRECTIONS))
        self.redraw_(projection_generator(0, 0, 0))

    def redraw_(self, generator: torch.Generator) -> None:
        """Draw the rotations anew: Gaussian entries, which is what the paper calls a random rotation."""
        drawn = gaussian(self.rotations[..., 0].numel(), DIRECTIONS, generator)
        self.rotations.copy_(drawn.view(self.rotations.shape))

    def forward(
        self,
        query: Float[Tensor, "total heads dim"],
        key: Float[Tensor, "total heads dim"],
        value: Float[Tensor, "total heads dim"],
        cu_seqlens: Int32[Tensor, "segments_plus_one"],
    ) -> Float[Tensor, "total heads dim"]:
        if query.shape[0] == 0:
            return with_unused(value, query, key)
        with torch.autocast(query.device.type, enabled=False):  # logits and hashes stay in fp32
            out = self._attend(query, value, cu_seqlens)  # pyright: ignore[reportCallIssue]
        return with_unused(out, key)

    @torch.compiler.disable  # it reads the offsets, which a compiler cannot trace
    def _attend(self, query: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
        total, heads, dim = query.shape
        size = min(self.bucket_size, total)
        wide = accumulator_type(query)
        with torch.no_grad():
            buckets = self.buckets(query, cu_seqlens)
            # rows sorted by bucket, then by position; a place tells bucket and rank in it (see `bands`)
            order = buckets.argsort(dim=-1, stable=True)
            by_bucket = torch.arange(total, device=query.device) + self.bucket_size * buckets.gather(-1, order)
            places = torch.empty_like(by_bucket).scatter_(-1, order, by_bucket).to(torch.int32)
            sorted_rows = Permutations.of(order)
            bias = self._bias(places, order, size, wide)
        rounds = len(buckets)

        def sort(x: Tensor) -> Tensor:
            """`[total, heads, dim] -> [rounds, heads, total, dim]`"""
            return sorted_rows.sort(x.transpose(0, 1).reshape(-1, dim)).view(rounds, heads, total, dim)

        shared = sort(query.to(wide))
        logits = band_logits(shared, rms_norm(shared, (dim,), eps=1e-12), size, self.causal)
        part = rows_of(softmax_part(logits.add_(bias), of_neighbours(sort(value), size, self.causal)), total)
        both = torch.cat(part, dim=-1).reshape(-1, dim + 1)
        unsorted = sorted_rows.unsort(both).view(rounds, heads, total, dim + 1)
        weights = unsorted[..., dim:].softmax(0)
        return (weights * unsorted[..., :dim]).sum(0).transpose(0, 1).to(value.dtype)

    def _bias(self, places: Tensor, order: Tensor, size: int, dtype: torch.dtype) -> Tensor:
        """What is added to the logits of each round: `[rounds, heads, chunks, size, keys]`.

        Minus the log of how many rounds see a pair; `ITSELF` for a token and itself; `UNSEEN` for what is not seen.

        On a CPU one head at a time, in place and in integers: what is compared stays in the cache, and a sum of sign
        bits takes a third of the time of comparisons and masks (this was two thirds of the whole forward).
        """
        rounds, heads, total = places.shape
        together = 1 if places.device.type == "cpu" else heads
        chunks = -(-total // size)
        keys = size if chunks == 1 else size * (2 if self.causal else 3)
        bias = torch.empty(rounds, heads, chunks, size, keys, dtype=dtype, device=places.device)
        for own in range(rounds):
            for first in range(0, heads, together):
                some = slice(first, first + together)
                self._write_bias(bias[own, some], places[:, some], order[own, some], own)
        return bias

    def _write_bias(self, bias: Tensor, places: Tensor, order: Tensor, own: int) -> None:
        """The bias of one round, from places `[rounds, heads, total]` and its order `[heads, total]`."""
        _, chunks, size, _ = bias.shape
        seen_by = torch.ones(bias.shape, dtype=places.dtype, device=places.device)
        apart = torch.empty_like(seen_by)
        for other in set(range(len(places))) - {own}:
            # (buckets are in order of position: a token on one side in this round is on no other in another)
            distances(places[other].gather(-1, order), size, self.causal, out=apart).abs_()
            # all bits are set, which is -1, where they are at most bucket_size apart, and none elsewhere
            seen_by.sub_(apart.sub_(self.bucket_size + 1).bitwise_right_shift_(31))
        bias.copy_(seen_by).log_().neg_()
        distances(places[own].gather(-1, order), size, self.causal, out=apart)
        bias.masked_fill_(apart > self.bucket_size, UNSEEN)
        if self.causal:
            bias.masked_fill_(apart < 0, UNSEEN)
        bias.diagonal(offset=0 if chunks == 1 else size, dim1=-2, dim2=-1).fill_(ITSELF)

    @torch.no_grad()
    def buckets(
        self, query: Float[Tensor, "total heads dim"], cu_seqlens: Int32[Tensor, "segments_plus_one"]
    ) -> Int64[Tensor, "rounds heads total"]:
        """The bucket of each token in each round, counted through the pack: buckets of two segments are two buckets.

        Where no segment has more than one, one round says all.
        """
        segments, _ = segment_numbers(cu_seqlens)
        lengths = cu_seqlens.diff().long()
        low, high = self.digits(lengths)
        first = (low * high).cumsum(0) - low * high
        if int(low.max()) == 1:
            return first[segments].expand(1, query.shape[1], -1).contiguous()
        x = query.transpose(0, 1).to(accumulator_type(query))
        rotations = self.rotations.to(x.dtype)
        hashes = []
        for round_ in range(self.rounds):
            digits = _hash(x, rotations[0, round_], low[segments])
            if int(high.max()) > 1:
                digits = digits + low[segments] * _hash(x, rotations[1, round_], high[segments])
            hashes.append(first[segments] + digits)
        return torch.stack(hashes)

    def digits(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """How many values the two digits of a bucket have, for segments of so many tokens; the second often has one."""
        chunks = lengths.add(self.bucket_size - 1) // self.bucket_size
        wanted = torch.where(chunks <= 1, 1, 2 * chunks)
        one = wanted <= 2 * DIRECTIONS
        low = torch.where(one, wanted, 2 * wanted.sqrt().div(2).ceil().long()).clamp_max(2 * DIRECTIONS)
        high = torch.where(one, 1, 2 * wanted.div(2 * low).ceil().long()).clamp_max(2 * DIRECTIONS)
        return low, high

    def config(self) -> dict[str, Any]:
        return {
            "name": type(self).__name__,
            "causal": self.causal,
            "bucket_size": self.bucket_size,
            "rounds": self.rounds,
        }


def _hash(x: Tensor, rotations: Tensor, buckets: Tensor) -> Tensor:
    """argmax of [xR, -xR] over so many buckets, one number for each row, even or 1.

    x `[heads, rows, dim]`, rotations `[heads, dim, directions]`, buckets `[rows]`.
    """
    most = max(1, math.ceil(int(buckets.max()) / 2))
    along = x @ rotations[..., :most]
    half = buckets.div(2, rounding_mode="floor")
    size = along.abs().masked_fill(torch.arange(most, device=x.device) >= half[:, None], -1.0)
    direction = size.argmax(-1)
    backwards = along.gather(-1, direction.unsqueeze(-1)).squeeze(-1) < 0
    return (direction + half * backwards).where(buckets > 1, 0)

"""First and second moments of queries and keys, per segment and head or as a moving average."""

import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn


class Moments(NamedTuple):
    """Means of x and of x^2, fp32, S segments or 1."""

    mean: Float[Tensor, "S heads dim"]
    square: Float[Tensor, "S heads dim"]

    @property
    def variance(self) -> Float[Tensor, "S heads dim"]:
        return (self.square - self.mean.square()).clamp_min(0.0)


def segment_moments(x: Float[Tensor, "total heads dim"], cu_seqlens: Int32[Tensor, "segments_plus_one"]) -> Moments:
    """Moments of each segment by itself (an empty one has zeros); no gradient."""
    return Moments(*torch.ops.protformer.segment_moments(x.detach(), cu_seqlens))


# An operator, because a compiler cannot trace a loop over offsets.
@torch.library.custom_op(
    "protformer::segment_moments", mutates_args=(), schema="(Tensor x, Tensor cu_seqlens) -> (Tensor, Tensor)"
)
def _segment_moments(x, cu_seqlens):
    mean, square = _segment_moments_fake(x, cu_seqlens)
    if x.is_cuda:
        lengths = cu_seqlens.diff().to(torch.int64)
        wide = x.to(mean.dtype)
        for out, values in ((mean, wide), (square, wide.square())):
            out.copy_(torch.segment_reduce(values, "sum", lengths=lengths, axis=0))
            out.div_(lengths.clamp_min(1)[:, None, None])
        return mean, square
    mean.zero_()
    square.zero_()
    offsets = cu_seqlens.tolist()
    for i, (a, b) in enumerate(itertools.pairwise(offsets)):
        # in chunks, so that a long segment needs no copy of itself in a wider type
        for start in range(a, b, 4096):
            part = x[start : min(start + 4096, b)].to(mean.dtype)
            mean[i] += part.sum(dim=0)
            square[i] += part.square().sum(dim=0)
        if b > a:
            mean[i] /= b - a
            square[i] /= b - a
    return mean, square


@_segment_moments.register_fake
def _segment_moments_fake(x, cu_seqlens):
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = (cu_seqlens.shape[0] - 1, *x.shape[1:])
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)


class MovingMoments(nn.Module):
    """An exponential moving average of the moments of queries and keys, over optimiser steps.

    In training `observe` adds to sums, and `update_` (once per optimiser step, after summing over ranks) moves the
    average. So the average never changes within a step: activation checkpointing recomputes with the same one (its
    second observation doubles sums and count alike), and accumulation counts all its micro-batches.
    """

    average: Float[Tensor, "four heads dim"]
    sums: Float[Tensor, "four heads dim"]
    count: Float[Tensor, ""]
    updates: Float[Tensor, ""]

    def __init__(self, *, num_heads: int, head_dim: int, momentum: float) -> None:
        super().__init__()
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), not {momentum}")
        self.momentum = momentum
        # query mean, query square, key mean, key square
        self.register_buffer("average", torch.zeros(4, num_heads, head_dim))
        self.register_buffer("updates", torch.zeros(()))
        self.register_buffer("sums", torch.zeros(4, num_heads, head_dim), persistent=False)
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def read(self) -> tuple[Moments, Moments]:
        """Moments of queries and of keys; zeros before the first update."""
        # (the average started from zero: without the correction its first steps would be too small)
        known = 1.0 - self.momentum**self.updates
        average = (self.average / known.clamp_min(1e-12)).unsqueeze(1)
        return Moments(average[0], average[1]), Moments(average[2], average[3])

    @torch.no_grad()
    def observe(self, query: Float[Tensor, "total heads dim"], key: Float[Tensor, "total heads dim"]) -> None:
        whole = torch.tensor([0, query.shape[0]], dtype=torch.int32, device=query.device)
        moments = [m for x in (query, key) for m in segment_moments(x, whole)]
        self.sums += torch.cat(moments).to(self.sums.dtype) * query.shape[0]
        self.count += query.shape[0]

    @torch.no_grad()
    def update_(self) -> None:
        """Move the average by what was observed since the last update, and forget it."""
        if float(self.count) > 0:
            self.average.lerp_(self.sums / self.count, 1.0 - self.momentum)
            self.updates += 1
        self.sums.zero_()
        self.count.zero_()

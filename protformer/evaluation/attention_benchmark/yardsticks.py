"""The matrix products alone, timed in the same rounds as the contenders: the rate that their shares are of."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from protformer.evaluation.attention_benchmark.cases import Call, Case

SIDE = {"cpu": 2048, "cuda": 8192}
CHUNK = 512


class Yardstick(NamedTuple):
    call: Call
    operations: float


def square_product(case: Case) -> Yardstick:
    """One large product of square matrices: the rate that PyTorch reaches here in this type."""
    side = SIDE[case.device]
    draw = _normal(case)
    a, b, out = draw(side, side), draw(side, side), draw(side, side)
    return Yardstick(lambda: (torch.matmul(a, b, out=out),), 2.0 * side**3)


def performer_products(case: Case, features: int) -> Yardstick:
    """The forward's four products for a chunk of all heads, and nothing else: x W, y W, f^T v, f S."""
    tokens, heads, dim = min(case.longest, CHUNK), case.heads, case.dim
    draw = _normal(case)
    x, weight = draw(heads, tokens, dim), draw(heads, dim, features)
    f, g = draw(heads, tokens, features), draw(heads, tokens, features)
    state, out = draw(heads, features, dim), draw(heads, tokens, dim)

    def call() -> tuple[torch.Tensor, ...]:
        torch.bmm(x, weight, out=f)
        torch.bmm(x, weight, out=g)
        torch.bmm(f.transpose(1, 2), x, out=state)
        torch.bmm(g, state, out=out)
        return (out,)

    return Yardstick(call, 8.0 * heads * tokens * features * dim)


def _normal(case: Case) -> Callable[..., torch.Tensor]:
    generator = torch.Generator(case.device).manual_seed(0)
    # Small enough that products of products stay finite in half precision.
    return lambda *shape: torch.empty(shape, dtype=case.torch_dtype, device=case.device).normal_(
        std=0.05, generator=generator
    )

"""The Performer in fp32 and bf16 against float64: stated bounds from tiny to huge norms, at lengths to 100,000."""

import pytest
import torch
from performers import KINDS, POSITIVE, both_ways, build, inputs, offsets, relative_errors, step

NORMS = (1e-3, 0.1, 1.0, 5.0, 30.0)
UNIT = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8}


def output_bound(dtype: torch.dtype, norm: float, largest_row: float, dim: int) -> float:
    """Largest error of an output row, in units of the largest value.

    Features of queries and of keys, the state and the output are rounded once each; and logits in fp32, relative to
    their size: |w||x| of each side, and the norm.
    """
    logits = 2.0 * largest_row * norm + norm**2 * dim**-0.5
    return 4.0 * UNIT[dtype] + (4.0 + logits) * UNIT[torch.float32]


def gradient_bounds(
    name: str, dtype: torch.dtype, norm: float, largest_row: float, dim: int
) -> tuple[float, float, float]:
    """Errors of the gradients of q, k and v relative to their norms.

    The gradient of q carries a factor |k| that the rounding of features does not have; that of k only where features
    come in antithetic pairs. A logit of relu within rounding of zero falls to either side: one in ten million does.
    """
    logits = 2.0 * largest_row * norm + norm**2 * dim**-0.5
    plain = 8.0 * UNIT[dtype] + (8.0 + logits) * UNIT[torch.float32]
    plain += 2.0**-11 if name == "relu" else 0.0
    # (in fp32 the sums over a hundred thousand rows round more than features do)
    faint = plain + (4.0 if dtype == torch.bfloat16 else 20.0) * UNIT[dtype] / norm
    return faint, faint if name == "hyperbolic" else plain, plain


def check(name: str, causal: bool, dtype: torch.dtype, lengths: list[int], norm: float, dim: int = 8) -> None:
    attention = build(name, causal, dim=dim)
    given = inputs(sum(lengths), norm, dim=dim).to(dtype)
    got = step(attention, given, offsets(*lengths))
    expected = step(attention, given.to(torch.float64), offsets(*lengths))
    largest_row = float(attention.features.projection.norm(dim=-1).max())
    assert all(x.isfinite().all() for x in got)
    worst = (got.out.double() - expected.out).abs().max() / given.value.double().abs().max()
    assert worst <= output_bound(dtype, norm, largest_row, dim)
    for error, bound in zip(
        relative_errors(got, expected)[1:], gradient_bounds(name, dtype, norm, largest_row, dim), strict=True
    ):
        assert error <= bound


@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize(("name", "causal"), both_ways(name for name in KINDS if name in POSITIVE))
def test_output_and_gradients_are_within_their_bounds(name, causal, dtype):
    for norm in NORMS:
        check(name, causal, dtype, [40, 1, 300], norm)


@pytest.mark.parametrize("name", ["positive", "positive centred", "relu", "exp"])
def test_and_so_they_are_at_the_sizes_of_compiled_code(name):
    # engines for bf16 take heads of 32 or 64 dimensions; here is whichever this machine has
    for norm in NORMS:
        check(name, False, torch.bfloat16, [100, 1, 31, 32, 33, 257], norm, dim=32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize(("name", "causal"), [("positive", False), ("positive", True), ("relu", False), ("relu", True)])
def test_and_at_a_hundred_thousand_rows(name, causal, dtype):
    for norm in (1e-3, 30.0):
        check(name, causal, dtype, [100_000], norm)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["positive", "positive centred", "relu", "exp"])
def test_and_at_a_hundred_thousand_rows_of_compiled_code(name):
    for norm in (1e-3, 30.0):
        check(name, False, torch.bfloat16, [100_000], norm, dim=32)

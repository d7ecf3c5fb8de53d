"""Sparse attention is softmax attention under its pattern's mask, without ever making the mask."""

import math

import pytest
import torch
from baselines import (
    BOUNDS,
    LENGTHS,
    assert_blind_to_the_future,
    assert_equal,
    assert_finite_at_any_norm,
    assert_packed_equals_alone,
    largest_tensor,
    masked_softmax,
    past,
    step,
)
from performers import inputs, offsets
from torch import Tensor

from protformer.attention import ExactAttention, SparseAttention, factory_from_config

# name: options. Several chunks a segment at LENGTHS.
PATTERNS = {
    "strided": {"pattern": "strided", "stride": 7},
    "strided by the root": {"pattern": "strided"},
    "strided by one": {"pattern": "strided", "stride": 1},
    "fixed": {"pattern": "fixed", "stride": 9, "expressivity": 2},
    "fixed by the root": {"pattern": "fixed", "expressivity": 3},
    "window": {"pattern": "window", "window": 6, "global_tokens": 3},
    "window alone": {"pattern": "window", "window": 5, "global_tokens": 0},
    "globals alone": {"pattern": "window", "window": 0, "global_tokens": 2},
}
# what makes the pattern everything for a segment of 130
COVERING = [
    {"pattern": "strided", "stride": 129},
    {"pattern": "strided", "stride": 1},
    {"pattern": "fixed", "stride": 130},
    {"pattern": "fixed", "stride": 10, "expressivity": 10},
    {"pattern": "window", "window": 129, "global_tokens": 0},
    {"pattern": "window", "window": 3, "global_tokens": 130},
]


def build(name: str = "", causal: bool = False, **options) -> SparseAttention:
    return SparseAttention(num_heads=2, head_dim=16, causal=causal, **{**PATTERNS.get(name, {}), **options})


def pattern_mask(attention: SparseAttention, n: int) -> Tensor:
    """`[n, n]`: the rule of the docstring, for every pair."""
    i, j = torch.arange(n)[:, None], torch.arange(n)
    stride = max(1, math.ceil(math.sqrt(n))) if attention.stride is None else attention.stride
    if attention.pattern == "strided":
        mask = ((i - j).abs() <= stride) | ((i - j) % stride == 0)
    elif attention.pattern == "fixed":
        mask = (i // stride == j // stride) | (j % stride >= stride - attention.expressivity)
    else:
        few = attention.global_tokens
        mask = ((i - j).abs() <= attention.window) | (i < few) | (j < few)
    return mask & past(n) if attention.causal else mask


def direct(attention: SparseAttention):
    return lambda q, k, v, cu: masked_softmax(q, k, v, cu, lambda _, n: pattern_mask(attention, n))


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        (
            {"pattern": "strided", "stride": 3},
            ["#......", "##.....", "###....", "####...", ".####..", "..####.", "#..####"],
        ),
        (
            {"pattern": "fixed", "stride": 3, "expressivity": 1},
            ["#......", "##.....", "###....", "..##...", "..###..", "..####.", "..#..##"],
        ),
        (
            {"pattern": "window", "window": 1, "global_tokens": 1},
            ["#......", "##.....", "###....", "#.##...", "#..##..", "#...##.", "#....##"],
        ),
    ],
)
def test_causal_masks_are_those_of_the_papers(options, drawn):
    attention = build(causal=True, **options)
    expected = torch.tensor([[c == "#" for c in row] for row in drawn])
    assert torch.equal(pattern_mask(attention, 7), expected)
    # and it is what a row's gradient reaches
    for row in range(7):
        given = inputs(7, dim=16)
        only = given._replace(grad=torch.where(torch.arange(7)[:, None, None] == row, given.grad, 0.0))
        reached = step(attention, only, offsets(7)).value.abs().sum((1, 2)) > 0
        assert torch.equal(reached, expected[row])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", PATTERNS)
def test_equals_softmax_under_the_mask_with_its_gradient(name, causal):
    attention = build(name, causal)
    assert_equal(attention, direct(attention))
    assert_equal(attention, direct(attention), lengths=(3, 65, 64, 8, 2))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["strided", "fixed", "window"])
@pytest.mark.parametrize(("dtype", "bound"), BOUNDS[1:])
def test_equals_it_in_lower_precision(dtype, bound, name, causal):
    attention = build(name, causal)
    assert_equal(attention, direct(attention), dtype=dtype, bound=bound)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", COVERING)
def test_a_pattern_that_covers_everything_is_exact_attention(options, causal):
    exact = ExactAttention(num_heads=2, head_dim=16, causal=causal)
    assert_equal(build(causal=causal, **options), exact)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", PATTERNS)
def test_packed_equals_alone(name, causal):
    assert_packed_equals_alone(build(name, causal))


@pytest.mark.parametrize("name", PATTERNS)
def test_the_future_is_not_seen(name):
    assert_blind_to_the_future(build(name, causal=True))


@pytest.mark.parametrize("name", [name for name in PATTERNS if "root" not in name])
def test_a_causal_row_is_the_last_row_of_two_way_attention_to_its_prefix(name):
    given = inputs(60, dim=16)
    causal = build(name, causal=True)(*given[:3], offsets(60))
    for row in (0, 8, 31, 59):
        prefix = build(name)(*given.rows(0, row + 1)[:3], offsets(row + 1))
        torch.testing.assert_close(prefix[-1], causal[row])


@pytest.mark.parametrize(
    ("name", "growth"), [("strided by the root", 1.5), ("fixed by the root", 1.5), ("window", 1.0)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_memory_grows_less_than_with_the_square(name, growth, causal):
    small, large = (largest_tensor(build(name, causal), n) for n in (1024, 16_384))
    assert large / small < 1.1 * 16**growth


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", PATTERNS)
def test_extreme_norms_and_empty_packs(name, causal):
    attention = build(name, causal)
    assert_finite_at_any_norm(attention)
    empty = torch.zeros(0, 2, 16)
    assert attention(empty, empty, empty, offsets(0, 0)).shape == (0, 2, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "dilated"}, "strided, fixed, window, not 'dilated'"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"window": -1}, "window must be at least 0"),
        ({"global_tokens": -1}, "global_tokens must be at least 0"),
        ({"expressivity": 0}, "expressivity must be at least 1"),
        ({"pattern": "fixed", "stride": 4, "expressivity": 5}, "expressivity=5 is more than a block"),
    ],
)
def test_what_cannot_be_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        # (past the type checks of a test, as a YAML's value comes)
        getattr(SparseAttention.__init__, "__wrapped__", SparseAttention.__init__)(
            SparseAttention.__new__(SparseAttention), num_heads=2, head_dim=16, **options
        )


@pytest.mark.parametrize("name", PATTERNS)
def test_config_round_trip(name):
    attention = build(name, causal=True)
    rebuilt = factory_from_config(attention.config())(num_heads=2, head_dim=16)
    assert isinstance(rebuilt, SparseAttention)
    assert rebuilt.config() == attention.config()
    given = inputs(sum(LENGTHS), dim=16)
    assert torch.equal(*(x(*given[:3], offsets(*LENGTHS)) for x in (attention, rebuilt)))


def test_a_second_derivative_is_refused_and_not_wrong():
    attention = build("window")
    q, k, v = (x.detach().requires_grad_() for x in inputs(sum(LENGTHS), dim=16)[:3])
    out = attention(q, k, v, offsets(*LENGTHS))
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()

"""Uniform attention is the mean of a segment, or of what has been of it; queries and keys do not matter."""

import pytest
import torch
from baselines import (
    BOUNDS,
    LENGTHS,
    assert_blind_to_the_future,
    assert_equal,
    assert_finite_at_any_norm,
    assert_packed_equals_alone,
    masked_softmax,
    past,
    step,
)
from performers import inputs, offsets

from protformer.attention import UniformAttention, factory_from_config


def build(causal: bool) -> UniformAttention:
    return UniformAttention(num_heads=2, head_dim=16, causal=causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_it_is_softmax_attention_of_equal_logits(dtype, bound, causal):
    def reference(q, k, v, cu):
        return masked_softmax(0 * q, 0 * k, v, cu, lambda _, n: past(n) if causal else past(n) | True)

    assert_equal(build(causal), reference, dtype=dtype, bound=bound)


@pytest.mark.parametrize("causal", [False, True])
def test_packed_equals_alone_to_the_bit(causal):
    assert_packed_equals_alone(build(causal), rtol=0)


def test_the_future_is_not_seen():
    assert_blind_to_the_future(build(True))


@pytest.mark.parametrize("causal", [False, True])
def test_the_last_causal_row_is_the_two_way_mean(causal):
    given = inputs(50, dim=16)
    means = [build(causal)(given.query, given.key, given.value, offsets(50)) for causal in (False, True)]
    torch.testing.assert_close(means[0][-1], means[1][-1])


def test_a_long_running_mean_of_half_precision_values_is_accurate():
    values = (1 + 0.1 * inputs(20_000, heads=1, dim=2).value).bfloat16()
    out = build(True)(values, values, values, offsets(20_000))
    expected = values.double().cumsum(0) / torch.arange(1, 20_001)[:, None, None]
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-6)  # half of bf16's last digit


@pytest.mark.parametrize("causal", [False, True])
def test_queries_and_keys_have_a_gradient_and_it_is_zero(causal):
    assert_finite_at_any_norm(build(causal))
    made = step(build(causal), inputs(sum(LENGTHS), dim=16), offsets(*LENGTHS))
    assert torch.count_nonzero(made.query) == torch.count_nonzero(made.key) == 0
    empty = torch.zeros(0, 2, 16)
    assert build(causal)(empty, empty, empty, offsets(0, 0)).shape == (0, 2, 16)


def test_config_round_trip():
    attention = build(True)
    rebuilt = factory_from_config(attention.config())(num_heads=2, head_dim=16)
    assert isinstance(rebuilt, UniformAttention)
    assert rebuilt.config() == attention.config() == {"name": "UniformAttention", "causal": True}

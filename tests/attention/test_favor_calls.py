"""How the Performer's operator works on a call: chunks and their borders, range, the caller's settings, memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from performers import Inputs, Step, both_ways, build, head_dim, inputs, offsets, step
from test_favor import direct
from torch import Tensor

from protformer.attention import favor_causal, native
from protformer.attention.favor_chunk import CHUNK_ELEMENTS, chunk_length
from protformer.attention.favor_operator import favor_attention

# 16 heads of 512 features make the shortest chunk, a few blocks long.
HEADS, FEATURES, DIM = 16, 512, 4
CHUNK, BLOCK = chunk_length(HEADS, FEATURES), favor_causal.BLOCK
BORDERS = [
    (CHUNK - 1, 3, CHUNK, CHUNK + 1),
    (5, 2 * CHUNK + 1),
    (CHUNK - 3, 3, CHUNK // 2, CHUNK // 2, 1),
    (BLOCK - 1, BLOCK, BLOCK + 1, 1, 31, 32, 33),
]


def reference(attention, given: Inputs, cu_seqlens: Tensor) -> Step:
    """The direct formula in float64, by autograd."""
    q, k, v = (x.detach().double().requires_grad_() for x in given[:3])
    out = direct(attention.double(), q, k, v, cu_seqlens)
    return Step(out.detach(), *torch.autograd.grad(out, (q, k, v), given.grad.double()))


def test_borders_are_where_these_tests_think():
    assert 2 * BLOCK <= CHUNK < 500
    assert CHUNK % BLOCK == 0


SEAMS = [
    *((*case, lengths) for case in both_ways(["positive"]) for lengths in BORDERS),
    *((*case, lengths) for case in both_ways(["optimal centred per head", "trigonometric"]) for lengths in BORDERS[:2]),
]


@pytest.mark.parametrize(("name", "causal", "lengths"), SEAMS)
def test_chunks_and_blocks_join_without_a_seam(name, causal, lengths):
    attention = build(name, causal, heads=HEADS, dim=DIM, num_features=FEATURES)
    given = inputs(sum(lengths), heads=HEADS, dim=DIM)
    if name == "trigonometric":
        given = given._replace(query=given.query * 0.3, key=given.key * 0.3)  # where its estimates are usable
    cu = offsets(*lengths)
    expected = reference(attention, given, cu)
    for got, wanted in zip(step(attention.double(), given, cu), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)
    if name != "positive":
        return
    low = given.to(torch.bfloat16)
    expected = step(attention, low.to(torch.float64), cu)
    for got, wanted in zip(step(attention.float(), low, cu), expected, strict=True):
        assert (got.double() - wanted).norm() <= 2.0**-5 * wanted.norm()


@pytest.mark.parametrize(("name", "causal"), both_ways(["positive", "hyperbolic", "dense centred", "optimal moving"]))
def test_segments_out_of_range_do_not_change_their_neighbours(name, causal):
    # logits of a norm of 30 need the stabiliser, those of 0.3 do not; they share chunks
    lengths, norms = (7, 40, 1, 9, 130, 3), (0.3, 30.0, 30.0, 0.3, 30.0, 0.3)
    scale = torch.cat([torch.full((length, 1, 1), norm) for length, norm in zip(lengths, norms, strict=True)])

    def spread_out(given: Inputs) -> Inputs:
        return given._replace(query=given.query * scale, key=given.key * scale)

    given = spread_out(inputs(sum(lengths), norm=1.0))
    attention, cu = build(name, causal), offsets(*lengths)
    for got, wanted in zip(step(attention.double(), given, cu), reference(attention, given, cu), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-8)
    attention.float()
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2.0**-5)):
        if dtype == torch.bfloat16:
            attention, given = build(name, causal, dim=32), spread_out(inputs(sum(lengths), 1.0, dim=32))
        together = step(attention, given.to(dtype), cu)
        for a, b in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
            alone = step(attention, given.to(dtype).rows(a, b), offsets(b - a))
            for one, whole in zip(alone, together, strict=True):
                part = whole[a:b].double()
                # (the gradients of one token are rounding)
                assert (one.double() - part).norm() <= tolerance * (part.norm() + (b - a) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("poison", [torch.nan, 1e30])
@pytest.mark.parametrize(("name", "causal"), both_ways(["positive", "optimal centred per head", "cosine"]))
def test_a_segment_of_nonsense_stays_by_itself(name, causal, poison, dtype):
    dim, tolerance = head_dim(dtype), 2.0**-6 if dtype == torch.bfloat16 else 1e-4
    attention, given = build(name, causal, dim=dim), inputs(30, norm=1.0, dim=dim).to(dtype)
    cu = offsets(9, 5, 16)
    expected = step(attention, given, cu)
    for field in ("query", "key", "value"):
        spoiled = getattr(given, field).clone()
        spoiled[11] = poison
        got = step(attention, given._replace(**{field: spoiled}), cu)
        for one, other in zip(got, expected, strict=True):
            for rows in (slice(0, 9), slice(14, 30)):
                torch.testing.assert_close(one[rows], other[rows], rtol=tolerance, atol=tolerance)


@contextmanager
def products_at(precision: str) -> Iterator[None]:
    """The user's `torch.set_float32_matmul_precision`, put back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def settings() -> tuple:
    matmul = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    return torch.get_float32_matmul_precision(), matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision


@pytest.mark.parametrize(("name", "causal"), both_ways(["positive", "optimal centred per head", "relu"]))
def test_the_callers_precision_of_products_does_not_reach_in_and_is_kept(name, causal):
    attention, cu = build(name, causal, dim=32, num_features=64), offsets(100, 200)
    given = inputs(300, norm=2.0, dim=32).to(torch.float32)
    with products_at("highest"):
        expected = step(attention, given, cu)
    with products_at("medium"):
        before = settings()
        a, b = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
        product = a @ b
        got = step(attention, given, cu)
        assert settings() == before
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one, other)
        step(attention, given.to(torch.bfloat16), cu)  # which takes bf16 products inside
        assert settings() == before
        with pytest.raises((RuntimeError, IndexError)):
            favor_attention(
                given.query, given.key[:, :, :5], given.value, cu, attention.features.projection, family="relu"
            )
        assert settings() == before
        assert torch.equal(a @ b, product)


@pytest.mark.parametrize("name", ["positive", "optimal centred per head", "relu"])
def test_autocast_does_not_reach_in(name):
    attention, cu = build(name), offsets(20, 30)
    given = inputs(50, norm=3.0).to(torch.float32)
    expected = step(attention, given, cu)
    with torch.autocast("cpu", torch.bfloat16):
        got = step(attention, given, cu)
        assert torch.is_autocast_enabled("cpu")
        for one, other in zip(got, expected, strict=True):
            assert one.dtype == torch.float32
            assert torch.equal(one, other)
        # bf16 rows, as a block under autocast makes them
        low = step(attention, given.to(torch.bfloat16), cu)
    assert all(x.dtype == torch.bfloat16 for x in low)
    for one, other in zip(low, step(attention, given.to(torch.bfloat16), cu), strict=True):
        assert torch.equal(one, other)


def allocations(attention, given: Inputs, cu_seqlens: Tensor) -> tuple[int, int]:
    """Bytes of the largest tensor made by a step, and of all that live at once at its peak."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step(attention, given, cu_seqlens)
    result = profile.profiler
    assert result is not None
    assert result.kineto_results is not None
    events = [event for event in result.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    changes = [event.nbytes() for event in events]  # pyright: ignore[reportAttributeAccessIssue]
    assert changes
    return max(changes), int(torch.tensor(changes).cumsum(0).max())


@pytest.mark.parametrize(
    ("name", "causal", "dtype", "lengths"),
    [
        ("positive", False, torch.float32, (16_384,)),
        ("positive", True, torch.bfloat16, (16_384,)),
        ("positive", True, torch.float32, (8_192, *(256,) * 32)),
        ("relu", False, torch.bfloat16, (8_192, *(256,) * 32)),
        ("optimal centred per head", False, torch.bfloat16, (8_192, *(256,) * 32)),
    ],
)
def test_nothing_of_the_size_of_tokens_by_features_is_made(name, causal, dtype, lengths):
    heads, features, total = 2, 256, 16_384
    dim = head_dim(dtype)
    given = inputs(total, 1.0, heads=heads, dim=dim).to(dtype)
    attention = build(name, causal, heads=heads, dim=dim, num_features=features)
    largest, peak = allocations(attention, given, offsets(*lengths))
    rows = given.query.numel() * given.query.element_size()  # one input, the output, or a gradient
    budget = 4 * CHUNK_ELEMENTS  # bytes of a chunk's features
    assert largest <= max(rows, budget)
    # The output and four gradients; a few buffers of a chunk. (Scaled inputs are no bf16 numbers, and without AMX none
    # are served: they are copied to fp32.)
    in_full = name.startswith("optimal") or (native.available(torch.bfloat16) and not native.available(torch.float32))
    copies = 16 * rows if in_full and dtype == torch.bfloat16 else 0
    assert peak <= 5 * rows + max(4 * budget, copies)
    # which says something: features of all tokens are more
    assert max(rows, budget) < total * heads * features * 4 / 7


def test_memory_grows_by_the_inputs_alone():
    peaks = []
    for total in (8_192, 32_768):
        attention = build("positive", num_features=256)
        peaks.append(allocations(attention, inputs(total, 1.0).to(torch.float32), offsets(total))[1])
    rows = 2 * 8 * 4  # bytes of one input's row
    assert peaks[1] - peaks[0] <= 6 * rows * (32_768 - 8_192)

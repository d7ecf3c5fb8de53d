"""The compiled CPU engine: it equals the direct formula and the PyTorch path, and says what it leaves to that."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from protformer.attention import native
from protformer.attention.favor_operator import favor_attention
from protformer.features import NO_ADAPTATION, Adaptation

LENGTHS = [1, 17, 0, 64, 300, 1030]
ULP = 2.0**-7
SETTINGS = {
    "exponential": {"family": "exponential", "epsilon": 0.0, "norm_weight": 1.0},
    "unweighted": {"family": "exponential", "epsilon": 0.0, "norm_weight": 0.0},
    "relu": {"family": "relu", "epsilon": 1e-3, "norm_weight": 0.0},
}

WHY_NOT = native.supported(
    torch.empty(0, 1, 32, dtype=torch.bfloat16), torch.empty(1, 32, 32), "relu", False, NO_ADAPTATION
)
needs_engine = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def inputs(
    lengths: list[int], heads: int, dim: int, rows: int, per_head: bool = False, norm: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and a gradient of the output, in bf16; offsets; a projection of bf16 numbers."""
    generator = torch.Generator().manual_seed(heads + dim + rows)
    x = torch.randn(4, sum(lengths), heads, dim, generator=generator)
    x[:2] *= norm
    x[2] += 3.0  # values with a mean: what all rows have in common is the larger part of the output
    projection = torch.randn(heads if per_head else 1, rows, dim, generator=generator) * dim**-0.25
    q, k, v, grad = x.bfloat16()
    return q, k, v, grad, offsets(lengths), projection.bfloat16().float()


def direct(x: Sequence[Tensor], cu: Tensor, projection: Tensor, settings: dict, adaptation=NO_ADAPTATION) -> Tensor:
    """The formula in float64, one segment after another."""
    q, k, v = x
    outs = []
    heads, dim = q.shape[1:]
    weight = projection.double().expand(heads, -1, -1)
    for index, (a, b) in enumerate(itertools.pairwise(cu.tolist())):

        def own(y: Tensor | None, index: int = index) -> Tensor | None:
            return None if y is None else y.double().expand(len(cu) - 1, heads, *y.shape[2:])[index]

        norm_scale, tilt, offset = own(adaptation.norm_scale), own(adaptation.tilt), own(adaptation.offset)
        f_q, f_k = (torch.einsum("thd,hmd->htm", y[a:b], weight) for y in (q, k))
        if offset is not None:
            f_q, f_k = f_q + offset[:, None], f_k + offset[:, None]
        if settings["family"] == "relu":
            f_q, f_k = f_q.relu() + settings["epsilon"], f_k.relu() + settings["epsilon"]
        else:
            log_weight = -0.5 * settings["norm_weight"] * dim**-0.5 * k[a:b].square().sum(-1).T
            if norm_scale is not None:
                log_weight = log_weight * norm_scale[:, None]
            if tilt is not None:
                log_weight = log_weight + torch.einsum("thd,hd->ht", k[a:b], tilt)
            f_q, f_k = f_q.exp(), (f_k + log_weight[..., None]).exp()
        mixing = f_q @ f_k.transpose(1, 2)
        outs.append(torch.einsum("hts,shd->thd", mixing / mixing.sum(2, keepdim=True), v[a:b]))
    return torch.cat(outs)


def check(x: tuple, settings: dict, adaptation: Adaptation = NO_ADAPTATION, worst: float = 1e-2) -> None:
    """Output and gradients against float64: to the rounding of the output, gradients to one percent."""
    q, k, v, grad, cu, projection = x
    leaves = [y.double().requires_grad_() for y in (q, k, v)]
    expected = direct(leaves, cu, projection, settings, adaptation)
    expected_grads = torch.autograd.grad(expected, leaves, grad.double())
    done = native.forward(q, k, v, cu, projection, **settings, adaptation=adaptation)
    assert done is not None
    out, redo = done
    assert redo == []
    assert out.dtype == torch.bfloat16
    assert (out.double() - expected).abs().max() <= ULP * v.abs().max()
    done = native.backward(grad, q, k, v, cu, projection, **settings, adaptation=adaptation)
    assert done is not None
    *grads, redo = done
    assert redo == []
    for got, wanted in zip(grads, expected_grads, strict=True):
        assert (got.double() - wanted).norm() <= worst * wanted.norm()


@needs_engine
@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize(
    ("heads", "dim", "rows", "per_head"),
    [(8, 64, 64, False), (2, 64, 256, True), (3, 32, 48, True), (1, 96, 16, False), (2, 128, 100, False)],
)
def test_equals_the_formula(name, heads, dim, rows, per_head):
    check(inputs(LENGTHS, heads, dim, rows, per_head), SETTINGS[name])


@needs_engine
@pytest.mark.parametrize("own", [False, True])
def test_shifts_per_segment_and_head(own):
    segments, heads, dim, rows = (len(LENGTHS), 2, 64, 40) if own else (1, 1, 64, 40)
    x = inputs(LENGTHS, 2, dim, rows)
    generator = torch.Generator().manual_seed(0)
    tilt, offset = (torch.randn(segments, heads, n, generator=generator) * 0.2 for n in (dim, rows))
    norm_scale = 0.5 + torch.rand(segments, heads, generator=generator)
    check(x, SETTINGS["exponential"], Adaptation(tilt=tilt, offset=offset))
    check(x, SETTINGS["exponential"], Adaptation(norm_scale=norm_scale))
    check(x, SETTINGS["unweighted"], Adaptation(tilt=tilt))
    check(x, SETTINGS["relu"], Adaptation(offset=offset))


@needs_engine
@pytest.mark.parametrize("norm", [1e-3, 0.3, 4.0])
def test_gradients_are_as_near_as_pytorchs(norm):
    # (at tiny norms the rounding of features is all there is, on either path)
    q, k, v, grad, cu, projection = inputs([700], 2, 64, 64, norm=norm)
    settings = SETTINGS["exponential"]
    leaves = [y.double().requires_grad_() for y in (q, k, v)]
    expected = torch.autograd.grad(direct(leaves, cu, projection, settings), leaves, grad.double())
    leaves = [y.clone().requires_grad_() for y in (q, k, v)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_library", lambda: (None, "the test turns it off"))
        out = favor_attention(leaves[0], leaves[1], leaves[2], cu, projection, **settings)
        theirs = torch.autograd.grad(out, leaves, grad)
    done = native.backward(grad, q, k, v, cu, projection, **settings)
    assert done is not None
    for got, other, wanted in zip(done[:3], theirs, expected, strict=True):
        assert (got.double() - wanted).norm() <= 1.5 * (other.double() - wanted).norm() + 1e-3 * wanted.norm()


@needs_engine
def test_weights_that_grow_along_a_segment():
    # the running maximum moves by hundreds, over blocks and parts; early keys weigh nothing in the end
    q, k, v, grad, cu, projection = inputs([1400], 2, 64, 32)
    q, projection = q * 8.0, projection * 2.0**-4
    k = (k * torch.linspace(30.0, 0.5, 1400)[:, None, None]).bfloat16()
    # (few keys count, and their features' roundings do not average out: PyTorch's path is as far off)
    check((q, k, v, grad, cu, projection), SETTINGS["exponential"], worst=2e-2)
    check((q, k.flip(0), v, grad, cu, projection), SETTINGS["exponential"], worst=2e-2)


@needs_engine
def test_threads_and_neighbours_change_nothing(monkeypatch):
    # 5000 rows in parts, few heads: both threads must share them; and the same segment among others
    q, k, v, grad, _, projection = inputs([*LENGTHS, 5000], 2, 64, 64)
    settings = SETTINGS["exponential"]
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        x = (q, k, v, offsets([*LENGTHS, 5000]), projection)
        forward, backward = native.forward(*x, **settings), native.backward(grad, *x, **settings)
        assert forward is not None
        assert backward is not None
        results.append((forward[0], *backward[:3]))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    x = (q[-5000:], k[-5000:], v[-5000:], offsets([5000]), projection)
    alone = native.forward(*x, **settings)
    assert alone is not None
    assert torch.equal(alone[0], results[0][0][-5000:])


@needs_engine
@pytest.mark.parametrize("tensor", [0, 1])
def test_segments_out_of_range_are_named(tensor):
    q, k, v, grad, cu, projection = inputs(LENGTHS, 2, 64, 64)
    for row in (20, 500):  # of segments 3 and 5
        (q, k)[tensor][row, 1] = 30.0
    settings = SETTINGS["exponential"]
    forward, backward = (
        native.forward(q, k, v, cu, projection, **settings),
        native.backward(grad, q, k, v, cu, projection, **settings),
    )
    assert forward is not None
    assert backward is not None
    assert forward[1] == backward[3] == [3, 5]
    expected = direct([x.double() for x in (q, k, v)], cu, projection, settings)
    for index in (0, 1, 4):
        rows = slice(int(cu[index]), int(cu[index + 1]))
        assert (forward[0][rows].double() - expected[rows]).abs().max() <= ULP * v.abs().max()


@needs_engine
@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_segment(name, bad):
    for tensor in range(3):
        q, k, v, grad, cu, projection = inputs(LENGTHS, 2, 64, 64)
        good = native.forward(q, k, v, cu, projection, **SETTINGS[name])
        (q, k, v)[tensor][100, 0, 5] = bad  # segment 4
        done = native.forward(q, k, v, cu, projection, **SETTINGS[name])
        backward = native.backward(grad, q, k, v, cu, projection, **SETTINGS[name])
        assert good is not None
        assert done is not None
        assert backward is not None
        inside = slice(int(cu[4]), int(cu[5]))
        assert 4 in done[1] or not done[0][inside].isfinite().all()
        assert torch.equal(done[0][: inside.start], good[0][: inside.start])
        assert torch.equal(done[0][inside.stop :], good[0][inside.stop :])


@needs_engine
def test_short_segments_are_left_out():
    q, k, v, grad, cu, projection = inputs(LENGTHS, 2, 64, 64)
    settings = SETTINGS["relu"]
    forward = native.forward(q, k, v, cu, projection, **settings, shortest=64)
    backward = native.backward(grad, q, k, v, cu, projection, **settings, shortest=64)
    whole = native.forward(q, k, v, cu, projection, **settings)
    assert forward is not None
    assert backward is not None
    assert whole is not None
    for x in (forward[0], *backward[:3]):
        assert not x[:18].any()
        assert x[18:].any()
    assert torch.equal(forward[0][18:], whole[0][18:])


@needs_engine
def test_strided_inputs_and_empty_packs():
    q, k, v, _, cu, projection = inputs([40], 2, 64, 64)
    together = torch.stack([q, k, v], dim=1)
    strides = together[:, 0], together[:, 1], together[:, 2]
    plain, strided = (native.forward(*x, cu, projection, **SETTINGS["relu"]) for x in ((q, k, v), strides))
    assert plain is not None
    assert strided is not None
    assert torch.equal(plain[0], strided[0])
    for lengths in ([], [0, 0]):
        empty = native.forward(q[:0], k[:0], v[:0], offsets(lengths), projection, **SETTINGS["relu"])
        assert empty is not None
        assert empty[0].shape == (0, 2, 64)


@needs_engine
def test_nothing_outside_the_tensors_is_touched():
    q, k, v, grad, cu, projection = inputs([40, 8], 2, 64, 64)
    settings = SETTINGS["relu"]
    for wrong in ([0, 40, 49], [-1, 40, 48], [0, 50, 48], [2**31 - 1, 48]):
        bad = torch.tensor(wrong, dtype=torch.int32)
        assert native.forward(q, k, v, bad, projection, **settings) is None
        assert native.backward(grad, q, k, v, bad, projection, **settings) is None
    assert native.forward(q, k[:-1], v, cu, projection, **settings) is None
    assert native.forward(q, k, v.float(), cu, projection, **settings) is None
    assert native.forward(q, k, v, cu, projection[:, :, :32], **settings) is None
    assert native.backward(grad[:-1], q, k, v, cu, projection, **settings) is None
    offset = Adaptation(offset=torch.zeros(1, 1, 63))
    assert native.forward(q, k, v, cu, projection, **settings, adaptation=offset) is None
    # entries that bf16 cannot hold would be rounded in silence
    assert native.forward(q, k, v, cu, projection * 1.001, **settings) is None


def test_what_is_refused_and_why():
    projection = torch.zeros(1, 64, 64)

    def reason(shape=(5, 2, 64), dtype=torch.bfloat16, rows=64, family="relu", causal=False, adaptation=NO_ADAPTATION):
        return native.supported(
            torch.zeros(shape, dtype=dtype), projection[:, :1].expand(1, rows, -1), family, causal, adaptation
        )

    assert "only bf16" in (reason(dtype=torch.float32) or "")
    assert "multiple of 32" in (reason(shape=(5, 2, 8)) or "")
    assert "512" in (reason(rows=513) or "")
    assert "'cosine'" in (reason(family="cosine") or "")
    assert "causal" in (reason(causal=True) or "")
    ones = torch.ones(1, 1, 64)
    scaled = Adaptation(ones, ones, torch.ones(1, 1))
    assert "scaled" in (reason(adaptation=scaled) or "")
    assert reason() == WHY_NOT


def test_without_a_library_there_is_a_reason(monkeypatch, tmp_path):
    native._library.cache_clear()
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    assert "not compiled" in (native._library()[1] or "")
    for suffix in native.EXTENSION_SUFFIXES:
        (tmp_path / f"_favor_amx{suffix}").write_text("this is no library")
    native._library.cache_clear()
    assert "cannot be loaded" in (native._library()[1] or "")
    native._library.cache_clear()

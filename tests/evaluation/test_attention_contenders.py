"""Contenders of the attention benchmark compute what they are timed for, and their memory is that of the call."""

from dataclasses import replace

import pytest
import torch

from protformer.attention import ExactAttention, SparseAttention
from protformer.evaluation.attention_benchmark.baselines import BASELINES, Baseline, pattern_pairs
from protformer.evaluation.attention_benchmark.benchmark import IMPLEMENTATIONS, Settings
from protformer.evaluation.attention_benchmark.cases import Case, call_of, make_inputs
from protformer.evaluation.attention_benchmark.contenders import MAPS, Exact, Hybrid, Performer, Sdpa, Softmax
from protformer.evaluation.attention_benchmark.memory import STATUS, peak_bytes
from protformer.surroundings import CHECKOUT

CASE = Case((40,), 2, 8, "float32", backward=False, causal=False, device="cpu")


def test_every_map_with_a_yaml_is_here():
    assert sorted(MAPS) == sorted(file.stem for file in (CHECKOUT / "conf" / "features").glob("*.yaml"))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("backward", [False, True])
def test_every_map_is_timed(name, backward):
    contender = Performer(name, 8)
    assert contender.obstacle(CASE) is None
    case = replace(CASE, backward=backward)
    out, *grads = call_of(contender.attend(case), make_inputs(case, "packed"))()
    assert [x.shape for x in (out, *grads)] == [(40, 2, 8)] * (4 if backward else 1)
    assert all(bool(x.isfinite().all()) for x in (out, *grads))
    assert contender.products(case) > 0
    assert contender.engine(case) in ("favor_chunked", "favor_native")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("layout", ["heads first", "view"])
def test_contenders_compute_the_same_attention(causal, layout):
    case = replace(CASE, causal=causal, backward=True)
    inputs = make_inputs(case, layout)
    packed = [x.detach().requires_grad_() for x in inputs.leaves]
    if layout == "heads first":
        packed = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in inputs.leaves]
    flat = [x.flatten(0, 1) for x in packed]
    wanted = ExactAttention(num_heads=2, head_dim=8, causal=causal)(*flat, case.offsets())
    for contender in (Sdpa(), Softmax()):
        out, grad, *_ = call_of(contender.attend(case), inputs)()
        assert torch.allclose(out.transpose(1, 2).flatten(0, 1), wanted, atol=1e-5)
        assert grad.shape == inputs.leaves[0].shape


@pytest.mark.parametrize("causal", [False, True])
def test_sdpa_pads_a_pack_and_sees_no_padding(causal):
    case = replace(CASE, lengths=(5, 9, 3), causal=causal)
    inputs = make_inputs(case, "heads first")
    (padded,) = call_of(Sdpa().attend(case), inputs)()
    pieces = [
        torch.cat([x[i, :, :length].transpose(0, 1) for i, length in enumerate(case.lengths)]) for x in inputs.leaves
    ]
    wanted = Exact().attend(case)(*pieces).split(case.lengths)
    for index, length in enumerate(case.lengths):
        assert torch.allclose(padded[index, :, :length].transpose(0, 1), wanted[index], atol=1e-5)


def test_hybrid_counts_exact_products_below_its_threshold():
    pack = replace(CASE, lengths=(100, 600))
    short, long = replace(CASE, lengths=(100,)), replace(CASE, lengths=(600,))
    hybrid, favor = Hybrid("positive", 8), Performer("positive", 8)
    assert hybrid.products(pack) == Exact().products(short) + favor.products(long)
    (out,) = call_of(hybrid.attend(pack), make_inputs(pack, "packed"))()
    assert out.shape == (700, 2, 8)
    assert "estimate softmax" in (Hybrid("relu", 8).obstacle(pack) or "")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_timed_where_it_is_named(name, causal):
    (contender,) = Settings(implementations=(name,)).contenders()
    case = replace(CASE, lengths=(150, 40), causal=causal, backward=True)
    if name == "linformer" and causal:
        assert "cannot be causal" in (contender.obstacle(case) or "")
        return
    assert contender.obstacle(case) is None
    made = call_of(contender.attend(case), make_inputs(case, "packed"))()
    assert [x.shape for x in made] == [(190, 2, 8)] * 4
    assert contender.products(case) > contender.products(replace(case, backward=False)) or name == "uniform"
    assert not any(isinstance(one, Baseline) for one in Settings().contenders(pack=True))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stride", [None, 1, 4, 50])
@pytest.mark.parametrize("pattern", ["strided", "fixed", "window"])
def test_pairs_of_a_pattern_are_those_that_it_sees(pattern, stride, causal):
    options = {"pattern": pattern, "stride": stride, "expressivity": 1, "window": 3, "global_tokens": 2}
    attention = SparseAttention(num_heads=1, head_dim=37, causal=causal, **options)
    for length in (1, 5, 16, 37):
        # a value of one letter for each token: the output says which were seen
        value = torch.eye(37)[:length, None]
        out = attention(value, value, value, torch.tensor([0, length], dtype=torch.int32))
        assert pattern_pairs(attention, length) == int((out > 0).sum())


@pytest.mark.slow  # importing them takes a second
@pytest.mark.parametrize("name", ["performer-pytorch", "performer-pytorch-relu", "torch-geometric-relu"])
def test_peers_compute_where_they_are_installed(name):
    (contender,) = IMPLEMENTATIONS[name](Settings(features=(8,)))
    if (reason := contender.obstacle(CASE)) is not None:
        pytest.skip(reason)
    for layout in contender.layouts:
        (out,) = call_of(contender.attend(CASE), make_inputs(CASE, layout))()
        assert out.isfinite().all()
        assert out.shape == (1, 2, 40, 8)


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="resident memory is read from /proc")
def test_the_peak_is_that_of_the_call():
    """Softmax written out keeps two matrices of length x length in the forward; sdpa none."""
    case = replace(CASE, lengths=(2048,))
    matrix = 2 * 2048 * 2048 * 4
    softmax, sdpa = (peak_bytes(contender, case, "heads first") for contender in (Softmax(), Sdpa()))
    assert softmax is not None
    assert sdpa is not None
    assert 1.9 * matrix < softmax < 3 * matrix
    assert sdpa < 0.5 * matrix

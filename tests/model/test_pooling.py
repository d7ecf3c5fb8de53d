"""Laws of pooling: specials are never pooled, and a segment pools the same wherever it stands."""

import pytest
import torch
from torch import Tensor

from protformer.model import Pooling, ResidueHead, SequenceHead

LENGTHS = [5, 2, 9, 3]
WIDTH = 6


def packed(seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(sum(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)


def make(pooling: str, **options) -> Pooling:
    torch.manual_seed(0)
    return Pooling(hidden_size=WIDTH, pooling=pooling, **options).double()  # pyright: ignore[reportArgumentType]


def test_mean_is_over_residues():
    x, cu = packed()
    pooled = make("mean")(x, cu)
    torch.testing.assert_close(pooled[0], x[1:4].mean(0))
    torch.testing.assert_close(pooled[3], x[17])
    torch.testing.assert_close(make("mean", specials=False)(x, cu)[0], x[:5].mean(0))


def test_attention_is_a_softmax_over_residues():
    x, cu = packed()
    pooling = make("attention")
    weights = pooling.score(x[8:15]).softmax(dim=0)
    torch.testing.assert_close(pooling(x, cu)[2], (weights * x[8:15]).sum(0))


def test_first_and_last_are_the_segments_rows():
    x, cu = packed()
    assert torch.equal(make("first")(x, cu), x[[0, 5, 7, 16]])
    assert torch.equal(make("last")(x, cu), x[[4, 6, 15, 18]])


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_specials_are_never_pooled(pooling):
    x, cu = packed()
    pool = make(pooling)
    expected = pool(x, cu)
    spoiled = x.clone()
    spoiled[[0, 4, 5, 6, 7, 15, 16, 18]] = 1e6
    torch.testing.assert_close(pool(spoiled, cu), expected)
    leaf = x.clone().requires_grad_()
    pool(leaf, cu).square().sum().backward()
    assert leaf.grad is not None
    assert torch.count_nonzero(leaf.grad[[0, 4, 5, 6, 7, 15, 16, 18]]) == 0


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_segment_of_specials_alone_pools_to_zero_with_a_finite_gradient(pooling):
    x, cu = packed()
    leaf = x.requires_grad_()
    pooled = make(pooling)(leaf, cu)
    assert torch.count_nonzero(pooled[1]) == 0
    pooled.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("specials", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "attention", "first", "last"])
def test_a_segment_pools_the_same_alone_and_packed(pooling, specials):
    x, cu = packed()
    pool = make(pooling, specials=specials)
    together = pool(x, cu)
    for i, (a, b) in enumerate(zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)):
        alone = pool(x[a:b], torch.tensor([0, b - a], dtype=torch.int32))
        torch.testing.assert_close(alone[0], together[i])


def test_attention_survives_huge_scores_and_half_precision():
    x, cu = packed()
    assert make("attention")(x * 1e4, cu).isfinite().all()
    long = torch.ones(3000, WIDTH, dtype=torch.bfloat16)
    offsets = torch.tensor([0, 3000], dtype=torch.int32)
    for pooling in ("mean", "attention"):
        pooled = make(pooling).bfloat16()(long, offsets)
        torch.testing.assert_close(pooled.float(), torch.ones(1, WIDTH), rtol=1e-2, atol=0)


def test_an_unknown_pooling_is_named():
    # (the shape checks see the wrong literal before the constructor does, and theirs is a TypeError)
    with pytest.raises((ValueError, TypeError), match="sum"):
        make("sum")


def test_heads_give_a_row_a_segment_and_a_row_a_residue():
    x, cu = packed()
    head = SequenceHead(hidden_size=WIDTH, outputs=3, pooling="attention").double().eval()
    assert head(x, cu).shape == (4, 3)
    assert ResidueHead(hidden_size=WIDTH, outputs=3).double().eval()(x).shape == (19, 3)

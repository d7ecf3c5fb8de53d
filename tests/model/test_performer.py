"""The library door: `Performer` over continuous inputs, as its users call it."""

import pytest
import torch

from protformer import Performer


@pytest.fixture(scope="module")
def performer() -> Performer:
    torch.manual_seed(0)
    return Performer(embed_dim=287, hidden_size=256, num_features=64, num_layers=4, num_heads=4, dropout=0.1).eval()


def small(**options) -> Performer:
    torch.manual_seed(0)
    defaults = {"hidden_size": 16, "num_features": 8, "num_layers": 2, "num_heads": 2, "dropout": 0.0}
    return Performer(5, **{**defaults, **options}).eval()


def test_as_the_readme_calls_it(performer):
    out = performer(torch.randn(3, 20, 287))
    assert out.shape == (3, 256)
    assert out.isfinite().all()
    assert performer.output_size == 256
    assert performer.param_count == sum(p.numel() for p in performer.parameters())


def test_orthogonal_features_of_the_class_and_of_an_instance(performer):
    projection = Performer.orthogonal_features(64, 32)
    assert projection.shape == (64, 32)
    assert torch.equal(projection, performer.orthogonal_features(num_features=64, head_dim=32))
    assert not torch.equal(projection, Performer.orthogonal_features(64, 32, seed=1))
    for block in projection.split(32):
        gram = block @ block.T
        assert (gram - gram.diag().diag()).abs().max() < 1e-3


def test_recommended_defaults_name_arguments_that_exist(performer):
    defaults = Performer.recommended_defaults()
    assert defaults == performer.recommended_defaults()
    small(dropout=defaults["dropout"], num_features=defaults["num_features"])
    torch.optim.AdamW(
        performer.parameters(),
        lr=defaults["learning_rate"],
        betas=defaults["betas"],
        eps=defaults["eps"],
        weight_decay=defaults["weight_decay"],
    )


@pytest.mark.parametrize("features", ["positive", "relu"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean", "attention", "first"])
def test_a_row_with_padding_equals_that_row_alone(pooling, causal, features):
    model = small(pooling=pooling, causal=causal, features=features)
    x = torch.randn(3, 9, 5)
    lengths = torch.tensor([9, 1, 4])
    out = model(x, lengths)
    for i, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(model(x[i : i + 1, :length])[0], out[i], rtol=1e-4, atol=1e-5)
    spoiled = x.clone()
    spoiled[1, 1:], spoiled[2, 4:] = float("nan"), float("inf")
    assert torch.equal(model(spoiled, lengths), out)
    torch.testing.assert_close(model(x, torch.tensor([9, 9, 9])), model(x))


def test_padding_gets_no_gradient_and_everything_else_does():
    model = small(pooling="mean").train()
    x = torch.randn(2, 6, 5, requires_grad=True)
    model(x, torch.tensor([6, 2])).square().sum().backward()
    assert x.grad is not None
    assert torch.count_nonzero(x.grad[1, 2:]) == 0
    assert (x.grad[0].abs().sum(1) > 0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_last_position_sees_all_and_causal_first_sees_itself():
    model = small(pooling="first", causal=True)
    x = torch.randn(1, 6, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x).square().sum(), x)
    assert torch.count_nonzero(grad[:, 1:]) == 0


def test_state_dict_round_trip():
    model, other = small(), small(seed=7)
    torch.manual_seed(1)
    x = torch.randn(2, 7, 5)
    assert not torch.equal(model(x), other(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))


def test_redraw_changes_the_features_and_comes_back():
    model = small()
    x = torch.randn(2, 7, 5)
    before = model(x)
    model.redraw_(1)
    assert not torch.equal(model(x), before)
    model.redraw_(0)
    assert torch.equal(model(x), before)


def test_what_cannot_be_is_told():
    model = small()
    with pytest.raises(ValueError, match="length 0"):
        model(torch.randn(2, 0, 5))
    for lengths in ([0, 3], [3, 8]):
        with pytest.raises(ValueError, match="from 1 to 7"):
            model(torch.randn(2, 7, 5), torch.tensor(lengths))
    with pytest.raises(ValueError, match="'positive' or 'relu'"):
        small(features="cosine")


def test_an_empty_batch_gives_an_empty_output():
    for pooling in ("last", "mean"):
        assert small(pooling=pooling)(torch.randn(0, 7, 5)).shape == (0, 16)

"""Laws of the block and the encoder: packing changes nothing, the future is not seen, rotation is relative."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor

from protformer.attention import (
    ExactAttention,
    FavorAttention,
    HybridAttention,
    ReformerAttention,
    SparseAttention,
    UniformAttention,
)
from protformer.features import GeneralizedFeatures, HyperbolicFeatures, PositiveFeatures
from protformer.model import Encoder, LanguageModelHead, ProteinEncoder, ProteinModel
from protformer.model.block import Block
from protformer.model.rotary import Rotary, rotate, segment_positions

LENGTHS = [7, 2, 12, 3]
CLS, EOS, MASK = 0, 2, 32
ATTENTIONS = {
    "exact": lambda causal: lambda **shape: ExactAttention(**shape, causal=causal),
    "hybrid": lambda causal: (
        lambda **shape: HybridAttention(
            **shape, features=lambda **s: PositiveFeatures(num_features=16, **s), causal=causal, threshold=9
        )
    ),
    "positive": lambda causal: (
        lambda **shape: FavorAttention(
            **shape, features=lambda **s: PositiveFeatures(num_features=16, **s), causal=causal
        )
    ),
    "hyperbolic": lambda causal: (
        lambda **shape: FavorAttention(
            **shape, features=lambda **s: HyperbolicFeatures(num_features=16, **s), causal=causal
        )
    ),
    "relu": lambda causal: (
        lambda **shape: FavorAttention(
            **shape, features=lambda **s: GeneralizedFeatures(num_features=16, **s), causal=causal
        )
    ),
    "reformer": lambda causal: lambda **shape: ReformerAttention(**shape, bucket_size=6, causal=causal),
    "strided": lambda causal: lambda **shape: SparseAttention(**shape, pattern="strided", causal=causal),
    "fixed": lambda causal: (
        lambda **shape: SparseAttention(**shape, pattern="fixed", stride=4, expressivity=1, causal=causal)
    ),
    "window": lambda causal: lambda **shape: SparseAttention(**shape, pattern="window", window=2, causal=causal),
    "uniform": lambda causal: lambda **shape: UniformAttention(**shape, causal=causal),
}


def make(attention: str, *, causal: bool = False, token_dropout: bool = False, **options) -> ProteinModel:
    torch.manual_seed(0)
    encoder = Encoder(hidden_size=16, num_layers=2, num_heads=2, attention=ATTENTIONS[attention](causal), **options)
    trunk = ProteinEncoder(encoder=encoder, token_dropout=token_dropout)
    model = ProteinModel(trunk=trunk, head=LanguageModelHead(hidden_size=16))
    with torch.no_grad():  # as initialised queries and keys are so small that attention is nearly uniform
        for block in encoder.blocks:
            assert isinstance(block, Block)
            for layer in (block.query, block.key):
                layer.weight.mul_(3.0)
    return model.double().eval()


def sequences(lengths: list[int] = LENGTHS, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        tokens = torch.randint(4, 24, (length,), generator=generator)
        tokens[torch.rand(length, generator=generator) < 0.25] = MASK
        tokens[0], tokens[-1] = CLS, EOS
        made.append(tokens)
    return made


def offsets(tokens: list[Tensor]) -> Tensor:
    return torch.tensor([0, *torch.tensor([len(t) for t in tokens]).cumsum(0).tolist()], dtype=torch.int32)


def outputs(model: ProteinModel, tokens: list[Tensor]) -> list[Tensor]:
    """Logits of each sequence of the pack."""
    cu = offsets(tokens)
    logits = model.read(model(torch.cat(tokens), cu), cu)
    return list(logits.split([len(t) for t in tokens]))


@pytest.mark.parametrize("token_dropout", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_sequence_gives_the_same_output_alone_packed_and_anywhere_in_the_pack(attention, causal, token_dropout):
    model = make(attention, causal=causal, token_dropout=token_dropout)
    tokens = sequences()
    together = outputs(model, tokens)
    for sequence, output in zip(tokens, together, strict=True):
        torch.testing.assert_close(outputs(model, [sequence])[0], output, rtol=1e-9, atol=1e-10)
    order = [2, 0, 3, 1]
    for i, output in zip(order, outputs(model, [tokens[i] for i in order]), strict=True):
        torch.testing.assert_close(output, together[i], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("attention", ["exact", "positive"])
def test_rows_taken_a_few_at_a_time_in_inference_give_the_same_output(monkeypatch, attention):
    model, tokens = make(attention), sequences()
    rows: list[int] = []
    block = model.trunk.encoder.blocks[0]
    assert isinstance(block, Block)
    block.expand.register_forward_hook(lambda layer, inputs, output: rows.append(len(output)))
    whole = outputs(model, tokens)
    monkeypatch.setattr("protformer.model.block._PIECE", 5)
    with torch.no_grad():
        pieces = outputs(model, tokens)
    outputs(model, tokens)  # (a gradient is wanted: whole)
    assert rows == [24, 5, 5, 5, 5, 4, 24]
    for output, expected in zip(pieces, whole, strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_what_stands_beside_a_sequence_does_not_matter_to_its_gradient_either(attention):
    model = make(attention)
    tokens = sequences()
    gradients = []
    for pack, index in ((tokens, 2), ([tokens[2]], 0)):
        model.zero_grad()
        outputs(model, pack)[index].square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_no_row_sees_another_sequence_and_causal_rows_see_no_future(attention):
    for causal in (True, False):
        model = make(attention, causal=causal)
        tokens, cu = torch.cat(sequences()), offsets(sequences())
        embedded = model.trunk.embedding(tokens).detach().requires_grad_()
        hidden = model.trunk.encoder(embedded, cu)
        start, stop = int(cu[2]), int(cu[3])
        row = start + 4
        # (a plain sum over a layer-normed row is nearly constant: weigh the entries)
        weight = torch.randn(hidden.shape[1], dtype=hidden.dtype, generator=torch.Generator().manual_seed(2))
        (grad,) = torch.autograd.grad((hidden[row] * weight).sum(), embedded)
        seen = grad.abs().sum(dim=1) > 0
        expected = torch.zeros_like(seen)
        expected[start : row + 1 if causal else stop] = True
        assert torch.equal(seen, expected)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_causal_outputs_do_not_change_when_the_future_does(attention):
    model = make(attention, causal=True)
    tokens = sequences([12])
    changed = [tokens[0].clone()]
    changed[0][6:] = torch.randint(4, 24, (6,), generator=torch.Generator().manual_seed(9))
    before, after = outputs(model, tokens)[0], outputs(model, changed)[0]
    torch.testing.assert_close(before[:6], after[:6], rtol=1e-9, atol=1e-10)
    assert not torch.allclose(before[6:], after[6:])


def test_token_dropout_is_a_scale_of_each_sequence_by_itself():
    model = make("exact", token_dropout=True)
    tokens = sequences([10, 20])
    cu = offsets(tokens)
    scale = model.trunk._token_dropout_scale(torch.cat(tokens), cu)
    for sequence, part in zip(tokens, scale.split([10, 20]), strict=True):
        share = (sequence == MASK).double().mean()
        expected = torch.where(sequence == MASK, 0.0, (1 - 0.12) / (1 - share))
        torch.testing.assert_close(part.double(), expected.double(), rtol=1e-6, atol=0)
    only_masks = torch.full((4,), MASK)
    assert outputs(model, [only_masks])[0].isfinite().all()


def test_rotation_equals_multiplication_by_complex_phases():
    total, heads, dim = 9, 2, 8
    x = torch.randn(total, heads, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 1000])
    turned = rotate(x, *Rotary(head_dim=dim)(positions))
    # half-rotation: entry j pairs with entry j + dim / 2, and turns by position * base^(-2 j / dim)
    frequencies = 10_000.0 ** (-2.0 * torch.arange(dim // 2, dtype=torch.float64) / dim)
    pairs = torch.complex(x[..., : dim // 2], x[..., dim // 2 :])
    phases = torch.polar(torch.ones(total, dim // 2, dtype=torch.float64), positions[:, None] * frequencies)
    expected = pairs * phases[:, None, :]
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], dim=-1), rtol=1e-4, atol=1e-4)


def test_rotated_products_depend_on_relative_position_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 16, dtype=torch.float64, generator=generator)
    rotary = Rotary(head_dim=16)

    def product(i: int, j: int) -> Tensor:
        turned_q = rotate(q, *rotary(torch.tensor([i])))
        turned_k = rotate(k, *rotary(torch.tensor([j])))
        return (turned_q * turned_k).sum()

    for shift in (1, 50, 3000):
        torch.testing.assert_close(product(7 + shift, 3 + shift), product(7, 3), rtol=1e-3, atol=1e-3)
    assert not torch.isclose(product(8, 3), product(7, 3), rtol=1e-2)
    torch.testing.assert_close(rotate(q, *rotary(torch.tensor([500]))).norm(), q.norm(), rtol=1e-6, atol=0)


def test_positions_count_from_zero_in_every_segment_and_skip_empty_ones():
    segments, positions = segment_positions(torch.tensor([0, 3, 3, 5], dtype=torch.int32), 5)
    assert segments.tolist() == [0, 0, 0, 2, 2]
    assert positions.tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("offsets", [[0, 4], [0, 4, 9], [1, 5], [0, 4, 3, 5], []])
def test_offsets_of_another_pack_are_refused(offsets):
    with pytest.raises(ValueError, match="rise from 0 to the 5 rows"):
        segment_positions(torch.tensor(offsets, dtype=torch.int32), 5)


def test_half_precision_inputs_keep_fp32_angles():
    x = torch.randn(1, 1, 16).bfloat16()
    turned = rotate(x, *Rotary(head_dim=16)(torch.tensor([4001])))
    assert turned.dtype == torch.bfloat16
    exact = rotate(x.float(), *Rotary(head_dim=16)(torch.tensor([4001])))
    torch.testing.assert_close(turned.float(), exact, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("attention", ["exact", "positive"])
def test_a_model_cast_to_half_precision_keeps_its_rotary_frequencies(attention):
    encoder = make(attention).trunk.encoder
    expected = encoder.rotary.inv_freq.float().clone()
    encoder.bfloat16()
    torch.testing.assert_close(encoder.rotary.inv_freq.float(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("attention", ["exact", "positive"])
def test_checkpointed_activations_give_the_same_gradients(attention):
    gradients = []
    for checkpoint_activations in (False, True):
        model = make(attention, dropout=0.3, checkpoint_activations=checkpoint_activations).train()
        torch.manual_seed(4)
        torch.stack([logits.square().sum() for logits in outputs(model, sequences())]).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert any(g is not None and g.abs().sum() > 0 for g in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_layers_have_different_projections_and_a_draw_can_be_made_again():
    encoder = make("positive").trunk.encoder.float()

    def projections() -> list[Tensor]:
        return [a.features.projection.clone() for a in encoder.attentions if isinstance(a, FavorAttention)]

    first = projections()
    assert not torch.equal(first[0], first[1])
    encoder.redraw_(3)
    assert encoder.draw == 3
    assert not any(torch.equal(a, b) for a, b in zip(first, projections(), strict=True))
    encoder.redraw_(0)
    assert all(torch.equal(a, b) for a, b in zip(first, projections(), strict=True))


def test_wrong_shapes_are_refused_at_construction():
    with pytest.raises(ValueError, match="multiple of num_heads"):
        Encoder(hidden_size=10, num_layers=1, num_heads=4, attention=ATTENTIONS["exact"](False))
    with pytest.raises(ValueError, match="even"):
        Encoder(hidden_size=9, num_layers=1, num_heads=3, attention=ATTENTIONS["exact"](False))


@pytest.mark.slow  # a compiler, in a process of its own
def test_a_whole_performer_compiles_without_a_graph_break():
    # in a process of its own: jaxtyping's hook wraps every function, and a compiler cannot see through it
    program = """
        import torch
        from protformer import Performer
        from tests.model.test_encoder import make, offsets, sequences

        tokens, cu = torch.cat(sequences()), offsets(sequences())
        for causal in (False, True):
            model = make("positive", causal=causal, token_dropout=True).train()

            def step(tokens, cu):
                return model.read(model(tokens, cu), cu).square().mean()

            expected = step(tokens, cu)
            expected.backward()
            expected_grad = model.trunk.embedding.weight.grad.clone()
            model.zero_grad()
            loss = torch.compile(step, fullgraph=True, backend="aot_eager")(tokens, cu)
            loss.backward()
            torch.testing.assert_close(loss, expected)
            torch.testing.assert_close(model.trunk.embedding.weight.grad, expected_grad)

        door = Performer(5, hidden_size=16, num_features=8, num_layers=1, num_heads=2).eval()
        x = torch.randn(2, 7, 5)
        torch.testing.assert_close(torch.compile(door, fullgraph=True, backend="eager")(x), door(x))
    """
    environment = {**os.environ, "PROTFORMER_SHAPE_CHECKS": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]

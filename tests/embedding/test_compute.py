"""The laws of embedding: batched = alone, order and budget change nothing, specials are never pooled."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from protformer.data.alphabet import CLS, EOS, encode
from protformer.embedding import Embedder, Options
from protformer.embedding.windows import plan_batches
from protformer.errors import ProtformerError

GENERATOR = np.random.default_rng(0)
LENGTHS = [1, 700, 3, 64, 1, 12, 300, 40, 5, 5, 90, 2]
SEQUENCES = [encode("".join(GENERATOR.choice(list("LAGVSERTIDPKQNFYMHWCX"), length))) for length in LENGTHS]


def embedder(model, batch_tokens=4096, **wanted) -> Embedder:
    windowing = {name: wanted.pop(name) for name in ("max_length", "overlap") if name in wanted}
    options = Options(batch_tokens=batch_tokens, **wanted)
    outputs = options.outputs(hidden_size=16, num_layers=2)
    return Embedder(model, outputs, batch_tokens=batch_tokens, precision=options.precision, **windowing)


def vectors(make: Embedder, sequences: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Where every sequence has some."""
    made = make(sequences)
    return [one for one in made if not isinstance(one, str)] if not any(isinstance(x, str) for x in made) else []


@pytest.mark.parametrize("attention", ["performer", "exact"])
def test_batched_is_alone_in_any_order(attention, tiny_model):
    wanted = {"per_residue": True, "pool": ("mean", "max", "cls"), "layers": (0, 1, -1), "logits": True}
    model = tiny_model(attention)
    alone = [vectors(embedder(model, **wanted), [x])[0] for x in SEQUENCES]
    assert alone[1]["residues_layer1"].shape == (700, 16)
    assert alone[1]["logits"].shape == (700, 33)
    assert alone[0]["mean_layer0"].shape == (16,)
    order = np.random.default_rng(1).permutation(len(SEQUENCES))
    for batch_tokens in (1, 50, 400, 10_000):
        batched = vectors(embedder(model, batch_tokens, **wanted), [SEQUENCES[i] for i in order])
        for index, other in zip(order, batched, strict=True):
            assert list(other) == list(alone[index])
            for name, one in alone[index].items():
                assert one.dtype == other[name].dtype == np.float32
                np.testing.assert_allclose(other[name], one, atol=1e-5, rtol=0)


def test_vectors_are_the_trunk_states_without_specials(tiny_model):
    model = tiny_model()
    make = embedder(model, per_residue=True, pool=("mean", "max", "cls"), logits=True)
    (found,) = vectors(make, [SEQUENCES[5]])
    tokens = torch.tensor([CLS, *SEQUENCES[5].tolist(), EOS])
    cu_seqlens = torch.tensor([0, len(tokens)], dtype=torch.int32)
    with torch.no_grad():
        hidden = model(tokens, cu_seqlens)
        logits = model.read(hidden, cu_seqlens)
    expected = {"residues": hidden[1:-1], "mean": hidden[1:-1].mean(0), "max": hidden[1:-1].amax(0), "cls": hidden[0]}
    for name, value in {**expected, "logits": logits[1:-1]}.items():
        np.testing.assert_allclose(found[name], value.numpy(), atol=1e-6)


def test_layers_are_numbered_as_esm_does(tiny_model):
    model = tiny_model()
    (found,) = vectors(embedder(model, per_residue=True, layers=(0, 1, 2, -1, -3)), [SEQUENCES[5]])
    assert list(found) == ["residues_layer0", "residues_layer1", "residues_layer2"]  # -1 is 2, -3 is 0
    tokens = torch.tensor([CLS, *SEQUENCES[5].tolist(), EOS])
    cu_seqlens = torch.tensor([0, len(tokens)], dtype=torch.int32)
    kept = []
    handles = [block.register_forward_hook(lambda *x: kept.append(x[2])) for block in model.trunk.encoder.blocks]
    with torch.no_grad():
        final = model(tokens, cu_seqlens)
    for handle in handles:
        handle.remove()
    np.testing.assert_allclose(found["residues_layer1"], kept[0][1:-1].numpy(), atol=1e-6)
    np.testing.assert_allclose(found["residues_layer2"], final[1:-1].numpy(), atol=1e-6)
    with pytest.raises(ProtformerError, match="2 layers"):
        embedder(model, layers=(3,))


@pytest.mark.parametrize(("longest", "overlap"), [(64, 0), (64, 16), (50, 49), (699, 100)])
def test_windows_cover_each_residue_once(longest, overlap, tiny_model):
    wanted = {"per_residue": True, "pool": ("mean", "max")}
    make = embedder(tiny_model("exact"), max_length=longest, overlap=overlap, **wanted)
    pieces = make._pieces(0, 700)
    assert pieces[0].start == pieces[0].first == 0
    assert pieces[-1].stop == pieces[-1].last == 700
    for one, other in pairwise(pieces):
        assert one.last == other.first
        assert one.stop - other.start >= overlap
    assert all(p.stop - p.start == longest and p.start <= p.first < p.last <= p.stop for p in pieces)
    (found,) = vectors(make, [SEQUENCES[1]])
    np.testing.assert_allclose(found["mean"], found["residues"].mean(0), atol=1e-6)
    np.testing.assert_allclose(found["max"], found["residues"].max(0), atol=0)
    piece = pieces[1]
    (window,) = vectors(embedder(tiny_model("exact"), per_residue=True), [SEQUENCES[1][piece.start : piece.stop]])
    expected = window["residues"][piece.first - piece.start : piece.last - piece.start]
    np.testing.assert_allclose(found["residues"][piece.first : piece.last], expected, atol=1e-5)
    assert vectors(make, [SEQUENCES[3]])[0]["residues"].shape == (64, 16)


def test_bf16_is_near_and_finite(tiny_model):
    model = tiny_model()
    full, half = (vectors(embedder(model, precision=name), SEQUENCES) for name in ("fp32", "bf16"))
    for one, other in zip(full, half, strict=True):
        assert other["mean"].dtype == np.float32
        assert np.linalg.norm(one["mean"] - other["mean"]) < 0.05 * np.linalg.norm(one["mean"])


@pytest.mark.parametrize("windowing", [{}, {"max_length": 50, "overlap": 20}])
def test_every_residue_is_told_once(windowing, tiny_model):
    seen: list[int] = []
    embedder(tiny_model(), 100, **windowing)(SEQUENCES, seen.append)
    assert sum(seen) == sum(LENGTHS)


def short_of_memory(model, most: int, error: Exception) -> list[int]:
    """Makes the model fail above `most` tokens; the sizes of the packs that it was given."""
    given: list[int] = []
    states = model.trunk.states

    def limited(tokens, cu_seqlens, layers):
        given.append(len(tokens))
        if len(tokens) > most:
            raise error
        return states(tokens, cu_seqlens, layers)

    model.trunk.states = limited
    return given


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_and_drops_nothing(error, tiny_model):
    expected = vectors(embedder(tiny_model()), SEQUENCES)
    model = tiny_model()
    given = short_of_memory(model, 110, error)
    make = embedder(model)
    found = make(SEQUENCES)
    assert max(given) > 1000
    assert make.retried > 2
    for length, one, other in zip(LENGTHS, expected, found, strict=True):
        if length + 2 > 110:
            assert other == f"{length:,} residues do not fit into memory"
        else:
            assert not isinstance(other, str)
            np.testing.assert_allclose(other["mean"], one["mean"], atol=1e-5)


def test_what_is_longer_than_the_attention_takes_is_named_and_windows_take_it(tiny_model):
    model = tiny_model("linformer")
    found = embedder(model)(SEQUENCES)
    for length, made in zip(LENGTHS, found, strict=True):
        if length > 90:
            assert str(made).startswith(f"{length} residues, and this model's attention takes at most 90: --on-long")
        else:
            assert not isinstance(made, str)
    assert len(vectors(embedder(model, max_length=90), SEQUENCES)) == len(SEQUENCES)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny_model):
    model = tiny_model()
    short_of_memory(model, 110, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        embedder(model)(SEQUENCES)


def test_numbers_that_are_not_finite_are_told(tiny_model):
    model = tiny_model("exact")
    with torch.no_grad():
        model.trunk.embedding.weight[24] = torch.nan  # X
    (bad, good) = embedder(model)([encode("MKX"), encode("MKV")])
    assert bad == "the model gave numbers that are not finite"
    assert not isinstance(good, str)
    assert np.isfinite(good["mean"]).all()


@pytest.mark.parametrize("budget", [1, 7, 100, 10_000])
def test_batches_hold_everything_once_within_the_budget(budget):
    lengths = np.array(LENGTHS) + 2
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(lengths[batch].sum() <= budget or len(batch) == 1 for batch in batches)


def test_what_cannot_be_is_refused(tiny_model):
    with pytest.raises(ValueError, match="eval"):
        embedder(tiny_model().train())
    with pytest.raises(ProtformerError, match="logits"):
        embedder(tiny_model(head="sequence"), logits=True)

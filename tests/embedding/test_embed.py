"""The laws of embedding: batched = alone, order and budget change nothing, specials are never pooled."""

import numpy as np
import pytest
import torch

from protformer.data.alphabet import CLS, EOS
from protformer.data.corpus import Corpus
from protformer.embedding import choose_device, embed_corpus
from protformer.embedding.embed import plan_batches, plan_windows
from protformer.errors import ProtformerError

GENERATOR = np.random.default_rng(0)
LENGTHS = [1, 700, 3, 64, 1, 12, 300, 40, 5, 5, 90, 2]
SEQUENCES = ["".join(GENERATOR.choice(list("LAGVSERTIDPKQNFYMHWCX"), length)) for length in LENGTHS]
CORPUS = Corpus.from_sequences([f"p{i}" for i in range(len(SEQUENCES))], SEQUENCES)


@pytest.mark.parametrize("per_residue", [False, True])
@pytest.mark.parametrize("attention", ["performer", "exact"])
def test_batched_is_alone(attention, per_residue, tiny_model):
    model = tiny_model(attention)
    alone = [next(embed_corpus(model, CORPUS.subset([i]), per_residue=per_residue)) for i in range(len(CORPUS))]
    for batch_tokens in (1, 50, 400, 10_000):
        batched = list(embed_corpus(model, CORPUS, per_residue=per_residue, batch_tokens=batch_tokens))
        assert len(batched) == len(alone)
        for index, (one, other) in enumerate(zip(alone, batched, strict=True)):
            assert one.shape == other.shape == ((LENGTHS[index], 16) if per_residue else (16,))
            assert one.dtype == other.dtype == np.float32
            np.testing.assert_allclose(other, one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["performer", "exact"])
def test_order_changes_nothing(attention, tiny_model):
    model = tiny_model(attention)
    vectors = list(embed_corpus(model, CORPUS, batch_tokens=200))
    order = np.random.default_rng(1).permutation(len(CORPUS))
    shuffled = list(embed_corpus(model, CORPUS.subset(order), batch_tokens=200))
    for place, index in enumerate(order.tolist()):
        np.testing.assert_allclose(shuffled[place], vectors[index], atol=1e-5, rtol=0)


def test_vectors_are_the_trunk_states_without_specials(tiny_model):
    model = tiny_model(head="sequence")
    (matrix,) = embed_corpus(model, CORPUS.subset([5]), per_residue=True)
    (vector,) = embed_corpus(model, CORPUS.subset([5]))
    tokens = torch.tensor([CLS, *CORPUS.sequence(5).tolist(), EOS])
    with torch.no_grad():
        hidden = model(tokens, torch.tensor([0, len(tokens)], dtype=torch.int32))
    np.testing.assert_allclose(matrix, hidden[1:-1].numpy(), atol=1e-6)
    np.testing.assert_allclose(vector, hidden[1:-1].mean(0).numpy(), atol=1e-6)


def test_bf16_is_near_and_finite(tiny_model):
    model = tiny_model()
    for one, other in zip(embed_corpus(model, CORPUS), embed_corpus(model, CORPUS, precision="bf16"), strict=True):
        assert other.dtype == np.float32
        assert np.linalg.norm(one - other) < 0.05 * np.linalg.norm(one)


def test_every_residue_is_told_once(tiny_model):
    seen: list[int] = []
    list(embed_corpus(tiny_model(), CORPUS, batch_tokens=100, on_batch=seen.append))
    assert sum(seen) == sum(LENGTHS)


@pytest.mark.parametrize("budget", [1, 7, 100, 10_000])
def test_batches_hold_everything_once_within_the_budget(budget):
    lengths = np.array(LENGTHS) + 2
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(lengths[batch].sum() <= budget or len(batch) == 1 for batch in batches)
    windows = list(plan_windows(lengths, budget))
    assert [index for window in windows for index in window] == list(range(len(lengths)))
    assert all(lengths[window.start : window.stop].sum() <= budget or len(window) == 1 for window in windows)


def test_training_mode_is_refused(tiny_model):
    with pytest.raises(ValueError, match="eval"):
        embed_corpus(tiny_model().train(), CORPUS)


def test_a_gpu_that_is_not_there_is_named():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ProtformerError, match="no GPU"):
            choose_device("cuda")

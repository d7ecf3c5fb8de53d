"""Pseudo-perplexity: the packed passes equal the formula written out, and nothing else of the file matters."""

import numpy as np
import pytest
import torch

from protformer.data.alphabet import CLS, EOS, IS_STANDARD, MASK
from protformer.data.corpus import Corpus
from protformer.errors import ProtformerError
from protformer.scoring import LanguageModel, Score, load_language_model, passes, score_corpus
from protformer.scoring.perplexity import passes_of, residues_to_compute

GENERATOR = np.random.default_rng(0)
LENGTHS = [1, 30, 3, 14, 1, 6, 19]
SEQUENCES = ["".join(GENERATOR.choice(list("LAGVSERTIDPKQNFYMHWCXB"), length)) for length in LENGTHS]
SEQUENCES[0] = "M"
SEQUENCES[4] = "X"
CORPUS = Corpus.from_sequences([f"p{i}" for i in range(len(SEQUENCES))], SEQUENCES)
ATTENTIONS = ["exact", "performer", "causal", "causal performer"]


@torch.no_grad()
def log_p(language_model: LanguageModel, tokens: list[int]) -> torch.Tensor:
    """Of every token in every row of one sequence."""
    model, cu_seqlens = language_model.model, torch.tensor([0, len(tokens)], dtype=torch.int32)
    return model.read(model(torch.tensor(tokens), cu_seqlens), cu_seqlens).log_softmax(dim=1)


def by_hand(language_model: LanguageModel, residues: np.ndarray) -> float:
    """The mean log-likelihood, one masked sequence at a time."""
    terms = []
    whole = [CLS, *residues.tolist(), EOS]
    for place in np.flatnonzero(IS_STANDARD[residues]).tolist():
        if language_model.next_residue:
            terms.append(log_p(language_model, whole)[place, residues[place]])
        else:
            masked = [*whole[: place + 1], MASK, *whole[place + 2 :]]
            terms.append(log_p(language_model, masked)[place + 1, residues[place]])
    return float(torch.stack(terms).double().mean())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_packed_equals_one_masked_sequence_at_a_time(attention, language_model):
    model = language_model(attention, batch_tokens=100)
    assert model.next_residue == attention.startswith("causal")
    for index, score in enumerate(score_corpus(model, CORPUS, passes=None)):
        residues = CORPUS.sequence(index)
        assert score.scored == IS_STANDARD[residues].sum()
        if score.scored:
            assert score.mean_log_likelihood == pytest.approx(by_hand(model, residues), abs=1e-5)
            assert score.perplexity == pytest.approx(np.exp(-score.mean_log_likelihood))
            assert score.method == ("next_residue" if model.next_residue else "exact")
        else:
            assert np.isnan(score.mean_log_likelihood)
            assert "standard residue" in str(score.failure)


@pytest.mark.parametrize("count", [None, 1, 4])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_alone_is_batched_is_shuffled(attention, count, language_model):
    def likelihoods(corpus: Corpus, batch_tokens: int) -> list[float]:
        model = language_model(attention, batch_tokens=batch_tokens)
        return [score.mean_log_likelihood for score in score_corpus(model, corpus, passes=count)]

    alone = [likelihoods(CORPUS.subset([index]), 1)[0] for index in range(len(CORPUS))]
    assert np.isnan(alone).tolist() == [index == 4 for index in range(len(CORPUS))]
    for batch_tokens in (40, 600):
        np.testing.assert_allclose(likelihoods(CORPUS, batch_tokens), alone, atol=1e-5, rtol=0)
    order = np.random.default_rng(1).permutation(len(CORPUS))
    np.testing.assert_allclose(likelihoods(CORPUS.subset(order), 64), np.array(alone)[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 4, 25, 30, 1000])
def test_passes_ask_for_each_residue_once_and_hide_no_more_than_that(count):
    residues = CORPUS.sequence(1)
    standard = np.flatnonzero(IS_STANDARD[residues])
    found = list(passes_of(residues, passes=count, protein=1))
    assert len(found) == min(count, len(standard))
    assert sorted(np.concatenate([one.rows for one in found]).tolist()) == (standard + 1).tolist()
    sizes = [len(one.rows) for one in found]
    assert max(sizes) - min(sizes) <= 1
    for one in found:
        assert np.flatnonzero(one.tokens == MASK).tolist() == one.rows.tolist()
        assert one.targets.tolist() == residues[one.rows - 1].tolist()
        others = np.setdiff1d(np.arange(len(residues)), one.rows - 1)
        assert one.tokens[others + 1].tolist() == residues[others].tolist()


def test_a_pass_for_each_residue_is_exact(language_model):
    model = language_model()
    exact = list(score_corpus(model, CORPUS, passes=None))
    enough = list(score_corpus(model, CORPUS, passes=30))
    few = list(score_corpus(model, CORPUS, passes=6))
    assert [score.method for score in enough] == ["exact"] * len(CORPUS)
    assert [score.method for score in few] == ["passes=6" if s.scored > 6 else "exact" for s in few]
    for one, other, third in zip(exact, enough, few, strict=True):
        if one.scored:
            assert other.mean_log_likelihood == pytest.approx(one.mean_log_likelihood, abs=1e-6)
        if one.scored > 6:
            assert 1e-6 < abs(third.mean_log_likelihood - one.mean_log_likelihood) < 1


def test_the_seed_deals_the_residues():
    sets = [[one.rows.tolist() for one in passes_of(CORPUS.sequence(1), passes=5, seed=seed)] for seed in (0, 0, 1)]
    assert sets[0] == sets[1] != sets[2]


@pytest.mark.parametrize(("attention", "count"), [("exact", None), ("exact", 4), ("causal", 4)])
def test_the_cost_is_told_before(attention, count, language_model):
    model = language_model(attention, batch_tokens=64)
    told: list[int] = []
    list(score_corpus(model, CORPUS, passes=count, on_batch=told.append))
    assert sum(told) == residues_to_compute(CORPUS, count, next_residue=model.next_residue)


def test_only_what_a_next_residue_model_read_before_counts(language_model):
    model = language_model("causal")
    one, other = Corpus.from_sequences("ab", ["MKVLAW", "MKVLGG"]), []
    first, second = (by_hand(model, one.sequence(index)[:4]) for index in range(2))
    assert first == second
    other = list(score_corpus(model, one, passes=16))
    assert abs(other[0].mean_log_likelihood - other[1].mean_log_likelihood) > 1e-6


def test_memory_that_ends_halves_the_pack_and_names_what_does_not_fit(language_model, monkeypatch):
    model = language_model(batch_tokens=500)
    whole = list(score_corpus(model, CORPUS, passes=4))
    run = passes._run

    def small(language_model, pack):
        if sum(len(one.tokens) for one in pack) > 25:
            raise torch.OutOfMemoryError
        return run(language_model, pack)

    monkeypatch.setattr(passes, "_run", small)
    for index, (one, other) in enumerate(zip(whole, score_corpus(model, CORPUS, passes=4), strict=True)):
        if LENGTHS[index] > 23:
            assert "30 residues do not fit into the memory" in str(other.failure)
        elif index != 4:
            assert other.mean_log_likelihood == pytest.approx(one.mean_log_likelihood, abs=1e-5)


def test_proteins_longer_than_the_attention_takes_are_named(language_model):
    found = list(score_corpus(language_model("linformer"), CORPUS, passes=4))
    long = [index for index, length in enumerate(LENGTHS) if length > 23]
    assert long
    for index, score in enumerate(found):
        if index in long:
            assert f"its {LENGTHS[index]} residues are more than the 23" in str(score.failure)
        elif index != 4:
            assert score.failure is None


def test_numbers_that_are_not_finite_have_no_score(language_model):
    model = language_model()
    with torch.no_grad():
        model.model.trunk.embedding.weight[22] = float("nan")  # W
        model.model.head.bias.fill_(0.0)
    corpus = Corpus.from_sequences("ab", ["MKVW", "X"])
    first, second = score_corpus(model, corpus, passes=None)
    assert "not finite" in str(first.failure)
    assert isinstance(second, Score)
    assert "standard residue" in str(second.failure)


def test_bf16_is_near(run_folder):
    folder = run_folder("performer")
    fp32, bf16 = (
        [score.mean_log_likelihood for score in score_corpus(model, CORPUS, passes=4) if not score.failure]
        for model in (load_language_model(folder), load_language_model(folder, precision="bf16"))
    )
    np.testing.assert_allclose(bf16, fp32, atol=0.1, rtol=0)
    assert bf16 != fp32


def test_what_the_training_said_counts_before_the_attention(run_folder):
    assert not load_language_model(run_folder("causal", task="masked_residue")).next_residue
    assert load_language_model(run_folder("causal", task="next_residue")).next_residue
    assert not load_language_model(run_folder("exact", task="recall")).next_residue


def test_a_model_without_a_language_model_head_is_refused(run_folder):
    with pytest.raises(ProtformerError, match="no language model head: it was trained for classification"):
        load_language_model(run_folder(head="sequence", task="classification"))

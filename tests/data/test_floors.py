"""Laws of the residue-frequency floors and of the intervals over proteins."""

import numpy as np
import pytest

from protformer.data.alphabet import CLS, EOS, MASK, X, encode
from protformer.data.floors.bootstrap import (
    bootstrap_interval,
    mean,
    paired_difference_interval,
    perplexity,
    sum_by_sequence,
)
from protformer.data.floors.composition import (
    composition_log_probs,
    composition_nll,
    fit_prior_strength,
    prefix_composition_log_probs,
    residue_counts,
    unigram_log_probs,
    unigram_nll,
)
from protformer.data.floors.flanks import AROUND, BEFORE, fit_flanks, flank_log_probs


def dirichlet_proteins(generator, count, length, strength):
    """Tokens end to end with their offsets: each protein has a composition of its own, drawn around the uniform."""
    frequencies = generator.dirichlet(np.full(20, strength / 20), size=count)
    tokens = [generator.choice(20, length, p=row) + 4 for row in frequencies]
    return np.concatenate(tokens).astype(np.uint8), np.arange(count + 1) * length


# ---- composition


def test_uniform_residues_have_perplexity_twenty():
    tokens = np.repeat(np.arange(4, 24, dtype=np.uint8), 7)
    nll = unigram_nll(np.arange(4, 24), unigram_log_probs(tokens))
    np.testing.assert_allclose(np.exp(nll), 20.0)


def test_unigram_is_a_distribution_over_the_standard_residues_alone():
    tokens = encode("MKVXXXBUZO" * 5)
    probabilities = np.exp(unigram_log_probs(tokens))
    assert probabilities.sum() == pytest.approx(1.0)
    assert np.flatnonzero(probabilities).tolist() == list(range(4, 24))  # one added: the unseen are possible too
    with pytest.raises(ValueError, match="token 24"):
        unigram_nll(np.array([4, X]), unigram_log_probs(tokens))


def test_composition_lies_between_its_own_counts_and_the_unigram():
    generator = np.random.default_rng(0)
    unigram = unigram_log_probs(generator.integers(4, 24, 1000))
    counts = np.zeros((2, 33), dtype=np.int64)
    counts[0, 4:24] = generator.integers(1, 9, 20)
    counts[0, X] = 50  # letters outside the twenty weigh nothing
    own = composition_log_probs(counts, unigram, 1e-9)[0]
    np.testing.assert_allclose(np.exp(own[4:24]), counts[0, 4:24] / counts[0, 4:24].sum(), rtol=1e-6)
    for strength in (1e15, np.inf):
        np.testing.assert_allclose(composition_log_probs(counts, unigram, strength)[0], unigram, rtol=1e-9)
    smoothed = composition_log_probs(counts, unigram, 30.0)
    np.testing.assert_allclose(np.exp(smoothed).sum(1), 1.0)
    np.testing.assert_allclose(smoothed[1], unigram)  # nothing visible: the unigram at any strength
    targets, owner = generator.integers(4, 24, 50), generator.integers(0, 2, 50)
    np.testing.assert_allclose(composition_nll(targets, owner, counts, unigram, 1e15), unigram_nll(targets, unigram))


def test_the_prior_strength_that_made_the_proteins_is_found():
    generator = np.random.default_rng(1)
    tokens, offsets = dirichlet_proteins(generator, 400, 200, strength=40.0)
    fitted = fit_prior_strength(tokens, offsets, np.log(np.pad(np.full(20, 0.05), (4, 9), constant_values=1e-300)))
    assert 30 < fitted < 53
    shuffled = generator.permutation(tokens)  # no protein has a composition of its own any more
    assert fit_prior_strength(shuffled, offsets, unigram_log_probs(tokens)) > 3000


def test_own_composition_beats_the_unigram_where_proteins_differ():
    generator = np.random.default_rng(2)
    tokens, _ = dirichlet_proteins(generator, 200, 150, strength=40.0)
    owner = np.repeat(np.arange(200), 150)
    hidden = generator.random(len(tokens)) < 0.15
    visible = residue_counts(tokens[~hidden], owner[~hidden], 200)
    assert visible.sum() == (~hidden).sum()
    unigram = unigram_log_probs(tokens)
    targets, owner = tokens[hidden].astype(np.int64), owner[hidden]
    own = composition_nll(targets, owner, visible, unigram, 40.0)
    gain = own - unigram_nll(targets, unigram)
    low, high = bootstrap_interval(*sum_by_sequence(gain, owner, 200), mean, resamples=300)
    assert low < high < 0


def test_prefix_composition_sees_only_what_came_before():
    generator = np.random.default_rng(3)
    shown = np.concatenate([[CLS], encode("MKVAXMM"), [EOS, CLS, EOS, CLS], encode("KLLAGXMK"), [EOS]]).astype(np.int64)
    unigram, strength = unigram_log_probs(generator.integers(4, 24, 500)), 5.0
    rows = np.flatnonzero((shown >= 4) & (shown < 24))
    log_probs = prefix_composition_log_probs(shown, rows, unigram, strength)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1.0)
    np.testing.assert_allclose(prefix_composition_log_probs(shown, rows[3:], unigram, strength), log_probs[3:])
    for endless in (1e15, np.inf):
        forgotten = prefix_composition_log_probs(shown, rows, unigram, endless)
        np.testing.assert_allclose(forgotten, np.broadcast_to(unigram[4:24], forgotten.shape))
    for row, found in zip(rows, log_probs, strict=True):
        opened = np.flatnonzero(shown[:row] == CLS)[-1]
        before = np.bincount(shown[opened:row], minlength=33)[None]
        np.testing.assert_allclose(found, composition_log_probs(before, unigram, strength)[0, 4:24])


# ---- flanks


def motif_proteins(generator, count, length):
    """Tokens and offsets: after every K stands an R nine times out of ten; else residues are drawn alike."""
    tokens = generator.integers(4, 24, (count, length)).astype(np.uint8)
    follows = (tokens[:, :-1] == encode("K")[0]) & (generator.random((count, length - 1)) < 0.9)
    tokens[:, 1:][follows] = encode("R")[0]
    return tokens.reshape(-1), np.arange(count + 1) * length


def test_flanks_learn_what_stands_beside_and_weigh_nothing_where_nothing_is_to_learn():
    generator = np.random.default_rng(5)
    tokens, offsets = motif_proteins(generator, 3000, 60)
    unigram = unigram_log_probs(tokens)
    flanks = fit_flanks(tokens, offsets, unigram, places=AROUND)
    assert 0.7 < flanks.weight <= 1.2
    shown = np.concatenate([[CLS], encode("AAAAKAAAA"), [EOS, CLS, EOS]]).astype(np.int64)
    rows = np.arange(1, 10)
    prior = np.broadcast_to(unigram[4:24], (9, 20))
    probabilities = np.exp(flank_log_probs(prior, shown, rows, flanks))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    arginine = encode("R")[0] - 4
    assert probabilities[5, arginine] > 0.7
    assert probabilities[3, arginine] < 0.2
    hidden = np.where(np.arange(len(shown)) == 5, MASK, shown)  # a hidden neighbour says nothing
    assert np.exp(flank_log_probs(prior, hidden, rows, flanks))[5, arginine] < 0.2
    shuffled = generator.permutation(tokens)
    assert fit_flanks(shuffled, offsets, unigram, places=BEFORE).weight <= 0.2


def test_flanks_do_not_reach_into_the_next_segment():
    generator = np.random.default_rng(6)
    tokens, offsets = motif_proteins(generator, 300, 60)
    unigram = unigram_log_probs(tokens)
    flanks = fit_flanks(tokens, offsets, unigram, places=AROUND)
    one, two = ([CLS, *encode(text), EOS] for text in ("MKA", "GKAV"))
    rows = np.array([6, 7, 8, 9])
    together = flank_log_probs(np.zeros((4, 20)), np.array([*one, *two]), rows, flanks)
    alone = flank_log_probs(np.zeros((4, 20)), np.array(two), rows - len(one), flanks)
    np.testing.assert_allclose(together, alone)


# ---- bootstrap


def test_interval_over_proteins_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(4)
    covered, trials = 0, 200
    for trial in range(trials):
        counts = generator.integers(5, 50, 60)
        level = generator.normal(2.0, 0.5, 60)  # what the residues of one protein share
        low, high = bootstrap_interval(level * counts, counts, mean, resamples=200, seed=trial)
        covered += low <= 2.0 <= high
    assert 0.87 <= covered / trials <= 0.99  # 95 % less the percentile method's shortfall, and three standard errors


def test_interval_is_a_function_of_its_seed_and_of_proteins_with_targets():
    generator = np.random.default_rng(5)
    sums, counts = generator.random(30) * 10, generator.integers(1, 9, 30)
    interval = bootstrap_interval(sums, counts, seed=7)
    assert interval == bootstrap_interval(np.append(sums, 0.0), np.append(counts, 0), seed=7)
    assert interval != bootstrap_interval(sums, counts, seed=8)
    assert interval.low < perplexity(sums.sum(), counts.sum()) < interval.high
    wider = bootstrap_interval(sums, counts, level=0.99, seed=7)
    assert wider.low < interval.low
    assert interval.high < wider.high
    assert bootstrap_interval(sums[:1], counts[:1]) == pytest.approx([np.exp(sums[0] / counts[0])] * 2)
    assert np.isnan(bootstrap_interval(sums[:0], counts[:0])).all()
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval(sums, counts, level=95.0)


def test_pairing_removes_what_makes_a_protein_hard_for_both():
    generator = np.random.default_rng(6)
    owner = np.repeat(np.arange(80), 20)
    floor = (2.8 + generator.normal(0, 0.5, 80))[owner] + generator.normal(0, 0.1, len(owner))
    model = floor - 0.05 + generator.normal(0, 0.05, len(owner))
    (model_sums, counts), (floor_sums, _) = sum_by_sequence(model, owner, 80), sum_by_sequence(floor, owner, 80)
    difference = paired_difference_interval(model_sums, floor_sums, counts)
    assert difference.high < 0
    apart = [bootstrap_interval(sums, counts) for sums in (model_sums, floor_sums)]
    assert difference.high - difference.low < 0.3 * (apart[0].high - apart[0].low)
    assert apart[0].high > apart[1].low  # unpaired, the two could not be told apart
    assert paired_difference_interval(floor_sums, floor_sums, counts) == (0.0, 0.0)

"""Simulated recall: questions at the end, answers far upstream, and nothing else that gives them away."""

import numpy as np
import pytest

from protformer.data import alphabet
from protformer.data.simulate.recall import KEYS, VALUES, RecalledValues, draw_recall, question_alone, question_counts


def test_every_answer_stands_beside_its_key_upstream():
    corpus = draw_recall(20, (48, 60), keys=4, decoys=True, questions=6, repeats=3, seed=1)
    objective = RecalledValues(corpus, questions=6)
    for record in range(len(corpus)):
        text, away = corpus.text(record), int(corpus.id(record).rpartition("_")[2])
        assert 48 <= away <= 60
        example = objective.example(record, 5)
        assert len(example.rows) == 6
        assert example.headline.all()
        shown = alphabet.decode(example.tokens)
        assert shown.count("<mask>") == 6
        for row, target in zip(example.rows, example.targets, strict=True):
            key, value = text[row - 2], alphabet.TOKENS[target]
            assert key in KEYS
            assert example.tokens[row] == alphabet.MASK
            assert value in alphabet.STANDARD[VALUES * KEYS.index(key) : VALUES * (KEYS.index(key) + 1)]
            place = text.index((key + value) * 3)  # in tandem, before the background
            assert row - 1 - (place + 6) >= away
        assert sum(text.count(key) for key in KEYS) == 4 * 3 + 6  # keys stand nowhere else


def test_a_pure_function_of_its_seed():
    one, same, other = (draw_recall(4, (64, 70), seed=seed) for seed in ([0, 3], [0, 3], [0, 4]))
    assert one.digest() == same.digest() != other.digest()


def test_distances_are_even_on_a_log_scale():
    corpus = draw_recall(600, (16, 1024), questions=1, repeats=1, seed=0)
    away = np.array([int(name.rpartition("_")[2]) for name in corpus.ids])
    assert (away >= 16).all()
    assert (away <= 1024).all()
    share = np.mean(away < 128)  # half of the scale
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / 600)


def test_the_question_alone_answers_one_in_five():
    objective = RecalledValues(draw_recall(800, (16, 20), keys=2, questions=4, repeats=1, seed=0), questions=4)
    nll, hits = question_alone(objective, question_counts(objective))
    assert np.exp(nll.mean()) == pytest.approx(VALUES, rel=0.02)
    assert hits.mean() == pytest.approx(1 / VALUES, abs=4 * np.sqrt(0.16 / 800))  # sequences are the draws
    assert objective.weight(np.arange(3)) == 12


def test_counting_letters_gives_nothing():
    corpus = draw_recall(400, (64, 64), keys=4, decoys=True, questions=1, repeats=4, seed=0)
    stored, others = [], []
    for record in range(len(corpus)):
        text = corpus.text(record)
        value = text[text.index(KEYS[0]) + 1]
        counts = {letter: text[:-2].count(letter) for letter in alphabet.STANDARD[:VALUES]}  # without the question
        stored.append(counts.pop(value))
        others.append(np.mean(list(counts.values())))
    difference = np.array(stored) - np.array(others)
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(difference))


@pytest.mark.parametrize("keys", [1, 3])
def test_without_decoys_the_background_is_free_of_values(keys):
    corpus = draw_recall(5, (40, 50), keys=keys, questions=2, repeats=3, seed=0)
    for record in range(5):
        text = corpus.text(record)
        values = [letter for letter in text if letter in alphabet.STANDARD[: VALUES * keys]]
        assert len(values) == keys * 3 + 2
        assert len(set(values)) == keys


@pytest.mark.parametrize(
    ("distance", "options", "words"),
    [
        ((0, 5), {}, "distances"),
        ((6, 5), {}, "distances"),
        ((63, 90), {"keys": 4, "decoys": True}, "distances need 64"),
        ((9, 9), {"keys": 4}, "1 to 3 keys without decoys"),
        ((9, 9), {"questions": 0}, "one question"),
    ],
)
def test_what_cannot_be_drawn(distance, options, words):
    with pytest.raises(ValueError, match=words):
        draw_recall(1, distance, **options)

"""Micro-batches are invisible: accumulating gives the gradient of the whole step."""

import math
from typing import Any

import pytest
import torch
from helpers import random_corpus, train

from protformer.training.tasks import ResidueClassification, ResiduePrediction, SequenceClassification, Split


@pytest.mark.parametrize("exact", [False, True])
def test_accumulation_gives_the_same_losses_and_weights(exact):
    whole, module, _ = train(dropout=0.0, exact=exact)
    parts, module_again, _ = train(
        dropout=0.0, exact=exact, accumulate_grad_batches=3, val_check_interval=12, gradient_clip_val=None
    )
    for step, loss in whole.items():
        assert math.isclose(loss, parts[step], rel_tol=2e-5), step
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, module_again.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_the_gradient_is_that_of_the_mean_over_all_targets():
    # with plain gradient descent of rate 1 a step's change is the gradient itself
    task = ResiduePrediction()
    corpus = random_corpus(20)
    splits = {"train": Split("train", corpus)}

    def gradient(accumulate: int) -> dict[str, torch.Tensor]:
        _, module, _ = train(
            task=task, splits=splits, dropout=0.0, batch_tokens=10_000, max_steps=1, accumulate_grad_batches=accumulate,
            limit_val_batches=0, val_check_interval=None,
        )  # fmt: skip
        return {n: p.detach().clone() for n, p in module.model.named_parameters()}

    one, many = gradient(1), gradient(7)
    for name in one:
        torch.testing.assert_close(one[name], many[name], rtol=1e-3, atol=2e-5)


def test_a_step_with_fewer_sequences_than_micro_batches_still_trains():
    splits = {"train": Split("train", random_corpus(3)), "valid": Split("valid", random_corpus(2, seed=1))}
    losses, _, trainer = train(splits=splits, max_steps=4, accumulate_grad_batches=5, val_check_interval=5)
    assert trainer.global_step == 4
    assert all(math.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("causal", [False, True])
def test_metrics_are_sums_over_counts(causal):
    task = ResiduePrediction(causal=causal)
    evaluation = Split("valid", random_corpus(25, seed=4))
    figures = []
    for tokens in (60, 100_000):
        _, module, trainer = train(
            task=task, splits={"train": Split("train", random_corpus()), "valid": evaluation}, max_steps=1,
            limit_val_batches=0, dropout=0.0,
        )  # fmt: skip
        from protformer.training.datamodule import PackedDataModule

        data = PackedDataModule(
            objectives={"valid": task.objective(evaluation, seed=5, training=False)}, batch_tokens=tokens
        )
        data.trainer = trainer
        trainer.test(module, dataloaders=[data.evaluation_loader("valid")], verbose=False)
        figures.append(module.results["valid"])
    for name, value in figures[0].items():
        assert math.isclose(value, figures[1][name], rel_tol=1e-5), name


@pytest.mark.slow  # 210 steps of training
def test_labelled_tasks_learn_a_planted_signal():
    import numpy as np

    corpus = random_corpus(200, seed=9)
    tokens = corpus.tokens.astype(int)
    first = tokens[corpus.offsets[:-1]]
    targets = (first >= 14).astype(np.int64)
    split = Split("train", corpus, targets, ("low", "high"))
    _, module, trainer = train(
        task=SequenceClassification(pooling="first"),
        splits={"train": split, "valid": Split("valid", corpus, targets, ("low", "high"))},
        max_steps=150, dropout=0.0, batch_tokens=2000, val_check_interval=1000, exact=True,
    )  # fmt: skip
    residue_targets = np.where(corpus.tokens >= 14, 1, 0).astype(np.int16)
    residue_targets[:50] = -100
    split = Split("train", corpus, residue_targets, ("low", "high"))
    losses, _, _ = train(
        task=ResidueClassification(class_weights="balanced"), splits={"train": split}, max_steps=60, dropout=0.0,
        batch_tokens=2000, limit_val_batches=0,
    )  # fmt: skip
    assert losses[60] < 0.1 < losses[1]
    from protformer.training.scoring import evaluate

    data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    assert evaluate(trainer, module, data, "trained")["valid"].figures["accuracy"] > 0.9

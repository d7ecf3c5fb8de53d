"""Regression learns a planted signal, in the labels' own unit."""

import numpy as np
import pytest
from helpers import random_corpus, train

from protformer.data import alphabet
from protformer.training.tasks import Regression, Split


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_regression_learns_the_share_of_a_residue(pooling):
    corpus = random_corpus(200, seed=9)
    leucine = (corpus.tokens == alphabet.TOKENS.index("L")).astype(float)
    share = np.add.reduceat(leucine, corpus.offsets[:-1]) / corpus.lengths
    targets = (100 + 30 * share).astype(np.float32)
    splits = {name: Split(name, corpus, targets) for name in ("train", "valid")}
    _, module, trainer = train(
        task=Regression(pooling=pooling), splits=splits, max_steps=300, dropout=0.0, batch_tokens=2000,
        val_check_interval=1000,
    )  # fmt: skip
    trainer.validate(module, datamodule=trainer.datamodule, verbose=False)  # pyright: ignore[reportAttributeAccessIssue]
    figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert figures["valid/spearman"] > 0.9
    assert figures["valid/rmse"] < 0.4 * targets.std()

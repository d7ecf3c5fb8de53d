"""Tiny models, as training saves them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from protformer.attention import ExactAttention, FavorAttention, LinformerAttention
from protformer.data.alphabet import TOKENS
from protformer.features import PositiveFeatures
from protformer.model import Encoder, LanguageModelHead, ProteinEncoder, ProteinModel, SequenceHead, save_model
from protformer.scoring import LanguageModel, load_language_model


def _performer(causal: bool):
    features = lambda **shape: PositiveFeatures(num_features=8, **shape)  # noqa: E731
    return lambda **shape: FavorAttention(**shape, causal=causal, features=features)


ATTENTIONS = {
    "exact": lambda **shape: ExactAttention(**shape),
    "performer": _performer(causal=False),
    "causal": lambda **shape: ExactAttention(**shape, causal=True),
    "causal performer": _performer(causal=True),
    "linformer": lambda **shape: LinformerAttention(**shape, length=25, rank=4),
}


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run with a model 16 wide of two layers; always the same weights, sharper than initialised ones."""

    def write(attention: str = "exact", *, head: str = "language", task: str | None = None) -> Path:
        torch.manual_seed(3)
        encoder = Encoder(hidden_size=16, num_layers=2, num_heads=2, attention=ATTENTIONS[attention])
        heads = {"language": LanguageModelHead(hidden_size=16), "sequence": SequenceHead(hidden_size=16, outputs=2)}
        model = ProteinModel(trunk=ProteinEncoder(encoder=encoder, token_dropout=True), head=heads[head])
        with torch.no_grad():
            for weights in model.parameters():
                weights.mul_(2.0)
        folder = tmp_path / f"{attention} {head} {task}"
        save_model(model, folder / "model", tokens=TOKENS, metadata={"task": task} if task else None)
        return folder

    return write


@pytest.fixture
def language_model(run_folder: Callable[..., Path]) -> Callable[..., LanguageModel]:
    """Loads it."""

    def load(attention: str = "exact", batch_tokens: int | None = None) -> LanguageModel:
        return load_language_model(run_folder(attention), batch_tokens=batch_tokens)

    return load


@pytest.fixture
def written_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of this text."""

    def write(text: str, name: str = "in.fasta") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write

"""Tiny models, as training saves them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from protformer.attention import ExactAttention, FavorAttention, LinformerAttention
from protformer.data.alphabet import TOKENS
from protformer.features import PositiveFeatures
from protformer.model import (
    Encoder,
    LanguageModelHead,
    ProteinEncoder,
    ProteinModel,
    ResidueHead,
    SequenceHead,
    save_model,
)

ATTENTIONS = {
    "performer": lambda **shape: FavorAttention(**shape, features=lambda **s: PositiveFeatures(num_features=8, **s)),
    "exact": lambda **shape: ExactAttention(**shape),
    "linformer": lambda **shape: LinformerAttention(**shape, length=92, rank=4),
}


@pytest.fixture
def tiny_model() -> Callable[..., ProteinModel]:
    """Makes models 16 wide of two layers; always the same weights."""

    def make(attention: str = "performer", head: str = "language") -> ProteinModel:
        torch.manual_seed(3)
        encoder = Encoder(hidden_size=16, num_layers=2, num_heads=2, attention=ATTENTIONS[attention], dropout=0.1)
        heads = {
            "language": LanguageModelHead(hidden_size=16),
            "sequence": SequenceHead(hidden_size=16, outputs=10, pooling="attention"),
            "residue": ResidueHead(hidden_size=16, outputs=3),
        }
        return ProteinModel(trunk=ProteinEncoder(encoder=encoder, token_dropout=True), head=heads[head]).eval()

    return make


@pytest.fixture
def model_folder(tiny_model: Callable[..., ProteinModel], tmp_path: Path) -> Path:
    """A run folder that holds a Performer."""
    save_model(tiny_model(), tmp_path / "run" / "model", tokens=TOKENS)
    return tmp_path / "run"


@pytest.fixture
def fasta(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of this text."""

    def write(text: str, name: str = "in.fasta") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write

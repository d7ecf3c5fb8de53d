"""What layers are given is what they compute with; models and proteins are chosen by name, seed and length."""

from typing import Any

import numpy as np
import pytest
import torch

from protformer.attention import ExactAttention
from protformer.data.alphabet import CLS, EOS, TOKENS
from protformer.data.batch import segment
from protformer.data.corpus import Corpus
from protformer.errors import ProtformerError
from protformer.evaluation.activations import attention_inputs, choose_proteins, load, load_all, packs_of
from protformer.model import Encoder, LanguageModelHead, ProteinEncoder, ProteinModel, save_model
from protformer.model.rotary import rotate


def exact_model(*, causal: bool = False, seed: int = 0) -> ProteinModel:
    torch.manual_seed(seed)
    encoder = Encoder(
        hidden_size=16, num_layers=2, num_heads=2, attention=lambda **shape: ExactAttention(**shape, causal=causal)
    )
    return ProteinModel(trunk=ProteinEncoder(encoder=encoder), head=LanguageModelHead(hidden_size=16)).eval()


def sequences(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(4, 24, length).astype(np.uint8) for length in lengths]


def test_inputs_are_what_the_blocks_compute():
    model, proteins = exact_model(), sequences(5, 9)
    layers, cu_seqlens, tokens = attention_inputs(model, proteins)
    assert cu_seqlens.tolist() == [0, 7, 18]
    assert tokens.tolist() == np.concatenate([segment(one) for one in proteins]).tolist()
    assert (tokens[0], tokens[6]) == (CLS, EOS)
    encoder: Any = model.trunk.encoder
    with torch.no_grad():
        x = model.trunk.embedding(torch.from_numpy(tokens.astype(np.int64)))
        cos, sin = encoder.rotary(torch.tensor([*range(7), *range(11)]))
        for block, given in zip(encoder.blocks, layers, strict=True):
            normed = block.attention_norm(x)
            for name, rotated in (("query", True), ("key", True), ("value", False)):
                expected = getattr(block, name)(normed).view(18, 2, 8)
                expected = rotate(expected, cos, sin) if rotated else expected
                torch.testing.assert_close(getattr(given, name), expected)
            x = block(x, cu_seqlens, cos, sin)


def test_the_model_is_left_as_it_was():
    model = exact_model()
    attention_inputs(model, sequences(4))
    assert all(not attention._forward_pre_hooks for attention in model.trunk.encoder.attentions)
    with pytest.raises(Exception):  # noqa: B017, PT011 (whatever the model says of a token that is none)
        attention_inputs(model, [np.array([200], dtype=np.uint8)])
    assert all(not attention._forward_pre_hooks for attention in model.trunk.encoder.attentions)


def test_models_are_called_by_their_folders(tmp_path, monkeypatch):
    for run in ("a/exact", "b/exact", "b/other"):
        save_model(exact_model(), tmp_path / run / "model", tokens=TOKENS)
    one = load(tmp_path / "a/exact")
    assert (one.name, one.method) == ("exact", "exact")
    assert load(tmp_path / "b/other/model").name == "other"
    monkeypatch.chdir(tmp_path)
    names = [one.name for one in load_all([str(tmp_path / run) for run in ("a/exact", "b/exact", "b/other")])]
    assert names == ["a/exact", "b/exact", "other"]
    with pytest.raises(ProtformerError, match="named twice"):
        load_all([str(tmp_path / "a/exact"), str(tmp_path / "a/exact")])


def test_proteins_are_drawn_by_the_seed(tmp_path):
    path = tmp_path / "proteins.fasta"
    path.write_text("".join(f">p{i}\n{'LAGV' * (i + 1)}\n" for i in range(30)))

    def chosen(count: int, longest: int, seed: int) -> list[str]:
        return choose_proteins(str(path), count=count, longest=longest, seed=seed).ids

    assert chosen(5, 80, 0) == chosen(5, 80, 0) != chosen(5, 80, 1)
    assert chosen(100, 80, 0) == [f"p{i}" for i in range(20)]
    with pytest.raises(ProtformerError, match=r"None of the 30 sequences .* at most 3 residues"):
        chosen(5, 3, 0)


def test_packs_hold_every_sequence_once():
    corpus = Corpus.from_sequences([f"p{i}" for i in range(9)], ["LAGV" * (i + 1) for i in range(9)])
    packs = list(packs_of(corpus, 40))
    assert sorted(index for pack in packs for index in pack) == list(range(9))
    assert all(len(pack) == 1 or sum(corpus.lengths[pack] + 2) <= 40 for pack in packs)

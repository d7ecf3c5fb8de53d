"""ESM-2's weights and names: our model with exact attention is Hugging Face's `EsmForMaskedLM`."""

import pytest
import torch

from protformer.data.alphabet import CLS, EOS, MASK, PAD
from protformer.errors import ProtformerError
from protformer.model import load_model, save_model
from protformer.model.esm2 import (
    NAMES,
    build_esm2,
    config_from_hugging_face,
    from_fair_esm,
    from_hugging_face,
    to_hugging_face,
)

transformers = pytest.importorskip("transformers")

LENGTHS = (9, 30, 3, 17)
PERFORMER = {
    "name": "FavorAttention",
    "causal": False,
    "features": {"name": "PositiveFeatures", "num_features": 8, "orthogonal_rows": True},
}


def theirs(token_dropout: bool = True, seed: int = 0):
    config = transformers.EsmConfig(
        vocab_size=33,
        mask_token_id=MASK,
        pad_token_id=PAD,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=64,
        position_embedding_type="rotary",
        layer_norm_eps=1e-5,
        emb_layer_norm_before=False,
        token_dropout=token_dropout,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(seed)
    model = transformers.EsmForMaskedLM(config).eval()
    with torch.no_grad():  # as initialised, norms are the identity and biases zero: a swapped name would not show
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        # the published frequencies were rounded to fp16
        model.esm.rotary_embeddings.inv_freq.copy_(model.esm.rotary_embeddings.inv_freq.half().float())
    return model


def sequences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in LENGTHS:
        tokens = torch.randint(4, 24, (length,), generator=generator)
        tokens[torch.rand(length, generator=generator) < 0.3] = MASK
        tokens[0], tokens[-1] = CLS, EOS
        made.append(tokens)
    return made


def cu_seqlens(tokens: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor([len(t) for t in tokens]).cumsum(0).tolist()], dtype=torch.int32)


def their_logits(model, tokens: list[torch.Tensor]) -> torch.Tensor:
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=PAD)
    with torch.no_grad():
        logits = model(input_ids=padded, attention_mask=(padded != PAD).long()).logits
    return torch.cat([row[: len(t)] for row, t in zip(logits, tokens, strict=True)])


def our_logits(model, tokens: list[torch.Tensor]) -> torch.Tensor:
    cu = cu_seqlens(tokens)
    with torch.no_grad():
        return model.read(model(torch.cat(tokens), cu), cu)


def converted(model, **options):
    config = config_from_hugging_face(model.config.to_dict(), **options)
    return build_esm2(config, from_hugging_face(model.state_dict()))


@pytest.mark.parametrize("token_dropout", [False, True])
def test_logits_equal_hugging_faces(token_dropout):
    model = theirs(token_dropout)
    tokens = sequences()
    expected = their_logits(model, tokens)
    assert expected.std() > 0.5  # or the next line would say little
    torch.testing.assert_close(our_logits(converted(model), tokens), expected, rtol=0, atol=1e-4)


def test_every_weight_matters():
    # each of ours comes from theirs: disturbing any one of theirs changes our logits
    model = theirs()
    tokens = sequences()
    config = config_from_hugging_face(model.config.to_dict())
    state = from_hugging_face(model.state_dict())
    before = our_logits(build_esm2(config, state), tokens)
    for name in state:
        disturbed = {**state, name: state[name] + 0.1 * torch.randn(state[name].shape)}
        assert not torch.allclose(our_logits(build_esm2(config, disturbed), tokens), before, atol=1e-4), name


def test_round_trip_through_hugging_faces_names():
    model, other = theirs(), theirs(seed=1)
    back = to_hugging_face(converted(model).state_dict())
    missing, unexpected = other.load_state_dict(back, strict=False)
    assert all("contact_head" in name for name in missing)
    assert not unexpected
    tokens = sequences()
    torch.testing.assert_close(their_logits(other, tokens), their_logits(model, tokens), rtol=0, atol=1e-6)
    again = from_hugging_face(back)
    ours = converted(model).state_dict()
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def fair_state(model, prefix: bool) -> dict[str, torch.Tensor]:
    """The weights as fair-esm spells them, written out here on its own so that the table is not its own judge."""
    state = {}
    for name, tensor in model.state_dict().items():
        new = name.removeprefix("esm.").replace("encoder.layer.", "layers.")
        for old, fair in (
            ("attention.self.query", "self_attn.q_proj"),
            ("attention.self.key", "self_attn.k_proj"),
            ("attention.self.value", "self_attn.v_proj"),
            ("attention.output.dense", "self_attn.out_proj"),
            ("attention.LayerNorm", "self_attn_layer_norm"),
            ("LayerNorm", "final_layer_norm"),
            ("intermediate.dense", "fc1"),
            ("output.dense", "fc2"),
            ("encoder.emb_layer_norm_after", "emb_layer_norm_after"),
            ("embeddings.word_embeddings", "embed_tokens"),
            ("lm_head.decoder.weight", "lm_head.weight"),
        ):
            if old in new:
                new = new.replace(old, fair)
                break
        if new == "rotary_embeddings.inv_freq":
            state |= {f"layers.{i}.self_attn.rot_emb.inv_freq": tensor for i in range(3)}
        else:
            state[new] = tensor
    if not prefix:
        return state
    return {("encoder." if n.startswith("lm_head") else "encoder.sentence_encoder.") + n: t for n, t in state.items()}


@pytest.mark.parametrize("prefix", [False, True])
def test_fair_esms_names_give_the_same_weights(prefix):
    model = theirs()
    ours, expected = from_fair_esm(fair_state(model, prefix)), from_hugging_face(model.state_dict())
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_the_table_is_one_to_one():
    for column in zip(*NAMES, strict=True):
        assert len(set(column)) == len(column)


def test_frequencies_are_copied_and_survive_a_model_folder(tmp_path):
    model = theirs()
    ours = converted(model)
    assert torch.equal(ours.trunk.encoder.rotary.inv_freq, model.esm.rotary_embeddings.inv_freq)
    save_model(ours, tmp_path / "model", tokens=("<cls>",))
    loaded, _ = load_model(tmp_path / "model")
    assert torch.equal(loaded.trunk.encoder.rotary.inv_freq, model.esm.rotary_embeddings.inv_freq)


def test_converts_to_performer_attention_with_the_same_weights():
    model = theirs()
    ours = converted(model, attention=PERFORMER)
    state = from_hugging_face(model.state_dict())
    assert all(torch.equal(ours.state_dict()[name], state[name]) for name in state)
    assert our_logits(ours, sequences()).isfinite().all()
    assert to_hugging_face(ours.state_dict()).keys() == to_hugging_face(converted(model).state_dict()).keys()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"position_embedding_type": "absolute"}, "position_embedding_type is 'absolute'"),
        ({"emb_layer_norm_before": True}, "emb_layer_norm_before is True"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps"),
        ({"vocab_size": 30}, "vocab_size is 30"),
        ({"is_folding_model": True}, "is_folding_model"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_a_configuration_that_is_not_esm2s_is_refused(change, told):
    config = {**theirs().config.to_dict(), **change}
    config = {key: value for key, value in config.items() if value is not None}
    with pytest.raises(ProtformerError, match=told):
        config_from_hugging_face(config)


def test_weights_that_are_not_esm2s_are_refused():
    model = theirs()
    state, config = dict(model.state_dict()), config_from_hugging_face(model.config.to_dict())
    with pytest.raises(ProtformerError, match=r"bert\.pooler"):
        from_hugging_face({**state, "bert.pooler.weight": torch.zeros(1)})
    with pytest.raises(ProtformerError, match="output matrix"):
        from_hugging_face({**state, "lm_head.decoder.weight": torch.zeros(33, 24)})
    with pytest.raises(ProtformerError, match="no token embedding"):
        from_hugging_face({})
    frequencies = "layers.{}.self_attn.rot_emb.inv_freq"
    with pytest.raises(ProtformerError, match="rotary frequencies"):
        from_fair_esm({frequencies.format(0): torch.ones(4), frequencies.format(1): torch.zeros(4)})
    ours = from_hugging_face(state)
    with pytest.raises(ProtformerError, match="1 missing"):
        build_esm2(config, {name: tensor for name, tensor in ours.items() if name != "head.bias"})
    with pytest.raises(ProtformerError, match="other shapes"):
        build_esm2(config, {**ours, "head.bias": torch.zeros(7)})
    with pytest.raises(ProtformerError, match=r"head\.project"):
        to_hugging_face({"head.project.weight": torch.zeros(2, 24)})

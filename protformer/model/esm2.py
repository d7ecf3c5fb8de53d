"""ESM-2's weights in this model and back: a two-way name table, and its configuration in our words.

The block is ESM-2's (Lin et al. 2023, doi 10.1126/science.ade2574), so a checkpoint converts by renaming. Two spellings
are read: Hugging Face's `EsmForMaskedLM`, and fair-esm's. Two things are more than a name: ESM-2 keeps the rotary
frequencies once per layer, we once (they are copied, not recomputed: the published ones were rounded to fp16); and its
output matrix is the embedding again, which we do not store.

    config = config_from_hugging_face(json.loads(...))          # of the folder's config.json
    model = build_esm2(config, from_hugging_face(load_file("model.safetensors")))

The contact head is no part of this model and is left out both ways.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from protformer.errors import ProtformerError
from protformer.model.encoder import MASK_TOKEN
from protformer.model.folder import build_model
from protformer.model.protein_model import ProteinModel

# One row a name: ours, Hugging Face's, fair-esm's. `*` is the layer, and each row stands for weight and bias.
_MODULES = (
    *(
        (f"trunk.encoder.blocks.*.{ours}", f"esm.encoder.layer.*.{hugging_face}", f"layers.*.{fair_esm}")
        for ours, hugging_face, fair_esm in (
            ("attention_norm", "attention.LayerNorm", "self_attn_layer_norm"),
            ("query", "attention.self.query", "self_attn.q_proj"),
            ("key", "attention.self.key", "self_attn.k_proj"),
            ("value", "attention.self.value", "self_attn.v_proj"),
            ("out", "attention.output.dense", "self_attn.out_proj"),
            ("feed_forward_norm", "LayerNorm", "final_layer_norm"),
            ("expand", "intermediate.dense", "fc1"),
            ("contract", "output.dense", "fc2"),
        )
    ),
    ("trunk.encoder.final_norm", "esm.encoder.emb_layer_norm_after", "emb_layer_norm_after"),
    ("head.dense", "lm_head.dense", "lm_head.dense"),
    ("head.norm", "lm_head.layer_norm", "lm_head.layer_norm"),
)
NAMES: tuple[tuple[str, str, str], ...] = (
    *((f"{a}.{part}", f"{b}.{part}", f"{c}.{part}") for a, b, c in _MODULES for part in ("weight", "bias")),
    ("trunk.embedding.weight", "esm.embeddings.word_embeddings.weight", "embed_tokens.weight"),
    ("head.bias", "lm_head.bias", "lm_head.bias"),
)
_OURS, _HUGGING_FACE, _FAIR_ESM = 0, 1, 2

_EMBEDDING = "trunk.embedding.weight"
_FREQUENCIES = "trunk.encoder.rotary.inv_freq"
# transformers 5 keeps one copy for the model; published checkpoints keep one per layer
_THEIR_FREQUENCIES = re.compile(
    r"esm\.rotary_embeddings\.inv_freq"
    r"|esm\.encoder\.layer\.\d+\.attention\.self\.rotary_embeddings\.inv_freq"
    r"|layers\.\d+\.self_attn\.rot_emb\.inv_freq"
)
_TIED = ("lm_head.decoder.weight", "lm_head.weight")
# What the table leaves out on purpose: no part of this model, or a second name of what it has.
_LEFT_OUT = re.compile(
    r"(esm\.)?contact_head\..*|esm\.pooler\..*|esm\.embeddings\.position_(ids|embeddings\.weight)|lm_head\.decoder\.bias"
)
_OUR_PROJECTIONS = re.compile(r"trunk\.encoder\.blocks\.\d+\.attention\.features\.projection")


def config_from_hugging_face(config: Mapping[str, Any], *, attention: dict[str, Any] | None = None) -> dict[str, Any]:
    """The configuration of a `ProteinModel` (as its `config` gives it) from that of an ESM-2 `EsmForMaskedLM`.

    `attention` (as `Attention.config` gives it) is exact when absent. Raises `ProtformerError` for a model that is not
    ESM-2: ESM-1b's learned positions and embedding norm have no place here.
    """
    required = {
        "position_embedding_type": ("rotary", None),
        "emb_layer_norm_before": (False, None),
        "is_folding_model": (False, False),
        "is_decoder": (False, False),
        "add_cross_attention": (False, False),
        "tie_word_embeddings": (True, True),
        "layer_norm_eps": (1e-5, None),
        "hidden_act": ("gelu", "gelu"),
        "mask_token_id": (MASK_TOKEN, None),
        "vocab_size": (33, None),
    }
    for name, (wanted, default) in required.items():
        found = config.get(name, default)
        if found is None and wanted is False:
            continue
        if found != wanted:
            raise ProtformerError(f"This is no ESM-2 configuration: {name} is {found!r} where ESM-2 has {wanted!r}.")
    try:
        trunk = {
            "hidden_size": config["hidden_size"],
            "num_layers": config["num_hidden_layers"],
            "num_heads": config["num_attention_heads"],
            "intermediate_size": config["intermediate_size"],
        }
    except KeyError as error:
        raise ProtformerError(f"This is no ESM-2 configuration: it does not say {error}.") from error
    trunk |= {
        "dropout": config.get("hidden_dropout_prob") or 0.0,
        "rotary_base": config.get("rope_theta", 10_000.0),
        "feature_seed": 0,
        "attention": attention or {"name": "ExactAttention", "causal": False},
        "vocabulary_size": config["vocab_size"],
        "token_dropout": bool(config.get("token_dropout", False)),
    }
    return {"trunk": trunk, "head": {"name": "LanguageModelHead"}}


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of Hugging Face's `EsmForMaskedLM` under our names; `ProtformerError` for a name that is no ESM-2's."""
    return _to_ours(state, _HUGGING_FACE)


def from_fair_esm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of fair-esm's ESM-2 under our names: of its model, or of its file (whose names have a prefix more)."""
    return _to_ours({re.sub(r"^encoder\.(sentence_encoder\.)?", "", name): state[name] for name in state}, _FAIR_ESM)


def to_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under the names of Hugging Face's published checkpoints.

    Load them with `strict=False`: the contact head is missing. Projections of random features are left out, because
    `EsmForMaskedLM` has exact attention.
    """
    rename = _renaming(_OURS, _HUGGING_FACE)
    renamed: dict[str, Tensor] = {}
    layers = 0
    for name, tensor in state.items():
        if name == _FREQUENCIES or _OUR_PROJECTIONS.fullmatch(name):
            continue
        new = rename(name)
        if new is None:
            raise ProtformerError(f"{name} has no name in ESM-2: only a model with a language-model head converts.")
        renamed[new] = tensor
        layers = max(layers, _layer(name) + 1)
    if _FREQUENCIES in state:
        for layer in range(layers):
            key = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
            renamed[key] = state[_FREQUENCIES].clone()  # safetensors stores no tensor twice
    renamed["lm_head.decoder.weight"] = renamed["esm.embeddings.word_embeddings.weight"]
    return renamed


def build_esm2(config: dict[str, Any], weights: Mapping[str, Tensor]) -> ProteinModel:
    """A `ProteinModel` of `config` with `weights` under our names, in evaluation mode.

    With Performer attention the projections are those drawn at construction.
    """
    model = build_model(config)
    try:
        missing, unexpected = model.load_state_dict(dict(weights), strict=False)
    except RuntimeError as error:
        raise ProtformerError(
            "The weights have other shapes than the configuration says: give the config.json that lies beside them."
        ) from error
    missing = [name for name in missing if name != _FREQUENCIES and not _OUR_PROJECTIONS.fullmatch(name)]
    if missing or unexpected:
        name = (missing or unexpected)[0]
        raise ProtformerError(
            f"The weights do not fit the configuration: {name} is {'missing' if missing else 'not expected'}"
            f" ({len(missing)} missing, {len(unexpected)} too many)."
        )
    return model.eval()


def _to_ours(state: Mapping[str, Tensor], spelling: int) -> dict[str, Tensor]:
    rename = _renaming(spelling, _OURS)
    renamed: dict[str, Tensor] = {}
    tied: Tensor | None = None
    for name, tensor in state.items():
        new = rename(name)
        if new is not None:
            renamed[new] = tensor
        elif _THEIR_FREQUENCIES.fullmatch(name):
            if _FREQUENCIES in renamed and not torch.equal(renamed[_FREQUENCIES], tensor):
                raise ProtformerError(f"{name} differs from the rotary frequencies of another layer: this is no ESM-2.")
            renamed[_FREQUENCIES] = tensor
        elif name in _TIED:
            tied = tensor
        elif not _LEFT_OUT.fullmatch(name):
            raise ProtformerError(f"{name} is no weight of ESM-2's masked-language model.")
    if _EMBEDDING not in renamed:
        raise ProtformerError("These are no weights of ESM-2's masked-language model: they have no token embedding.")
    if tied is not None and not torch.equal(tied, renamed[_EMBEDDING]):
        raise ProtformerError("The output matrix is not the token embedding: ESM-2 ties them, and so do we.")
    return renamed


def _renaming(source: int, target: int) -> Any:
    """A function from a name in one spelling to its name in another, None where the table has none."""
    table = {row[source]: row[target] for row in NAMES}

    def rename(name: str) -> str | None:
        layer = _layer(name)
        pattern = name if layer < 0 else re.sub(r"\.\d+\.", ".*.", name, count=1)
        new = table.get(pattern)
        return None if new is None else new.replace("*", str(layer))

    return rename


def _layer(name: str) -> int:
    """The layer that a weight's name gives, -1 where it gives none."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else -1

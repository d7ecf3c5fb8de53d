"""The model folder: `config.json` + `model.safetensors`, what users share and embed with.

Nothing in it is executed: the configuration names classes of this package only, and weights are safetensors, so a
folder from a stranger can be wrong but not harmful. Both files are written to a temporary folder and renamed into place
whole.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from protformer.attention import factory_from_config
from protformer.errors import ProtformerError
from protformer.model.encoder import Encoder, ProteinEncoder
from protformer.model.heads import LanguageModelHead, ResidueHead, SequenceHead
from protformer.model.protein_model import Head, ProteinModel

FORMAT = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
HEADS: tuple[type[LanguageModelHead] | type[SequenceHead] | type[ResidueHead], ...] = (
    LanguageModelHead,
    SequenceHead,
    ResidueHead,
)


def save_model(
    model: ProteinModel, folder: Path | str, *, tokens: tuple[str, ...], metadata: dict[str, Any] | None = None
) -> None:
    """Write `model` as a model folder; an older one at the same place is replaced whole.

    `tokens` is the alphabet in the order of ids; `metadata` (plain JSON values) tells how the model came to be and what
    its outputs mean.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not _is_replaceable(folder):
        raise ProtformerError(f"{folder} exists and is no model folder: choose another place, or remove it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    configuration = {
        "format": FORMAT,
        "library": "protformer",
        "model": model.config(),
        "draw": model.trunk.encoder.draw,
        "tokens": list(tokens),
        "metadata": metadata or {},
    }
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    retired = temporary.with_name(temporary.name + ".old")
    try:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, temporary / WEIGHTS_NAME, metadata={"format": "pt"})
        (temporary / CONFIG_NAME).write_text(json.dumps(configuration, indent=2) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        if folder.exists():
            folder.rename(retired)
        temporary.rename(folder)
    finally:
        if retired.exists() and not folder.exists():
            retired.rename(folder)
        for leftover in (temporary, retired):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_replaceable(folder: Path) -> bool:
    """A model folder or an empty one: never replace what somebody else's files are in."""
    return folder.is_dir() and ((folder / CONFIG_NAME).is_file() or not any(folder.iterdir()))


def find_model_folder(path: Path | str) -> Path:
    """`path` itself when it is a model folder, or the `model` folder of a run; `ProtformerError` when it is neither."""
    path = Path(path)
    for candidate in (path, path / "model"):
        if (candidate / CONFIG_NAME).is_file() and (candidate / WEIGHTS_NAME).is_file():
            return candidate
    if not path.exists():
        raise ProtformerError(f"There is no folder {path}. Give a model folder or a run folder that holds model/.")
    raise ProtformerError(
        f"{path} is no model folder: it has no {CONFIG_NAME} and {WEIGHTS_NAME}, nor a folder model/ with them."
        " (A run writes model/ when its training ends.)"
    )


def read_config(path: Path | str, *, tokens: Sequence[str] | None = None) -> dict[str, Any]:
    """The configuration of a model folder, checked for its format; and for its alphabet, where `tokens` are given."""
    file = find_model_folder(path) / CONFIG_NAME
    try:
        configuration = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ProtformerError(f"{file} is not JSON ({error}). Copy the model folder again.") from error
    if not isinstance(configuration, dict) or configuration.get("library") != "protformer":
        raise ProtformerError(f"{file} was not written by protformer.")
    if configuration.get("format") != FORMAT:
        raise ProtformerError(
            f"{file} has format {configuration.get('format')}, this protformer reads format {FORMAT}:"
            " install the version that wrote it, or train again."
        )
    if tokens is not None and configuration.get("tokens") != list(tokens):
        raise ProtformerError(
            f"{file} lists another alphabet than this protformer's, in which its weights would read other residues."
        )
    return configuration


def load_model(
    path: Path | str, *, attention: dict[str, Any] | None = None, tokens: Sequence[str] | None = None
) -> tuple[ProteinModel, dict[str, Any]]:
    """The model in evaluation mode on the CPU, and its whole configuration.

    `tokens`: the alphabet that sequences will be read in; ProtformerError where the model was trained in another.
    `attention` (as `Attention.config` gives it) replaces the attention of the folder: weights move unchanged, and new
    projections are drawn.
    """
    folder = find_model_folder(path)
    configuration = read_config(folder, tokens=tokens)
    try:
        model = build_model(configuration["model"], attention=attention)
        draw = int(configuration.get("draw", 0))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).strip().split("\n")[0].rstrip(".")
        raise ProtformerError(f"{folder / CONFIG_NAME} does not describe a model of this version: {reason}.") from error
    try:
        weights = load_file(folder / WEIGHTS_NAME)
    except (SafetensorError, OSError) as error:
        raise ProtformerError(
            f"{folder / WEIGHTS_NAME} cannot be read ({error}): it is cut short or no safetensors file."
        ) from error
    if attention is not None:
        weights = {name: tensor for name, tensor in weights.items() if ".attention." not in name}
        kept = {name: tensor for name, tensor in model.state_dict().items() if ".attention." in name}
        weights |= kept
    misfits = _misfits(model, weights)
    if misfits:
        more = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
        raise ProtformerError(f"{folder / WEIGHTS_NAME} does not fit {CONFIG_NAME}: {misfits[0]}{more}.")
    model.load_state_dict(weights)
    if attention is None:
        model.trunk.encoder.draw = draw
    return model.eval(), configuration


def _misfits(model: ProteinModel, weights: dict[str, torch.Tensor]) -> list[str]:
    expected = model.state_dict()
    return [
        *(f"{name} is missing" for name in expected if name not in weights),
        *(f"{name} belongs to no part of the model" for name in weights if name not in expected),
        *(
            f"{name} has shape {list(tensor.shape)} where {list(expected[name].shape)} is needed"
            for name, tensor in weights.items()
            if name in expected and tensor.shape != expected[name].shape
        ),
    ]


def build_model(configuration: dict[str, Any], *, attention: dict[str, Any] | None = None) -> ProteinModel:
    """A new model from `ProteinModel.config()`."""
    trunk_config = dict(configuration["trunk"])
    vocabulary_size = trunk_config.pop("vocabulary_size")
    token_dropout = trunk_config.pop("token_dropout")
    attention_config = attention or trunk_config["attention"]
    encoder = Encoder(**{**trunk_config, "attention": factory_from_config(attention_config)})
    trunk = ProteinEncoder(encoder=encoder, vocabulary_size=vocabulary_size, token_dropout=token_dropout)
    return ProteinModel(trunk=trunk, head=_build_head(configuration["head"], encoder.hidden_size, vocabulary_size))


def _build_head(configuration: dict[str, Any], hidden_size: int, vocabulary_size: int) -> Head:
    arguments = {key: value for key, value in configuration.items() if key != "name"}
    for head_class in HEADS:
        if head_class.__name__ == configuration["name"]:
            if head_class is LanguageModelHead:
                arguments["vocabulary_size"] = vocabulary_size
            return head_class(hidden_size=hidden_size, **arguments)
    raise ValueError(f"unknown head {configuration['name']!r}")


def initialise_from(model: ProteinModel, path: Path | str, *, classes: tuple[str, ...] = ()) -> list[str]:
    """Copy the trunk's weights of a model folder into `model`; the head too where it is the same. What was copied.

    With the folder's attention come its projections; another attention keeps those of `model`, but for the weights that
    a method learns (Linformer's, of another length those of the places both have). A head is the same when its shape
    and its `classes` are.
    """
    source, configuration = load_model(path)
    theirs, ours = source.trunk.config(), model.trunk.config()
    shape = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "vocabulary_size")
    differing = [k for k in shape if theirs[k] != ours[k]]
    if differing:
        told = ", ".join(f"{k} is {theirs[k]} there and {ours[k]} here" for k in differing)
        raise ProtformerError(
            f"init_from={path}: the model folder has another shape ({told}); choose its model= group."
        )
    same_attention = theirs["attention"] == ours["attention"]
    weights = {k: v for k, v in source.trunk.state_dict().items() if same_attention or ".attention." not in k}
    model.trunk.load_state_dict(weights, strict=False)
    begun = 0 if same_attention else _learned_by_attention(source.trunk, model.trunk)
    copied = [f"trunk ({begun:,} weights that its attention learns begin anew)" if begun else "trunk"]
    their_classes = tuple(configuration["metadata"].get("classes", ()))
    if source.head.config() == model.head.config() and their_classes == classes:
        model.head.load_state_dict(source.head.state_dict())
        copied.append("head")
    return copied


def _learned_by_attention(source: torch.nn.Module, target: torch.nn.Module) -> int:
    """Copies parameters of the attention itself, of tensors that differ in their last dimension what both have.

    How many of the target's have nothing to be copied from."""
    theirs = dict(source.named_parameters())
    begun = 0
    with torch.no_grad():
        for name, own in target.named_parameters():
            if ".attention." not in name:
                continue
            known = theirs.get(name)
            shared = 0 if known is None or known.shape[:-1] != own.shape[:-1] else min(known.shape[-1], own.shape[-1])
            if known is not None and shared:
                own[..., :shared] = known[..., :shared]
            begun += own[..., shared:].numel()
    return begun


def parameter_count(model: torch.nn.Module) -> int:
    """Trainable parameters, each counted once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)

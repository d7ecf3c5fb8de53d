"""Trained models as experiments look at them: what each layer's attention is given on real proteins."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from protformer.attention import Attention, method_of
from protformer.data.alphabet import TOKENS
from protformer.data.batch import segment
from protformer.data.corpus import Corpus
from protformer.embedding.windows import SPECIALS, plan_batches
from protformer.errors import ProtformerError, shown_path
from protformer.model import ProteinModel, load_model


class LookedAt(NamedTuple):
    """A model, and what rows call it."""

    name: str
    method: str
    model: ProteinModel
    configuration: dict[str, Any]


class AttentionInputs(NamedTuple):
    """What one layer's attention was given: queries and keys (after the rotary embedding) and values."""

    query: Float[Tensor, "total heads dim"]
    key: Float[Tensor, "total heads dim"]
    value: Float[Tensor, "total heads dim"]


def load(folder: Path | str) -> LookedAt:
    """The model of a model folder or run folder, called by the run's name."""
    model, configuration = load_model(folder, tokens=TOKENS)
    path = Path(folder).resolve()
    name = path.parent.name if path.name == "model" else path.name
    return LookedAt(name, method_of(configuration["model"]["trunk"]["attention"]), model, configuration)


def load_all(folders: list[str]) -> list[LookedAt]:
    """Each model, with the parent folder in the names of those that would share one."""
    loaded = [load(folder) for folder in folders]
    names = [one.name for one in loaded]
    twice = {name for name in names if names.count(name) > 1}
    told = [shown_path(folder) if one.name in twice else one.name for one, folder in zip(loaded, folders, strict=True)]
    if len(set(told)) < len(told):
        raise ProtformerError(f"A model is named twice in {', '.join(folders)}: name each folder once.")
    return [one._replace(name=name) for one, name in zip(loaded, told, strict=True)]


@torch.no_grad()
def attention_inputs(
    model: ProteinModel, sequences: list[UInt8[np.ndarray, "_"]]
) -> tuple[list[AttentionInputs], Int32[Tensor, "segments_plus_one"], UInt8[np.ndarray, "_"]]:
    """Of each layer, what its attention is given for a pack of `<cls>` residues `<eos>`; the offsets, and the tokens.

    Nothing is masked: this is how a model is embedded with. The model must be in evaluation mode.
    """
    segments = [segment(residues) for residues in sequences]
    tokens = np.concatenate(segments)
    cu_seqlens = torch.from_numpy(np.cumsum([0, *map(len, segments)]).astype(np.int32))
    seen: dict[Attention, AttentionInputs] = {}

    def look(attention: Any, arguments: tuple[Any, ...]) -> None:
        seen[attention] = AttentionInputs(*arguments[:3])

    attentions = list(model.trunk.encoder.attentions)
    handles = [attention.register_forward_pre_hook(look) for attention in attentions]
    try:
        model(torch.from_numpy(tokens), cu_seqlens)
    finally:
        for handle in handles:
            handle.remove()
    return [seen[attention] for attention in attentions], cu_seqlens, tokens.astype(np.uint8)


def choose_proteins(paths: str | list[str], *, count: int, longest: int, seed: int) -> Corpus:
    """`count` sequences of at most `longest` residues, drawn by `seed`, in the order of the files; all where there are
    fewer. ProtformerError where none is as short."""
    corpus = Corpus.from_fasta(paths)
    short = np.flatnonzero(corpus.lengths <= longest)
    if len(short) == 0:
        raise ProtformerError(
            f"None of the {len(corpus):,} sequences in {_told(paths)} has at most {longest:,} residues: raise longest."
        )
    generator = np.random.default_rng(seed)
    return corpus.subset(np.sort(generator.choice(short, min(count, len(short)), replace=False)))


def packs_of(corpus: Corpus, tokens: int) -> Iterator[list[int]]:
    """Indices of sequences that go through a model together, at most `tokens` tokens (or one sequence)."""
    yield from plan_batches(corpus.lengths + SPECIALS, tokens)


def _told(paths: str | list[str]) -> str:
    return shown_path(paths) if isinstance(paths, str) else ", ".join(map(shown_path, paths))

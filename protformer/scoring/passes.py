"""Where the scoring room runs the model: passes of a protein, packed by a budget of tokens, read as log-probabilities.

A pass is one segment as the model is shown it, and the rows of it that are to be read. Passes keep their order, and
neighbours share a pack while they fit:

    passes   <cls> _ K V <eos>   <cls> M _ V <eos>   <cls> M K _ <eos>   ...
    rows           1                     2                     3

Nothing is padded; a pass longer than the budget goes alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64

from protformer.data.alphabet import TOKENS
from protformer.errors import ProtformerError
from protformer.model import LanguageModelHead, ProteinModel, find_model_folder, load_model
from protformer.model.inference import BATCH_TOKENS, Precision, arithmetic, within_memory


@dataclass
class LanguageModel:
    """A model that gives probabilities of residues, in evaluation mode, on its device."""

    model: ProteinModel
    folder: Path
    next_residue: bool  # it predicts each residue from those before it, and was never shown a mask
    batch_tokens: int
    precision: Precision = "fp32"

    @property
    def device(self) -> torch.device:
        return self.model.trunk.embedding.weight.device


def load_language_model(
    folder: Path | str,
    *,
    device: torch.device | str = "cpu",
    batch_tokens: int | None = None,
    precision: Precision = "fp32",
) -> LanguageModel:
    """The model of a folder or of a run that holds one.

    Args:
        batch_tokens: budget of a pack, `<cls>` and `<eos>` counted; by default what suits the device.
        precision: of the arithmetic; "bf16" is autocast, with the log-probabilities in fp32.

    Raises:
        ProtformerError: there is no model, it has another alphabet, or its head does not predict residues.
    """
    folder = find_model_folder(folder)
    model, configuration = load_model(folder, tokens=TOKENS)
    task = configuration.get("metadata", {}).get("task")
    if not isinstance(model.head, LanguageModelHead):
        raise ProtformerError(
            f"{folder} has no language model head: it was trained for {task or 'another task'} and gives no "
            "probabilities of residues. Use a model trained with task=masked_residue or task=next_residue."
        )
    model.to(device)
    # what the training said counts first: an attention may be causal under masks too
    known = {"next_residue": True, "masked_residue": False}
    next_residue = known.get(task, bool(model.trunk.encoder.attentions[0].causal))
    kind = "cpu" if torch.device(device).type == "cpu" else "cuda"
    return LanguageModel(model, folder, next_residue, batch_tokens or BATCH_TOKENS[kind], precision)


class Pass(NamedTuple):
    """One segment through the model."""

    protein: int  # whose pass it is: the caller's number
    tokens: Int64[np.ndarray, " length"]  # as the model is shown it, `<cls>` and `<eos>` included
    rows: Int64[np.ndarray, " targets"]  # of the segment, whose outputs are read
    targets: Int64[np.ndarray, " targets"]  # the token that is asked for in each


class DoesNotFit(NamedTuple):
    """In the place of log-probabilities: the pass alone is too large for the device's memory, or for the model."""

    reason: str


def log_probabilities(
    language_model: LanguageModel,
    passes: Iterable[Pass],
    *,
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[tuple[Pass, "Float32[np.ndarray, 'targets tokens'] | DoesNotFit"]]:
    """Each pass with log p of every token of the alphabet (natural logarithm, over all 33) in each of its rows, fp32.

    A pack that does not fit into the memory is halved and tried again, down to one pass.

    Args:
        on_batch: called after each pack with the residues that it held.
    """
    for pack in _packs(passes, language_model.batch_tokens):
        yield from zip(pack, _read(language_model, pack), strict=True)
        if on_batch is not None:
            on_batch(sum(len(one.tokens) - 2 for one in pack))


def _packs(passes: Iterable[Pass], batch_tokens: int) -> Iterator[list[Pass]]:
    pack: list[Pass] = []
    room = batch_tokens
    for one in passes:
        if pack and len(one.tokens) > room:
            yield pack
            pack, room = [], batch_tokens
        pack.append(one)
        room -= len(one.tokens)
    if pack:
        yield pack


def _read(language_model: LanguageModel, pack: list[Pass]) -> list[np.ndarray | DoesNotFit]:
    device = language_model.device

    def alone(one: Pass) -> np.ndarray | DoesNotFit:
        return DoesNotFit(f"its {len(one.tokens) - 2:,} residues do not fit into the memory of {device}")

    def too_long(one: Pass) -> DoesNotFit | None:
        longest = language_model.model.trunk.encoder.longest
        if longest is None or len(one.tokens) <= longest:
            return None
        return DoesNotFit(
            f"its {len(one.tokens) - 2:,} residues are more than the {longest - 2:,} that the model's attention takes"
        )

    return within_memory(partial(_run, language_model), pack, device=device, alone=alone, refused=too_long)


@torch.inference_mode()
def _run(language_model: LanguageModel, pack: Sequence[Pass]) -> Sequence[np.ndarray | DoesNotFit]:
    model, device = language_model.model, language_model.device
    offsets = np.cumsum([0, *(len(one.tokens) for one in pack)])
    tokens = torch.from_numpy(np.concatenate([one.tokens for one in pack])).to(device)
    cu_seqlens = torch.from_numpy(offsets.astype(np.int32)).to(device)
    rows = np.concatenate([one.rows + start for one, start in zip(pack, offsets[:-1], strict=True)])
    with arithmetic(language_model.precision, device):
        logits = model.read(model(tokens, cu_seqlens), cu_seqlens, torch.from_numpy(rows).to(device))
    found = logits.float().log_softmax(dim=1).cpu().numpy()
    return np.split(found, np.cumsum([len(one.rows) for one in pack])[:-1])

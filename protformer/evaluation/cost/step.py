"""A whole training step of one sequence: forward, backward and AdamW of masked-residue modeling through the model.

Left out is what is small or not of the attention: making the batch, clipping, logging, drawing projections anew.
"""

import gc
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from protformer.data import alphabet
from protformer.data.alphabet import TOKENS
from protformer.evaluation.attention_benchmark.cases import DTYPES, Case
from protformer.evaluation.attention_benchmark.memory import of_new_process, peak_resident_bytes
from protformer.evaluation.cost.methods import Timed
from protformer.model import Encoder, LanguageModelHead, ProteinEncoder, ProteinModel, parameter_count

SMALL = 64
"""Tokens of the step that sets everything up in a new process; it is small, so that it leaves no room behind."""
MASKED = 0.15


@dataclass(frozen=True)
class StepCase:
    """One sequence of `length` tokens, `<cls>` and `<eos>` included. `shape` are the settings of conf/model."""

    length: int
    shape: tuple[tuple[str, Any], ...]
    dtype: str
    device: str
    seed: int

    def attention_case(self) -> Case:
        """What the attention of this model is given."""
        shape = dict(self.shape)
        dim = shape["hidden_size"] // shape["num_heads"]
        return Case((self.length,), shape["num_heads"], dim, self.dtype, True, False, self.device)


class Step:
    """A model with its optimiser; a call is one step on random residues of `case.length`."""

    def __init__(self, timed: Timed, case: StepCase) -> None:
        shape = dict(case.shape)
        token_dropout = bool(shape.pop("token_dropout"))
        attending = case.attention_case()
        torch.manual_seed(case.seed)
        encoder = Encoder(attention=lambda **_: timed.attention(attending), feature_seed=case.seed, **shape)
        trunk = ProteinEncoder(encoder=encoder, vocabulary_size=len(TOKENS), token_dropout=token_dropout)
        head = LanguageModelHead(hidden_size=encoder.hidden_size, vocabulary_size=len(TOKENS))
        self.model = ProteinModel(trunk=trunk, head=head).to(case.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.autocast = {"device_type": case.device, "dtype": DTYPES[case.dtype], "enabled": case.dtype != "float32"}
        self.device = case.device
        self.batch = self._batch(case.length, case.seed)

    @property
    def parameters(self) -> int:
        return parameter_count(self.model)

    def __call__(self) -> tuple[Tensor, ...]:
        return (self.on(self.batch),)

    def on(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """A step on (tokens, cu_seqlens, rows of the targets, targets); its loss."""
        tokens, cu_seqlens, rows, targets = batch
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(**self.autocast):
            hidden = self.model(tokens, cu_seqlens)
            loss = cross_entropy(self.model.read(hidden, cu_seqlens, rows).float(), targets)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _batch(self, length: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(4, 24, (length,), generator=generator)
        tokens[0], tokens[-1] = alphabet.CLS, alphabet.EOS
        rows = (torch.randperm(length - 2, generator=generator)[: max(int(MASKED * length), 1)] + 1).sort().values
        targets = tokens[rows]
        tokens[rows] = alphabet.MASK
        offsets = torch.tensor([0, length], dtype=torch.int32)
        device = self.device
        return tokens.to(device), offsets.to(device), rows.to(device), targets.to(device)

    def small(self) -> None:
        """One step of `SMALL` tokens."""
        self.on(self._batch(min(SMALL, self.batch[0].shape[0]), 1))


def step_peak_bytes(timed: Timed, case: StepCase) -> int | None:
    """What one step adds at its peak: on a CPU to the resident memory of a process of its own that has taken a small
    step (so that weights and the optimiser's state are there already), on CUDA to what was allocated before it."""
    if case.device == "cuda":
        step = Step(timed, case)
        step.small()
        return _cuda_peak(step)
    return of_new_process(_report, timed, case, torch.get_num_threads())


def _cuda_peak(step: Step) -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return max(torch.cuda.max_memory_allocated() - before, 0)


def _report(sender: Connection, timed: Timed, case: StepCase, threads: int) -> None:
    torch.set_num_threads(threads)
    step = Step(timed, case)
    step.small()
    gc.collect()
    before = peak_resident_bytes()
    step()
    sender.send(max(peak_resident_bytes() - before, 0))
    sender.close()

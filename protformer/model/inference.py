"""How a trained model runs: the device, the precision, and packs that do not fit into the memory."""

import gc
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeVar

import torch

from protformer.errors import ProtformerError

log = logging.getLogger(__name__)

# Tokens of a pack. A GPU wants many; on a CPU activations should stay in the caches: at ESM-2 8M's size one core gave
# 4,500 residues per second in fp32 and 6,900 in bf16 with 16,384 tokens, 4,800 and 8,600 with 4,096.
BATCH_TOKENS = {"cuda": 16_384, "cpu": 4_096}
Precision = Literal["fp32", "bf16"]
Item = TypeVar("Item")
Made = TypeVar("Made")


def choose_device(name: str = "auto") -> torch.device:
    """`cpu`, `cuda`, or `auto`: the GPU where there is one. ProtformerError for `cuda` without one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ProtformerError(f"device {name} was asked for, but PyTorch sees no GPU here: use cpu or auto.")
    return torch.device(name)


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context to run in: autocast for "bf16", in which norms and the residual stream stay in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def within_memory(
    run: Callable[[Sequence[Item]], Sequence[Made]],
    pack: Sequence[Item],
    *,
    device: torch.device,
    alone: Callable[[Item], Made],
    refused: Callable[[Item], Made | None] = lambda item: None,
    on_retry: Callable[[], object] = lambda: None,
) -> list[Made]:
    """`run(pack)`, an answer for each item; where the memory of `device` ends, of its halves, down to one item.

    Args:
        alone: gives the answer for an item that does not fit by itself.
        refused: gives the answer for an item that the model cannot take at all; None where it can.
        on_retry: called each time that a pack did not fit.
    """
    answers = [refused(item) for item in pack]
    if any(answer is not None for answer in answers):
        taken = [item for item, answer in zip(pack, answers, strict=True) if answer is None]
        found = iter(within_memory(run, taken, device=device, alone=alone, on_retry=on_retry) if taken else [])
        return [next(found) if answer is None else answer for answer in answers]
    made = attempt(run, pack)
    if made is not None:
        return made
    on_retry()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    gc.collect()
    if len(pack) == 1:
        return [alone(pack[0])]
    log.warning("%s sequences did not fit into the memory of %s together: halved", f"{len(pack):,}", device)
    middle = len(pack) // 2
    return [
        one
        for half in (pack[:middle], pack[middle:])
        for one in within_memory(run, half, device=device, alone=alone, on_retry=on_retry)
    ]


def attempt(run: Callable[[Sequence[Item]], Sequence[Made]], pack: Sequence[Item]) -> list[Made] | None:
    """`run(pack)`, or None where memory was short. (In a frame of its own: an error keeps tensors alive.)"""
    try:
        return list(run(pack))
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):  # PyTorch's CPU allocator
            return None
        raise

"""Block sizes of the kernels: a small fixed table. A search at run time would compile for minutes and find little."""

from typing import NamedTuple

import torch


class Blocks(NamedTuple):
    """A kernel's block of tokens and of features, its warps, and the stages of its loads."""

    tokens: int
    features: int
    warps: int
    stages: int


COMBINE = "combine_kernel"
CAUSAL = ("causal_kernel", "causal_query_gradient_kernel", "causal_key_gradient_kernel")
KERNELS = (COMBINE, "state_kernel", "query_kernel", "query_gradient_kernel", "key_gradient_kernel", *CAUSAL)

# Taken in place of the table's: kernel -> Blocks. For tests (tiny blocks) and for `benchmarks/gpu_attention.py`.
OVERRIDES: dict[str, Blocks] = {}

# A Hopper or data-centre GPU has 163 KB and more a block, consumer GPUs 99.
LARGE_SHARED_MEMORY = 160 * 1024


def block_sizes(block_d: int, fp32: bool, device: torch.device) -> dict[str, Blocks]:
    """By kernel, for a padded dim, fp32 inputs or not, and the device.

    64 rows for 4 warps is one warp group's product on Hopper; with 8 warps and 64 rows Triton has each half of the
    warps do the same work. Fewer features a block where the accumulators are wide, or three bf16 terms take three times
    the registers; a causal kernel holds a square block of rows besides.
    """
    wide = block_d > 64
    if not _takes_large_blocks(device):
        features = 16 if wide and fp32 else 32
        sizes: dict[str, Blocks] = dict.fromkeys(KERNELS, Blocks(32, features, 4, 1))
    else:
        stages = 1 if fp32 else 2
        sizes = dict.fromkeys(KERNELS, Blocks(64, 32 if wide or fp32 else 64, 4, stages))
        sizes |= dict.fromkeys(CAUSAL, Blocks(64, 16 if wide and fp32 else 32, 4, 1))
        sizes["state_kernel"] = Blocks(64, 64, 4, stages)
    # (a combination of states only moves memory: many small programs)
    sizes[COMBINE] = Blocks(16, 16, 4, 2)
    return sizes | OVERRIDES


def _takes_large_blocks(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    properties = torch.cuda.get_device_properties(device)
    # Triton 3.6 fails on the causal kernels where 64 rows make it use Blackwell's tensor memory.
    return properties.major < 10 and properties.shared_memory_per_block_optin >= LARGE_SHARED_MEMORY

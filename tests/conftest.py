"""Shapes in type hints are checked under test: jaxtyping's hook wraps every function of the package."""

import os

import torch
from jaxtyping import install_import_hook

os.environ.setdefault("WANDB_MODE", "offline")
# Tiny shapes: threads only get in one another's way, and one thread is reproducible to the bit.
torch.set_num_threads(1)

if os.environ.get("PROTFORMER_SHAPE_CHECKS", "1") == "1":
    install_import_hook("protformer", "beartype.beartype")

"""The model: rotary embedding, block, encoder, heads, and the model folder they are saved in."""

from protformer.model.encoder import Encoder, ProteinEncoder
from protformer.model.folder import (
    build_model,
    find_model_folder,
    initialise_from,
    load_model,
    parameter_count,
    read_config,
    save_model,
)
from protformer.model.heads import LanguageModelHead, ResidueHead, SequenceHead
from protformer.model.performer import Performer
from protformer.model.pooling import Pooling
from protformer.model.protein_model import ProteinModel

__all__ = [
    "Encoder",
    "LanguageModelHead",
    "Performer",
    "Pooling",
    "ProteinEncoder",
    "ProteinModel",
    "ResidueHead",
    "SequenceHead",
    "build_model",
    "find_model_folder",
    "initialise_from",
    "load_model",
    "parameter_count",
    "read_config",
    "save_model",
]

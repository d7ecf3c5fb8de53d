"""Model and FASTA to vectors on disk. Knows nothing of training."""

from protformer.embedding.compute import Embedder, choose_device
from protformer.embedding.job import EmbeddingReport, Watch, embed_fasta
from protformer.embedding.options import Options, Policies

__all__ = [
    "Embedder",
    "EmbeddingReport",
    "Options",
    "Policies",
    "Watch",
    "choose_device",
    "embed_fasta",
]

"""Model and FASTA to vectors on disk. Knows nothing of training."""

from protformer.embedding.compute import Embedder
from protformer.embedding.job import EmbeddingReport, Watch, embed_fasta
from protformer.embedding.options import Options, Policies

__all__ = [
    "Embedder",
    "EmbeddingReport",
    "Options",
    "Policies",
    "Watch",
    "embed_fasta",
]

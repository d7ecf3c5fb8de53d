"""Model and FASTA to vectors on disk. Knows nothing of training."""

from protformer.embedding.embed import choose_device, embed_corpus
from protformer.embedding.job import EmbeddingReport, embed_fasta
from protformer.embedding.store import EmbeddingWriter, Failure

__all__ = [
    "EmbeddingReport",
    "EmbeddingWriter",
    "Failure",
    "choose_device",
    "embed_corpus",
    "embed_fasta",
]

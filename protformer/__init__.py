"""Protein sequence models on the Performer (FAVOR+ linear attention), with exact attention beside it."""

__version__ = "0.1.0"

from protformer.model import Performer

__all__ = ["Performer", "__version__"]

"""Protein families out of a simulator: sequences whose structure, history and best reachable perplexity are known.

ancestors from a grammar of structural states (grammar, profiles) -> trees (tree) -> substitutions under a published
model, insertions and deletions (substitution, evolve) -> families (family) -> files and a report (dataset), with the
lowest loss that any model could reach (bound). Beside them, `recall`: answers thousands of residues from their
questions.
Numpy alone, and everything a pure function of the settings and their seed.
"""

from protformer.data.simulate.dataset import simulate
from protformer.data.simulate.family import Family, Settings, draw_family

__all__ = ["Family", "Settings", "draw_family", "simulate"]

"""Where a figure was measured: processor, versions, commit, date. Every benchmark's rows carry it."""

from pathlib import Path

from protformer.surroundings import surroundings

__all__ = ["REPOSITORY", "surroundings"]

REPOSITORY = Path(__file__).resolve().parents[1]

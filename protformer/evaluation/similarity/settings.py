"""The settings of the experiment, checked."""

from dataclasses import dataclass
from typing import Any

from protformer.errors import ProtformerError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The key `similarity` of `conf/experiment/amino_acid_similarity.yaml`; ProtformerError where it cannot be."""

    models: list[str]
    proteins: str | list[str]
    sample: int
    longest: int
    untrained: int
    resamples: int
    permutations: int
    batch_tokens: int
    seed: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Settings":
        """From a resolved configuration."""
        own = dict(config["similarity"])
        own["models"] = [own["models"]] if isinstance(own["models"], str) else list(own["models"] or [])
        if not own["models"] or not own["proteins"]:
            raise ProtformerError(
                "This experiment looks at trained models on proteins: write similarity.models=[FOLDER,FOLDER] (model or"
                " run folders) and similarity.proteins=FASTA."
            )
        return cls(**own, seed=int(config["seed"]))

    def __post_init__(self) -> None:
        least = {"sample": 2, "longest": 1, "untrained": 0, "resamples": 20, "permutations": 20, "batch_tokens": 1}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ProtformerError(f"similarity.{name} must be at least {number}, not {getattr(self, name)}.")

"""The settings of the experiment, checked."""

from dataclasses import dataclass
from typing import Any

from protformer.errors import ProtformerError
from protformer.evaluation.approximation.estimators import PROJECTIONS, check_estimator


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The key `approximation` of `conf/experiment/approximation_error.yaml`; ProtformerError where it cannot be."""

    length: int
    dim: int
    scales: list[float]
    samples: int
    features: list[int]
    methods: list[str]
    projections: list[str]
    rows: int
    redraw_features: int
    redraws: int
    model: str | None
    proteins: str | list[str] | None
    longest: int
    seed: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Settings":
        """From a resolved configuration."""
        own = dict(config["approximation"])
        own["scales"] = [float(scale) for scale in own["scales"]]
        return cls(**own, seed=int(config["seed"]))

    def __post_init__(self) -> None:
        for name in ("length", "dim", "rows", "redraw_features", "longest"):
            if getattr(self, name) < 1:
                raise ProtformerError(f"approximation.{name} must be at least 1, not {getattr(self, name)}.")
        if self.samples < 2 or self.redraws < 2:
            raise ProtformerError(
                "approximation.samples and approximation.redraws must be at least 2, for their spread."
            )
        if self.redraws & (self.redraws - 1):
            raise ProtformerError(f"approximation.redraws must be a power of two, not {self.redraws}.")
        for name in ("features", "methods", "projections"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ProtformerError(f"approximation.{name} must name one or more, each once, not {values}.")
        if min(self.features) < 1 or any(scale <= 0 for scale in self.scales):
            raise ProtformerError("approximation.features and approximation.scales must be above 0.")
        unknown = [p for p in self.projections if p not in PROJECTIONS]
        if unknown:
            raise ProtformerError(f"approximation.projections has {unknown[0]!r}: there are {', '.join(PROJECTIONS)}.")
        for name in self.methods:
            check_estimator(name, [*self.features, self.redraw_features])
        if (self.model is None) != (self.proteins is None):
            raise ProtformerError(
                "Real activations need both approximation.model=FOLDER (a model or run folder) and"
                " approximation.proteins=FASTA; without both the figure on random inputs alone is made."
            )
        if self.model is None and not self.scales:
            raise ProtformerError("approximation.scales is empty and no approximation.model is given: nothing to do.")

"""Generalised features: phi(x) = f(W x) + epsilon (arXiv 2009.14794, section 2.2: "generalized attention").

No estimate of the softmax kernel. f = ReLU with epsilon 1e-3 is the variant that won on proteins in the paper. Without
the projection phi(x) = f(x) + epsilon, as the authors' code has it by default: then there are head_dim features.
"""

from typing import Any

import torch
from torch import Tensor

from protformer.features.base import FeatureMap
from protformer.features.families import ACTIVATIONS
from protformer.features.projections import orthogonal

# exp(w.x) is the exponential family without the norm: stabilised like it, and positive without an epsilon.
NAMES = (*ACTIVATIONS, "exp")


class GeneralizedFeatures(FeatureMap):
    """`activation`: relu, squared_relu, elu (elu + 1), softplus, sigmoid or exp; epsilon keeps denominators positive.

    With `project=False` the features are f of the inputs themselves, unscaled: `num_features` is then head_dim,
    whatever was given.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        num_features: int = 256,
        per_head: bool = False,
        activation: str = "relu",
        epsilon: float = 1e-3,
        project: bool = True,
    ) -> None:
        if activation not in NAMES:
            raise ValueError(f"unknown activation {activation!r}; there are {', '.join(NAMES)}")
        if epsilon <= 0:
            raise ValueError(f"epsilon must be above 0 or a row of zero features has no average, not {epsilon}")
        self.project = project
        super().__init__(
            num_heads=num_heads,
            head_dim=head_dim,
            num_features=num_features if project else head_dim,
            per_head=per_head and project,
        )
        self.activation = activation
        self.family_name = "exponential" if activation == "exp" else activation
        self.epsilon = epsilon

    @property
    def scale(self) -> float:
        return super().scale if self.project else 1.0

    def draw(self, generator: torch.Generator) -> Tensor:
        if not self.project:
            return torch.eye(self.head_dim, dtype=torch.float64)
        return orthogonal(self.rows, self.head_dim, generator)

    def options(self) -> dict[str, Any]:
        return {"activation": self.activation, "epsilon": self.epsilon, "project": self.project}

"""The element-wise half of every feature map: from logits to features and back, with the stabiliser that cancels.

A map's features are `f(x W^T)`; the matrix products are the attention operator's business, which walks chunks that
stay in cache and recomputes them in the backward. What differs between maps is what happens to one chunk of logits,
and that is a `Family`: three small classes of pure functions, with hand-derived derivatives, because autograd does not
reach into a custom operator.

Shapes in this file: logits `[heads, tokens, features]`, half_norm `[heads, tokens, 1]` is |x|^2 / 2 of the scaled
input, a stabiliser is `[heads, 1, features]` or `[heads, 1, 1]`.

Why the stabiliser is per feature for the exponential family: with M_i the maximum over a segment's keys of feature i's
logit, features exp(k_i - M_i) and exp(q_i + M_i - max_j(q_j + M_j)) have the same ratio of numerator and denominator
as the unscaled ones, and the denominator is never below 1: the feature that attains the query's maximum meets the key
that attains M_i. One maximum over all features (the usual choice) can underflow to 0/0 when queries and keys prefer
different features; this cannot, and costs nothing more.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Family(Protocol):
    """The contract; `columns` is how many features one row of the projection makes."""

    columns: int
    uses_norm: bool
    signed: bool

    def stabiliser(self, logits: Tensor, half_norm: Tensor) -> Tensor:
        """Log scale of these keys' features, to be joined over chunks by a maximum."""
        ...

    def key(self, logits: Tensor, half_norm: Tensor, stabiliser: Tensor) -> Tensor:
        """Key features over exp(stabiliser)."""
        ...

    def query(self, logits: Tensor, stabiliser: Tensor) -> tuple[Tensor, Tensor]:
        """Query features times exp(stabiliser) over exp(row scale), and the row scale `[heads, tokens, 1]`."""
        ...

    def key_rows(self, logits: Tensor, half_norm: Tensor) -> tuple[Tensor, Tensor]:
        """Key features over exp(row scale), each row with a scale of its own (for causal attention in a chunk)."""
        ...

    def key_vjp(self, grad: Tensor, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradient of the logits and of half_norm from that of the key features."""
        ...

    def query_vjp(self, grad: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """Gradient of the logits from that of the query features."""
        ...


class Exponential:
    """exp(w.x - |x|^2/2). A query's own |q|^2/2 scales its whole row and cancels, so it is left out."""

    columns = 1
    uses_norm = True
    signed = False

    def stabiliser(self, logits: Tensor, half_norm: Tensor) -> Tensor:
        return (logits - half_norm).amax(dim=1, keepdim=True)

    def key(self, logits: Tensor, half_norm: Tensor, stabiliser: Tensor) -> Tensor:
        return (logits - half_norm).sub_(stabiliser).exp_()

    def query(self, logits: Tensor, stabiliser: Tensor) -> tuple[Tensor, Tensor]:
        shifted = logits + stabiliser
        scale = shifted.amax(dim=2, keepdim=True)
        return shifted.sub_(scale).exp_(), scale

    def key_rows(self, logits: Tensor, half_norm: Tensor) -> tuple[Tensor, Tensor]:
        scale = logits.amax(dim=2, keepdim=True)
        return (logits - scale).exp_(), scale - half_norm

    def key_vjp(self, grad: Tensor, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        grad_logits = grad * features
        return grad_logits, -grad_logits.sum(dim=2, keepdim=True)

    def query_vjp(self, grad: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        return grad * features


class Trigonometric:
    """exp(|x|^2/2) [cos(w.x), sin(w.x)]; the estimate can be negative, so a denominator can pass through zero."""

    columns = 2
    uses_norm = True
    signed = True

    def stabiliser(self, logits: Tensor, half_norm: Tensor) -> Tensor:
        return half_norm.amax(dim=1, keepdim=True)

    def key(self, logits: Tensor, half_norm: Tensor, stabiliser: Tensor) -> Tensor:
        return torch.cat([logits.cos(), logits.sin()], dim=2).mul_((half_norm - stabiliser).exp_())

    def query(self, logits: Tensor, stabiliser: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([logits.cos(), logits.sin()], dim=2), stabiliser.expand(-1, logits.shape[1], -1)

    def key_rows(self, logits: Tensor, half_norm: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([logits.cos(), logits.sin()], dim=2), half_norm

    def key_vjp(self, grad: Tensor, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.query_vjp(grad, features, logits), (grad * features).sum(dim=2, keepdim=True)

    def query_vjp(self, grad: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        # d(s cos) = -s sin and d(s sin) = s cos, and `features` already holds both with their scale s
        grad_cos, grad_sin = grad.chunk(2, dim=2)
        cos, sin = features.chunk(2, dim=2)
        return grad_sin * cos - grad_cos * sin


class Activation:
    """f(w.x) + epsilon for a non-negative f: no kernel is estimated and nothing needs a stabiliser."""

    columns = 1
    uses_norm = False
    signed = False

    def __init__(self, name: str, epsilon: float) -> None:
        self.name = name
        self.epsilon = epsilon

    def _features(self, logits: Tensor) -> Tensor:
        match self.name:
            case "relu":
                features = logits.relu()
            case "squared_relu":
                features = logits.relu().square()
            case "elu":
                features = torch.nn.functional.elu(logits) + 1.0
            case "softplus":
                features = torch.nn.functional.softplus(logits)
            case "sigmoid":
                features = logits.sigmoid()
            case _:
                raise ValueError(f"unknown activation {self.name!r}; there are {', '.join(ACTIVATIONS)}")
        return features + self.epsilon

    def _derivative(self, logits: Tensor) -> Tensor:
        match self.name:
            case "relu":
                return (logits > 0).to(logits.dtype)
            case "squared_relu":
                return logits.relu().mul_(2.0)
            case "elu":
                return logits.clamp(max=0.0).exp_()
            case "softplus":
                return logits.sigmoid()
            case _:
                sigmoid = logits.sigmoid()
                return sigmoid * (1.0 - sigmoid)

    def stabiliser(self, logits: Tensor, half_norm: Tensor) -> Tensor:
        return logits.new_zeros(logits.shape[0], 1, 1)

    def key(self, logits: Tensor, half_norm: Tensor, stabiliser: Tensor) -> Tensor:
        return self._features(logits)

    def query(self, logits: Tensor, stabiliser: Tensor) -> tuple[Tensor, Tensor]:
        return self._features(logits), logits.new_zeros(logits.shape[0], logits.shape[1], 1)

    def key_rows(self, logits: Tensor, half_norm: Tensor) -> tuple[Tensor, Tensor]:
        return self._features(logits), logits.new_zeros(logits.shape[0], logits.shape[1], 1)

    def key_vjp(self, grad: Tensor, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        return grad * self._derivative(logits), None

    def query_vjp(self, grad: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        return grad * self._derivative(logits)


ACTIVATIONS = ("relu", "squared_relu", "elu", "softplus", "sigmoid")


def family(name: str, epsilon: float = 0.0) -> Family:
    """The family that an operator's string argument names (operators take no Python objects)."""
    if name == "exponential":
        return Exponential()
    if name == "trigonometric":
        return Trigonometric()
    return Activation(name, epsilon)

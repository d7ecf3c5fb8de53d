"""The element-wise half of every feature map: from logits to features and back, with the stabiliser that cancels.

A map's features are `f(x W^T)`; the matrix products are the attention operator's business, which walks chunks that
stay in cache and recomputes them in the backward. What differs between maps is what happens to one chunk of logits,
and that is a `Family`: a small class of pure functions, with hand-derived derivatives, because autograd does not
reach into a custom operator.

Shapes in this file: logits `[heads, tokens, rows]`, features `[heads, tokens, columns * rows]`, a key's log weight
`[heads, tokens, 1]`, a stabiliser `[heads, 1, 1]` or `[heads, 1, rows]`. A function whose name ends in `_` may
overwrite its first argument.

Two ways to keep exponentials in range. `Exponential` takes logits as they are, which needs them within +-30: then all
products of features lie within e^+-60 and sums over 100,000 keys stay in fp32. The operator checks, and otherwise takes
`StabilisedExponential`. Its stabiliser is per feature: with M_i the maximum over a segment's keys of feature i's logit,
features exp(k_i - M_i) and exp(q_i + M_i - max_j(q_j + M_j)) have the same ratio of numerator and denominator as the
unscaled ones, and the denominator is never below 1: the feature that attains the query's maximum meets the key that
attains M_i. One maximum over all features (the usual choice) can underflow to 0/0 when queries and keys prefer
different features; this cannot.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

# Logits and differences of log weights up to this size need no stabiliser (see above). A causal row may have but one
# key, whose weight then is no maximum: 20 for its logits and the query's leave room for 30 of weight.
PLAIN_RANGE = 30.0
CAUSAL_RANGE = 20.0


@runtime_checkable
class Family(Protocol):
    """The contract. `columns`: features per row of the projection. `signed`: denominators can pass through zero."""

    columns: int
    signed: bool

    def in_range(self, logits: Tensor, weight: Tensor | None) -> bool:
        """Whether this family can take these logits (and log weights, where segments share one stabiliser)."""
        ...

    def stabiliser(self, logits: Tensor, weight: Tensor | None) -> Tensor | None:
        """Log scale of these keys, to be joined over chunks by a maximum; None where nothing is scaled."""
        ...

    def key_(self, logits: Tensor, weight: Tensor | None, stabiliser: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Features and a factor per key `[heads, tokens, 1]`: their product is phi(k) over exp(stabiliser)."""
        ...

    def query_(self, logits: Tensor, stabiliser: Tensor | None) -> Tensor:
        """phi(q) up to a factor per row, for a state over exp(stabiliser)."""
        ...

    def key_vjp_(self, grad: Tensor, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the logits and of the log weight, from that of features times factor, with the factor in it."""
        ...

    def query_vjp_(self, grad: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """Gradient of the logits from that of the features."""
        ...


class _Weighted:
    """Keys whose log weight is a factor beside the features, relative to the largest so far."""

    def in_range(self, logits: Tensor, weight: Tensor | None) -> bool:
        if weight is None or weight.shape[1] == 1:
            return True
        spread = weight.amax(dim=1) - weight.amin(dim=1)
        return spread.max().item() <= PLAIN_RANGE  # (NaN is out of range: it must not reach other segments)

    def stabiliser(self, logits: Tensor, weight: Tensor | None) -> Tensor | None:
        return None if weight is None else weight.amax(dim=1, keepdim=True)

    def factor(self, weight: Tensor | None, stabiliser: Tensor | None) -> Tensor | None:
        return None if weight is None or stabiliser is None else (weight - stabiliser).exp_()


class Exponential(_Weighted):
    """exp(w.x) with the key's weight beside it, for logits within +-limit."""

    columns = 1
    signed = False

    def __init__(self, limit: float = PLAIN_RANGE) -> None:
        self.limit = limit

    def in_range(self, logits: Tensor, weight: Tensor | None) -> bool:
        low, high = torch.aminmax(logits)
        in_range = -self.limit <= low.item() and high.item() <= self.limit  # (NaN is out of range)
        return in_range and super().in_range(logits, weight)

    def key_(self, logits: Tensor, weight: Tensor | None, stabiliser: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return logits.exp_(), self.factor(weight, stabiliser)

    def query_(self, logits: Tensor, stabiliser: Tensor | None) -> Tensor:
        return logits.exp_()

    def key_vjp_(self, grad: Tensor, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        grad.mul_(features)
        return grad, grad.sum(dim=2, keepdim=True)

    def query_vjp_(self, grad: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        return grad.mul_(features)


class StabilisedExponential:
    """exp(w.x + weight - M), M per feature. A query's own factor scales its whole row and cancels."""

    columns = 1
    signed = False

    def in_range(self, logits: Tensor, weight: Tensor | None) -> bool:
        return True

    def stabiliser(self, logits: Tensor, weight: Tensor | None) -> Tensor:
        return (logits if weight is None else logits + weight).amax(dim=1, keepdim=True)

    def key_(self, logits: Tensor, weight: Tensor | None, stabiliser: Tensor | None) -> tuple[Tensor, None]:
        if weight is not None:
            logits.add_(weight)
        return (logits if stabiliser is None else logits.sub_(stabiliser)).exp_(), None

    def query_(self, logits: Tensor, stabiliser: Tensor | None) -> Tensor:
        return self.query_rows_(logits, stabiliser)[0]

    def query_rows_(self, logits: Tensor, stabiliser: Tensor | None) -> tuple[Tensor, Tensor]:
        """Query features over exp(row scale), and the row scale `[heads, tokens, 1]`."""
        if stabiliser is not None:
            logits.add_(stabiliser)
        scale = logits.amax(dim=2, keepdim=True)
        return logits.sub_(scale).exp_(), scale

    def key_vjp_(self, grad: Tensor, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        grad.mul_(features)
        return grad, grad.sum(dim=2, keepdim=True)

    def query_vjp_(self, grad: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        return grad.mul_(features)


class Trigonometric(_Weighted):
    """[cos(w.x), sin(w.x)]; the estimate can be negative, so a denominator can pass through zero."""

    columns = 2
    signed = True

    def key_(self, logits: Tensor, weight: Tensor | None, stabiliser: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return torch.cat([logits.cos(), logits.sin()], dim=2), self.factor(weight, stabiliser)

    def query_(self, logits: Tensor, stabiliser: Tensor | None) -> Tensor:
        return torch.cat([logits.cos(), logits.sin()], dim=2)

    def key_vjp_(self, grad: Tensor, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_vjp_(grad, features, logits), (grad * features).sum(dim=2, keepdim=True)

    def query_vjp_(self, grad: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        grad_cos, grad_sin = grad.chunk(2, dim=2)
        cos, sin = features.chunk(2, dim=2)
        return (grad_sin * cos).addcmul_(grad_cos, sin, value=-1.0)


class Cosine(_Weighted):
    """cos(w.x + phase): one column where `Trigonometric` has two; the phase is the operator's offset."""

    columns = 1
    signed = True

    def key_(self, logits: Tensor, weight: Tensor | None, stabiliser: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return logits.cos(), self.factor(weight, stabiliser)

    def query_(self, logits: Tensor, stabiliser: Tensor | None) -> Tensor:
        return logits.cos()

    def key_vjp_(self, grad: Tensor, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_vjp_(grad, features, logits), (grad * features).sum(dim=2, keepdim=True)

    def query_vjp_(self, grad: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        return logits.sin().mul_(grad).neg_()


class Activation:
    """f(w.x) + epsilon for a non-negative f: no kernel is estimated and nothing needs a stabiliser."""

    columns = 1
    signed = False

    def __init__(self, name: str, epsilon: float) -> None:
        if name not in ACTIVATIONS:
            raise ValueError(f"unknown activation {name!r}; there are {', '.join(ACTIVATIONS)}")
        self.name = name
        self.epsilon = epsilon

    def in_range(self, logits: Tensor, weight: Tensor | None) -> bool:
        return True

    def stabiliser(self, logits: Tensor, weight: Tensor | None) -> None:
        return None

    def key_(self, logits: Tensor, weight: Tensor | None, stabiliser: Tensor | None) -> tuple[Tensor, None]:
        return self.query_(logits, stabiliser), None

    def query_(self, logits: Tensor, stabiliser: Tensor | None) -> Tensor:
        match self.name:
            case "relu":
                return logits.clamp_min_(0.0).add_(self.epsilon)
            case "squared_relu":
                return logits.relu().square() + self.epsilon
            case "elu":
                return torch.nn.functional.elu(logits) + (1.0 + self.epsilon)
            case "softplus":
                return torch.nn.functional.softplus(logits) + self.epsilon
            case _:
                return logits.sigmoid() + self.epsilon

    def key_vjp_(self, grad: Tensor, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_vjp_(grad, features, logits), grad.new_zeros(grad.shape[0], grad.shape[1], 1)

    def query_vjp_(self, grad: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        match self.name:
            case "relu":  # (from the features, which have overwritten the logits)
                return torch.ops.aten.threshold_backward(grad, features, self.epsilon)
            case "squared_relu":
                return grad.mul_(logits.relu().mul_(2.0))
            case "elu":
                return grad.mul_(logits.clamp(max=0.0).exp_())
            case "softplus":
                return grad.mul_(logits.sigmoid())
            case _:
                sigmoid = logits.sigmoid()
                return grad.mul_(sigmoid.mul_(1.0 - sigmoid))


ACTIVATIONS = ("relu", "squared_relu", "elu", "softplus", "sigmoid")


def family(name: str, epsilon: float = 0.0, *, plain: bool = True, causal: bool = False) -> Family:
    """The family that an operator's string argument names (operators take no Python objects)."""
    if name == "exponential":
        return Exponential(CAUSAL_RANGE if causal else PLAIN_RANGE) if plain else StabilisedExponential()
    if name == "trigonometric":
        return Trigonometric()
    if name == "cosine":
        return Cosine()
    return Activation(name, epsilon)

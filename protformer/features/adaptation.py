"""What a feature map that looks at its inputs tells the attention operator: shifts and scales per segment and head."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Adaptation(NamedTuple):
    """Scales of queries and keys, and what is added to logits and key weights; S is segments or 1, H heads or 1.

    With x = q * query_scale and y = k * key_scale, features of queries are made from w.x + offset and those of keys
    from w.y + offset, and a key's log weight is -norm_weight * norm_scale * |y|^2 / (2 sqrt(dim)) + tilt.y. All are
    fp32 and constants to autograd: an estimator is unbiased whatever they are, so their gradient would be noise.

    `constant` is the log factor of the estimate, which cancels in attention; the reference alone reads it. The three
    scales stand or fall together.
    """

    query_scale: Float[Tensor, "S H dim"] | None = None
    key_scale: Float[Tensor, "S H dim"] | None = None
    norm_scale: Float[Tensor, "S H"] | None = None
    tilt: Float[Tensor, "S H dim"] | None = None
    offset: Float[Tensor, "S H rows"] | None = None
    constant: Float[Tensor, "S H"] | None = None


NO_ADAPTATION = Adaptation()

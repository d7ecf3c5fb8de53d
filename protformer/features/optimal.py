"""Optimal positive features, FAVOR++: phi(x) = D exp(A|w|^2 + B w.x - |x|^2/2) (arXiv 2205.15317).

Positive features whose exponent A <= 0 damps long rows, chosen from the statistics of the inputs to have the least
variance; A = 0 is FAVOR+. Unbiased for every A.
"""

from protformer.features.adaptive import AdaptiveFeatures


class OptimalPositiveFeatures(AdaptiveFeatures):
    """`num_features` optimal positive features; A per head from the moments of its queries and keys."""

    @property
    def optimal(self) -> bool:
        return True

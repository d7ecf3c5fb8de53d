"""Positive features of FAVOR+: phi(x) = m^-1/2 exp(w.x - |x|^2/2) (arXiv 2009.14794, lemma 1).

Unbiased for the softmax kernel; with x, y scaled by d^-1/4 and z = x + y, iid rows give
MSE = (1/m) e^{|z|^2} SM^2 (1 - e^{-|z|^2}): small where the kernel is small, unlike the trigonometric features.
"""

from protformer.features.adaptive import AdaptiveFeatures


class PositiveFeatures(AdaptiveFeatures):
    """`num_features` positive features, from orthogonal blocks unless `orthogonal_rows` is off."""

    @property
    def optimal(self) -> bool:
        return False

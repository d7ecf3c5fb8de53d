"""Simplified asymmetric dense-exponential features, SADERF (arXiv 2302.00787, section 4).

Before optimal positive features, every dimension l of the queries is multiplied by P_l and that of the keys divided by
it, P_l = (sum y_l^2 / sum x_l^2)^(1/4): products stay as they are, and |x + y|^2, which rules the variance, falls. The
general dense features (ADERF, SDERF) rotate as well, for an eigendecomposition per head and segment; they are not here.
"""

from protformer.features.optimal import OptimalPositiveFeatures


class DenseFeatures(OptimalPositiveFeatures):
    """`num_features` features of SADERF for the softmax kernel."""

    def __init__(self, **arguments) -> None:
        if arguments.get("kernel", "softmax") != "softmax":
            raise ValueError("dense features estimate the softmax kernel only: balancing changes |q - k|")
        super().__init__(**arguments)

    @property
    def dense(self) -> bool:
        return True

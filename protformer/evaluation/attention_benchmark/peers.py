"""Other packages' linear attention, where they are installed (the extra `peers`).

The package itself never imports them. `fast-transformers` needs a compiler at installation, `flash-linear-attention`
is Triton's and has no random features, `linear-attention-transformer` has no random features either.
"""

import contextlib
import importlib
import io
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

from protformer.evaluation.attention_benchmark.cases import Attend, Case
from protformer.evaluation.attention_benchmark.contenders import Contender, linear_products

PEER_DISTRIBUTIONS = ("performer-pytorch", "torch-geometric")
PEER_MODULES = ("performer_pytorch", "torch_geometric.nn.attention.performer")


def import_peer(module: str) -> Any:
    """The module of another package; what it prints or warns of on the way is its own affair."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


@dataclass(frozen=True)
class Peer(Contender):
    """A Performer of another package, with as many features as ours."""

    num_features: int

    module: ClassVar[str]

    @property
    def features(self) -> int:
        return self.num_features

    def obstacle(self, case: Case) -> str | None:
        try:
            import_peer(self.module)
        except ModuleNotFoundError as error:
            if error.name == self.module.partition(".")[0]:
                return "not installed: pip install 'protformer[peers]'"
            return f"{self.module} cannot be imported ({error})"
        except Exception as error:  # a package may fail in any way on a PyTorch that it does not know
            return f"{self.module} cannot be imported ({type(error).__name__}: {error})"
        return None

    def products(self, case: Case) -> float:
        return linear_products(case, self.num_features, self.num_features)

    def workspace(self, case: Case) -> int:
        # It keeps the features of queries and keys, and for the backward what they were made from.
        matrices = 10 if case.backward else 4
        return matrices * case.total * case.heads * self.num_features * case.torch_dtype.itemsize


@dataclass(frozen=True)
class PerformerPytorch(Peer):
    """`FastAttention` of performer-pytorch: its softmax kernel, or its ReLU features.

    Causal, it walks 128 chunks with a state for each token, unless the CUDA extension of fast-transformers is there.
    """

    map: str

    module: ClassVar[str] = PEER_MODULES[0]

    @property
    def name(self) -> str:
        return "performer-pytorch" if self.map == "positive" else f"performer-pytorch-{self.map}"

    @property
    def map_name(self) -> str:
        return self.map

    def attend(self, case: Case) -> Attend:
        fast_attention = import_peer(self.module).FastAttention
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that there is no CUDA extension
            attention = fast_attention(
                case.dim,
                nb_features=self.num_features,
                causal=case.causal,
                generalized_attention=self.map == "relu",
            )
        return attention.to(case.device)

    def workspace(self, case: Case) -> int:
        if not case.causal:
            return super().workspace(case)
        states = case.total if case.backward else case.total // 128 + 1
        return 3 * states * case.heads * self.num_features * case.dim * case.torch_dtype.itemsize


@dataclass(frozen=True)
class TorchGeometric(Peer):
    """The projection of PyTorch Geometric's `PerformerAttention`, which is ReLU's; its own layers for q, k, v apart."""

    module: ClassVar[str] = PEER_MODULES[1]

    @property
    def name(self) -> str:
        return "torch-geometric-relu"

    @property
    def map_name(self) -> str:
        return "relu"

    def obstacle(self, case: Case) -> str | None:
        return "has no causal attention" if case.causal else super().obstacle(case)

    def attend(self, case: Case) -> Attend:
        performer = import_peer(self.module)
        attention = performer.PerformerProjection(case.dim)
        # Its number of features is dim x log dim; the buffer takes any.
        attention.projection_matrix = performer.orthogonal_matrix(self.num_features, case.dim)
        return attention.to(case.device, case.torch_dtype)

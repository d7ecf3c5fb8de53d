"""The library door: a Performer over continuous inputs `[batch, length, embed_dim]`, for use inside other models.

The padded rectangle is this door's convenience; inside, sequences are packed, so padding costs no attention and no mask
can be wrong.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from protformer.attention import FavorAttention
from protformer.features import GeneralizedFeatures, PositiveFeatures, orthogonal
from protformer.model.encoder import Encoder
from protformer.model.pooling import Pooling, PoolingName


class Performer(nn.Module):
    """Maps `[batch, length, embed_dim]` to `[batch, hidden_size]`.

    Args:
        embed_dim: width of the inputs.
        hidden_size: width inside and of the output; a multiple of `2 * num_heads`.
        num_features: random features per head.
        num_layers, num_heads: of the encoder.
        dropout: after attention, feed-forward and the input projection.
        pooling: "last" (the last position, the default), "mean", "attention" or "first".
        features: "positive" (an unbiased estimate of softmax attention) or "relu" (generalised attention).
        causal: whether a position sees only itself and those before it.
        seed: of the features' projections.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_size: int = 256,
        num_features: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        dropout: float = 0.1,
        *,
        pooling: PoolingName = "last",
        features: str = "positive",
        causal: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if features not in ("positive", "relu"):
            raise ValueError(f"features must be 'positive' or 'relu', not {features!r}")
        feature_map = PositiveFeatures if features == "positive" else GeneralizedFeatures
        self.embed_dim = embed_dim
        self.hidden_size = hidden_size
        self.input_projection = nn.Linear(embed_dim, hidden_size)
        self.input_dropout = nn.Dropout(dropout)
        self.encoder = Encoder(
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            attention=lambda **shape: FavorAttention(
                **shape, features=lambda **s: feature_map(num_features=num_features, **s), causal=causal
            ),
            dropout=dropout,
            feature_seed=seed,
        )
        self.pooling = Pooling(hidden_size=hidden_size, pooling=pooling, specials=False)

    def forward(
        self, x: Float[Tensor, "batch length embed_dim"], lengths: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch hidden"]:
        """`lengths` (1 to `length` each) says how many positions of each row are real: all of them when absent."""
        batch, longest, _ = x.shape
        if longest == 0:
            raise ValueError("a sequence needs at least one position: the input has length 0")
        if lengths is None:
            rows = x.flatten(0, 1)
            cu_seqlens = torch.arange(batch + 1, device=x.device, dtype=torch.int32) * longest
        else:
            if lengths.shape != (batch,) or bool(((lengths < 1) | (lengths > longest)).any()):
                raise ValueError(f"lengths must be {batch} numbers from 1 to {longest}, not {lengths.tolist()}")
            real = torch.arange(longest, device=x.device)[None, :] < lengths.to(x.device)[:, None]
            rows = x[real]
            cu_seqlens = nn.functional.pad(lengths.to(x.device).cumsum(0), (1, 0)).to(torch.int32)
        hidden = self.encoder(self.input_dropout(self.input_projection(rows)), cu_seqlens)
        return self.pooling(hidden, cu_seqlens)

    @property
    def output_size(self) -> int:
        return self.hidden_size

    @property
    def param_count(self) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def redraw_(self, draw: int) -> None:
        """Draw the projections anew; `draw` numbers the draws (0 is the one made at construction)."""
        self.encoder.redraw_(draw)

    @staticmethod
    def orthogonal_features(num_features: int, head_dim: int, seed: int = 0) -> Float[Tensor, "features dim"]:
        """A projection of orthogonal blocks, rows marginally N(0, I), in fp32."""
        return orthogonal(num_features, head_dim, torch.Generator().manual_seed(seed)).float()

    @staticmethod
    def recommended_defaults() -> dict[str, Any]:
        """Optimiser settings to start from: the paper's protein runs (arXiv 2009.14794), with AdamW for Adam."""
        return {
            "learning_rate": 1e-3,
            "betas": (0.9, 0.98),
            "eps": 1e-9,
            "weight_decay": 0.1,
            "gradient_clip_val": 0.5,
            "dropout": 0.1,
            "num_features": 256,
        }

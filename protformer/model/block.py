"""ESM-2's transformer block over packed rows: pre-norm attention with rotary embedding, pre-norm erf GELU feed-forward.

The projections of q, k, v and out live here and not in the attention, so that weights move between exact and Performer
attention unchanged.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn

from protformer.attention import Attention
from protformer.model.rotary import rotate

_PIECE = 1024  # rows


class Block(nn.Module):
    """`x + out(attention(norm(x)))`, then `x + feed_forward(norm(x))` (pre-LN, eps 1e-5).

    `attention` is a factory `(num_heads=, head_dim=) -> Attention`.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        attention: Callable[..., Attention],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.attention_norm = nn.LayerNorm(hidden_size, eps=1e-5)
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.attention = attention(num_heads=num_heads, head_dim=self.head_dim)
        self.out = nn.Linear(hidden_size, hidden_size)
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps=1e-5)
        self.expand = nn.Linear(hidden_size, intermediate_size)
        self.contract = nn.Linear(intermediate_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.activation = nn.GELU()

    def forward(
        self,
        x: Float[Tensor, "total hidden"],
        cu_seqlens: Int32[Tensor, "segments_plus_one"],
        cos: Float[Tensor, "total 1 head_dim"],
        sin: Float[Tensor, "total 1 head_dim"],
    ) -> Float[Tensor, "total hidden"]:
        pieces = _pieces(x)
        query, key, value = _joined([self._heads(x[rows], cos[rows], sin[rows]) for rows in pieces])
        mixed = self.attention(query, key, value, cu_seqlens)
        (out,) = _joined([(self._after(x[rows], mixed[rows]),) for rows in pieces])
        return out

    def _heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What attention takes: `[total, heads, head_dim]` each."""
        normed = self.attention_norm(x)
        heads = x.shape[0], self.num_heads, self.head_dim
        # (ESM-2 scales q by head_dim^-1/2 before the rotation; a rotation keeps lengths, so attention may do it after.)
        query = rotate(self.query(normed).view(heads), cos, sin)
        key = rotate(self.key(normed).view(heads), cos, sin)
        return query, key, self.value(normed).view(heads)

    def _after(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.dropout(self.out(mixed.reshape(x.shape)))
        hidden = self.activation(self.expand(self.feed_forward_norm(x)))
        return x + self.dropout(self.contract(hidden))


def _pieces(x: Tensor) -> list[slice]:
    """Rows that layers without attention take at a time: on a CPU in inference few enough that what one layer writes
    is in the cache when the next one reads it; otherwise all.
    """
    total = x.shape[0]
    whole = torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu"
    if whole or total <= _PIECE:
        return [slice(0, total)]
    return [slice(start, start + _PIECE) for start in range(0, total, _PIECE)]


def _joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return parts[0] if len(parts) == 1 else tuple(torch.cat(columns) for columns in zip(*parts, strict=True))

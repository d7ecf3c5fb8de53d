"""The encoder: blocks and a final norm over packed rows, with an embedding of tokens in front (`ProteinEncoder`)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from protformer.attention import Attention
from protformer.features import projection_generator
from protformer.model.block import Block
from protformer.model.rotary import Rotary, segment_positions

MASK_TOKEN = 32  # `protformer.data.alphabet.MASK`; the model room does not import the data room
# Share of <mask> among ESM-2's training tokens: 15 % are targets, 80 % of those are masked (arXiv: Lin et al. 2023).
TRAINED_MASK_RATIO = 0.15 * 0.8


class Encoder(nn.Module):
    """`num_layers` blocks and the final norm: `[total, hidden] -> [total, hidden]`.

    Projections of random features are drawn at construction from (`feature_seed`, layer, draw 0).
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        attention: Callable[..., Attention],
        intermediate_size: int | None = None,
        dropout: float = 0.0,
        rotary_base: float = 10_000.0,
        feature_seed: int = 0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.intermediate_size = intermediate_size or 4 * hidden_size
        self.dropout = dropout
        self.rotary_base = rotary_base
        self.feature_seed = feature_seed
        self.checkpoint_activations = checkpoint_activations
        self.blocks = nn.ModuleList(
            Block(
                hidden_size=hidden_size,
                num_heads=num_heads,
                intermediate_size=self.intermediate_size,
                attention=attention,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.rotary = Rotary(head_dim=hidden_size // num_heads, base=rotary_base)
        self.final_norm = nn.LayerNorm(hidden_size, eps=1e-5)
        self.draw = -1
        self.redraw_(0)

    def redraw_(self, draw: int) -> None:
        """Copy projections of draw number `draw` into every layer: a pure function of (feature_seed, layer, draw)."""
        for layer, attention in enumerate(self.attentions):
            if (redraw := getattr(attention, "redraw_", None)) is not None:
                redraw(projection_generator(self.feature_seed, layer, draw))
        self.draw = draw

    @property
    def attentions(self) -> Sequence[Attention]:
        return [block.attention for block in self.blocks]  # pyright: ignore[reportReturnType]

    @property
    def longest(self) -> int | None:
        """Tokens of the longest segment that its attention takes; None where any length will do."""
        return self.attentions[0].longest

    def forward(
        self,
        x: Float[Tensor, "total hidden"],
        cu_seqlens: Int32[Tensor, "segments_plus_one"],
    ) -> Float[Tensor, "total hidden"]:
        return self.states(x, cu_seqlens, (self.num_layers,))[0]

    def states(
        self, x: Float[Tensor, "total hidden"], cu_seqlens: Int32[Tensor, "segments_plus_one"], layers: Sequence[int]
    ) -> list[Tensor]:
        """Hidden states `[total, hidden]` at each of `layers`: 0 is the input, k follows block k, the last one the
        final norm too (ESM-2's numbers).
        """
        _, positions = segment_positions(cu_seqlens, x.shape[0])
        cos, sin = self.rotary(positions)
        found = {0: x} if 0 in layers else {}
        for layer, block in enumerate(self.blocks, start=1):
            if self.checkpoint_activations and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, cu_seqlens, cos, sin, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
            else:
                x = block(x, cu_seqlens, cos, sin)
            if layer in layers:
                found[layer] = x
        if self.num_layers in layers:
            found[self.num_layers] = self.final_norm(x)
        return [found[layer] for layer in layers]

    def config(self) -> dict[str, Any]:
        """Constructor arguments as plain values, attention included (`protformer.model.folder` reads them back)."""
        return {
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "intermediate_size": self.intermediate_size,
            "dropout": self.dropout,
            "rotary_base": self.rotary_base,
            "feature_seed": self.feature_seed,
            "attention": self.attentions[0].config(),
        }


class ProteinEncoder(nn.Module):
    """Tokens of packed sequences to hidden states: an embedding, then an `Encoder`.

    `token_dropout` is ESM-2's: embeddings of `<mask>` are zero, and each segment is scaled by
    (1 - 0.12) / (1 - its share of masks), at inference too. Per segment, so that packing changes nothing.
    """

    def __init__(self, *, encoder: Encoder, vocabulary_size: int = 33, token_dropout: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, encoder.hidden_size)
        # ESM-2's 0.02 makes an untrained model uniform over the alphabet, and training slow: on the demo set the loss
        # that 1/sqrt(hidden) reaches in 90 steps took 600.
        nn.init.normal_(self.embedding.weight, std=encoder.hidden_size**-0.5)
        self.encoder = encoder
        self.token_dropout = token_dropout
        self.input_dropout = nn.Dropout(encoder.dropout)

    def forward(
        self, tokens: Int[Tensor, "total"], cu_seqlens: Int32[Tensor, "segments_plus_one"]
    ) -> Float[Tensor, "total hidden"]:
        return self.states(tokens, cu_seqlens, (self.encoder.num_layers,))[0]

    def states(
        self, tokens: Int[Tensor, "total"], cu_seqlens: Int32[Tensor, "segments_plus_one"], layers: Sequence[int]
    ) -> list[Tensor]:
        """Hidden states at each of `layers`, as of `Encoder.states`; 0 is the embedding."""
        x = self.embedding(tokens)
        if self.token_dropout:
            x = x * self._token_dropout_scale(tokens, cu_seqlens)[:, None]
        return self.encoder.states(self.input_dropout(x), cu_seqlens, layers)

    def _token_dropout_scale(self, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        segments, _ = segment_positions(cu_seqlens, tokens.shape[0])
        is_mask = (tokens == MASK_TOKEN).to(torch.float32)
        lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).to(torch.float32)
        masks = torch.zeros_like(lengths).index_add_(0, segments, is_mask)
        scale = (1.0 - TRAINED_MASK_RATIO) / (1.0 - masks / lengths.clamp_min(1.0)).clamp_min(1e-6)
        return scale[segments] * (1.0 - is_mask)

    def config(self) -> dict[str, Any]:
        return {
            **self.encoder.config(),
            "vocabulary_size": self.embedding.num_embeddings,
            "token_dropout": self.token_dropout,
        }

"""How well a Performer's attention does on sampled rows of one layer: figures to watch while it trains.

Of each sampled row and head, from the queries and keys that the attention was given:
- distance: total variation, 1/2 sum_j |a_j - p_j|, of the layer's attention row a from the softmax row p of the same
  queries and keys: 0 is equal, 1 is disjoint. Signed maps can exceed 1. A generalised map estimates no softmax; for it
  this is how far its attention is from softmax, and no error.
- distance_uniform: that of equal weights from the softmax row. An estimate that is no better than it tells nothing.
- effective_features: (sum_i c_i)^2 / sum_i c_i^2 of the features' contributions c_i to the denominator, which is Kish's
  effective sample size (the inverse participation ratio of the shares). It is taken and not the entropy because 1 over
  it is about the squared relative error of an average over independent features; and it holds for signed features.
- log10_denominator: of the denominator of the operator's stabilised features. Positive features have at least 0.
  For signed maps it is that of the magnitude.
- negative_share: of the row's attention weights, which signed maps alone have.
- z2: |x + y|^2 of pairs with keys that the row sees, x = q dim^-1/4 and y = k dim^-1/4: the variance of the estimators
  grows as e^|z|^2. Of the inputs as they are: what a map centres or balances is still in it.

All is float64 and stabilised per feature, so that inputs of any size give finite figures. Nothing larger than
[rows x segment] and [segment x features] per head is kept.
"""

import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int32, Int64
from torch import Tensor

from protformer.attention.favor import FavorAttention
from protformer.features import Adaptation
from protformer.features.families import Family, family

SINGLES = 5  # figures of a row that are one number


class RowFigures(NamedTuple):
    """Figures by head and sampled row; leading axes, such as layers, may stand before."""

    distance: Float64[Tensor, "*heads rows"]
    distance_uniform: Float64[Tensor, "*heads rows"]
    effective_features: Float64[Tensor, "*heads rows"]
    log10_denominator: Float64[Tensor, "*heads rows"]
    negative_share: Float64[Tensor, "*heads rows"]
    z2: Float64[Tensor, "*heads rows pairs"]

    def table(self) -> Float64[Tensor, "*heads rows columns"]:
        """All figures in one tensor, as processes exchange them."""
        return torch.cat([torch.stack(self[:SINGLES], dim=-1), self.z2], dim=-1)

    @classmethod
    def of_table(cls, table: Float64[Tensor, "*heads rows columns"]) -> "RowFigures":
        distance, uniform, effective, denominator, negative = table[..., :SINGLES].unbind(dim=-1)
        return cls(distance, uniform, effective, denominator, negative, table[..., SINGLES:])

    def summary(self, *, signed: bool) -> dict[str, Float64[Tensor, "*heads"]]:
        """Figures per head: means over rows, the least denominator, and mean and 95th percentile of |z|^2."""
        pairs = self.z2.flatten(-2)
        figures = {
            "distance": self.distance.mean(dim=-1),
            "distance_uniform": self.distance_uniform.mean(dim=-1),
            "z2_mean": pairs.mean(dim=-1),
            "z2_p95": pairs.quantile(0.95, dim=-1),
            "effective_features": self.effective_features.mean(dim=-1),
            "log10_denominator_min": self.log10_denominator.amin(dim=-1),
        }
        return {**figures, "negative_share": self.negative_share.mean(dim=-1)} if signed else figures


@torch.no_grad()
def row_figures(
    attention: FavorAttention,
    query: Float[Tensor, "total heads dim"],
    key: Float[Tensor, "total heads dim"],
    cu_seqlens: Int32[Tensor, "segments_plus_one"],
    rows: Int64[Tensor, "rows"],
    picks: Float64[Tensor, "rows pairs"],
) -> RowFigures:
    """Figures of the `rows` of a pack, on the device of `query`.

    `rows` and `picks` are CPU tensors; `picks` in [0, 1) say which of the keys that a row sees make pairs with it: 0 is
    the segment's first, just under 1 the last. `attention` must be in evaluation mode, or a map with moving statistics
    would take the look for a training step.
    """
    adaptation = attention.features.adapt(query, key, cu_seqlens)
    heads = query.shape[1]
    table = query.new_zeros(heads, len(rows), SINGLES + picks.shape[1], dtype=torch.float64)
    for index, (start, stop) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        inside = torch.nonzero((rows >= start) & (rows < stop)).squeeze(1)
        if len(inside) == 0:
            continue
        segment = _Segment(attention, query[start:stop], key[start:stop], adaptation, index)
        # A causal row is the last row of its prefix: its stabilisers are those of the keys that it sees.
        together = inside.split(1) if attention.causal else [inside]
        for places in together:
            within = rows[places] - start
            seen = int(within[0]) + 1 if attention.causal else stop - start
            figures = segment.figures(within, seen, picks[places])
            table[:, places.to(table.device)] = figures.table()
    return RowFigures.of_table(table)


class _Segment:
    """Queries and keys of one segment, heads first in float64, and their logits."""

    def __init__(
        self, attention: FavorAttention, query: Tensor, key: Tensor, adaptation: Adaptation, index: int
    ) -> None:
        features = attention.features
        self.family: Family = family(features.family_name, features.epsilon, plain=False)
        self.rows = features.projection.shape[1]
        self.query, self.key = (x.double().transpose(0, 1) for x in (query, key))
        self.dim = query.shape[2]
        own = Adaptation(*(None if x is None else x[index if x.shape[0] > 1 else 0].double() for x in adaptation))
        self.query_logits, _ = _logits(self.query, features.projection, own.query_scale, own.offset)
        self.key_logits, scaled = _logits(self.key, features.projection, own.key_scale, own.offset)
        self.weight: Tensor | None = None
        if features.norm_weight != 0.0:
            weight = scaled.square().sum(dim=2, keepdim=True) * (-0.5 * features.norm_weight * self.dim**-0.5)
            self.weight = weight if own.norm_scale is None else weight * own.norm_scale[:, None, None]
        if own.tilt is not None:
            tilted = scaled @ own.tilt.unsqueeze(2)
            self.weight = tilted if self.weight is None else self.weight + tilted

    def figures(self, rows: Tensor, seen: int, picks: Tensor) -> RowFigures:
        """Those of `rows` of the segment, which see its first `seen` keys."""
        device = self.query.device
        queries, keys = self.query[:, rows.to(device)], self.key[:, :seen]
        products, shares = self._features(rows.to(device), seen)
        denominator = shares.sum(dim=2, keepdim=True)
        guarded = self._guarded(denominator)
        estimate = products / guarded
        exact = torch.softmax(queries @ keys.transpose(1, 2) * self.dim**-0.5, dim=2)
        chosen = (picks * seen).long().clamp_max(seen - 1).to(device)
        z = (queries.unsqueeze(2) + keys[:, chosen]) * self.dim**-0.25
        return RowFigures(
            distance=0.5 * (estimate - exact).abs().sum(dim=2),
            distance_uniform=0.5 * (exact - 1.0 / seen).abs().sum(dim=2),
            effective_features=(shares / guarded).square().sum(dim=2).reciprocal(),
            log10_denominator=denominator.squeeze(2).abs().clamp_min(torch.finfo(torch.float64).tiny).log10(),
            negative_share=(estimate < 0).double().mean(dim=2),
            z2=z.square().sum(dim=3),
        )

    def _features(self, rows: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """phi(q) . phi(k) `[heads, rows, seen]`, and each feature's part of their sums `[heads, rows, features]`."""
        weight = None if self.weight is None else self.weight[:, :seen]
        stabiliser = self.family.stabiliser(self.key_logits[:, :seen], weight)
        # (clones, because a family may overwrite the logits)
        keys, factor = self.family.key_(self.key_logits[:, :seen].clone(), weight, stabiliser)
        if factor is not None:
            keys = keys * factor
        queries = self.family.query_(self.query_logits[:, rows].clone(), stabiliser)
        return queries @ keys.transpose(1, 2), queries * keys.sum(dim=1, keepdim=True)

    def _guarded(self, denominator: Tensor) -> Tensor:
        """What the operator divides by: signed sums have a floor (`favor_chunk.ChunkContext.guarded`)."""
        if not self.family.signed:
            return denominator.clamp_min(torch.finfo(torch.float64).tiny)
        floor = torch.full_like(denominator, 1e-6 * self.rows)
        return torch.where(denominator.abs() < floor, torch.copysign(floor, denominator), denominator)


def _logits(x: Tensor, projection: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logits `[heads, tokens, rows]` of inputs `[heads, tokens, dim]`, and the scaled inputs."""
    scaled = x if scale is None else x * scale.unsqueeze(1)
    logits = scaled @ projection.double().transpose(1, 2)
    return logits if offset is None else logits + offset.unsqueeze(1), scaled

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
# Causal rows are looked at together as long as their stabilisers lie within e^300: float64 has room for e^700.
SPREAD = 300.0


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

    `rows` (distinct) and `picks` are CPU tensors; `picks` in [0, 1) say which of the keys that a row sees make pairs
    with it: 0 is the segment's first, just under 1 the last. `attention` must be in evaluation mode, or a map with
    moving statistics would take the look for a training step.
    """
    adaptation = attention.features.adapt(query, key, cu_seqlens)
    heads = query.shape[1]
    table = query.new_zeros(heads, len(rows), SINGLES + picks.shape[1], dtype=torch.float64)
    for index, (start, stop) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        inside = torch.nonzero((rows >= start) & (rows < stop)).squeeze(1)
        if len(inside) == 0:
            continue
        inside = inside[rows[inside].argsort()]
        segment = _Segment(attention, query[start:stop], key[start:stop], adaptation, index)
        figures = segment.figures((rows[inside] - start).to(query.device), picks[inside].to(query.device))
        table[:, inside.to(query.device)] = figures
    return RowFigures.of_table(table)


class _Segment:
    """Queries and keys of one segment, heads first in float64, and their logits."""

    def __init__(
        self, attention: FavorAttention, query: Tensor, key: Tensor, adaptation: Adaptation, index: int
    ) -> None:
        features = attention.features
        self.causal = attention.causal
        self.family: Family = family(features.family_name, features.epsilon, plain=False)
        self.floor = 1e-6 * features.projection.shape[1]
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

    def figures(self, rows: Tensor, picks: Tensor) -> Tensor:
        """The table of `rows` of the segment, which ascend."""
        seen = rows + 1 if self.causal else torch.full_like(rows, self.key.shape[1])
        stabilisers = self._stabilisers(seen)
        if stabilisers is not None and float((stabilisers[:, -1] - stabilisers[:, 0]).max()) > SPREAD:
            half = len(rows) // 2
            return torch.cat([self.figures(rows[:half], picks[:half]), self.figures(rows[half:], picks[half:])], dim=1)
        hidden = torch.arange(int(seen[-1]), device=rows.device) >= seen[:, None]
        products, shares = self._features(rows, seen, stabilisers)
        denominator = shares.sum(dim=2, keepdim=True)
        guarded = self._guarded(denominator)
        estimate = (products / guarded).masked_fill(hidden, 0.0)
        keys = self.key[:, : hidden.shape[1]]
        logits = self.query[:, rows] @ keys.transpose(1, 2) * self.dim**-0.5
        exact = torch.softmax(logits.masked_fill(hidden, -torch.inf), dim=2)
        uniform = (~hidden).double() / seen[:, None]
        chosen = torch.minimum((picks * seen[:, None]).long(), seen[:, None] - 1)
        z = (self.query[:, rows].unsqueeze(2) + keys[:, chosen]) * self.dim**-0.25
        return RowFigures(
            distance=0.5 * (estimate - exact).abs().sum(dim=2),
            distance_uniform=0.5 * (exact - uniform).abs().sum(dim=2),
            effective_features=(shares / guarded).square().sum(dim=2).reciprocal(),
            log10_denominator=denominator.squeeze(2).abs().clamp_min(torch.finfo(torch.float64).tiny).log10(),
            negative_share=(estimate < 0).sum(dim=2) / seen.double(),
            z2=z.square().sum(dim=3),
        ).table()

    def _stabilisers(self, seen: Tensor) -> Tensor | None:
        """Log scale of the keys that each row sees, `[heads, rows, features or 1]`; None where nothing is scaled."""
        found = []
        for start, stop in itertools.pairwise([0, *dict.fromkeys(seen.tolist())]):
            weight = None if self.weight is None else self.weight[:, start:stop]
            found.append(self.family.stabiliser(self.key_logits[:, start:stop], weight))
        if found[0] is None:
            return None
        return torch.cat(found, dim=1).cummax(dim=1).values.expand(-1, len(seen), -1)

    def _features(self, rows: Tensor, seen: Tensor, stabilisers: Tensor | None) -> tuple[Tensor, Tensor]:
        """phi(q) . phi(k) `[heads, rows, keys]`, and each feature's part of its sum over the keys that a row sees,
        `[heads, rows, features]`; stabilised by the keys that it sees."""
        last = None if stabilisers is None else stabilisers[:, -1:]
        stop = int(seen[-1])
        # (clones, because a family may overwrite the logits)
        weight = None if self.weight is None else self.weight[:, :stop]
        keys, factor = self.family.key_(self.key_logits[:, :stop].clone(), weight, last)
        keys = keys if factor is None else keys * factor
        logits = self.query_logits[:, rows]
        queries = self.family.query_(logits.clone(), last)
        if last is not None and stabilisers is not None:
            # from the stabiliser that all rows share to each row's own
            shift = logits if last.shape[2] > 1 else torch.zeros_like(logits[..., :1])
            own = (shift + last).amax(dim=2, keepdim=True) - (shift + stabilisers).amax(dim=2, keepdim=True)
            queries = queries * own.exp()
        blocks = keys.split([b - a for a, b in itertools.pairwise([0, *dict.fromkeys(seen.tolist())])], dim=1)
        sums = torch.stack([block.sum(dim=1) for block in blocks], dim=1).cumsum(dim=1)
        return queries @ keys.transpose(1, 2), queries * sums

    def _guarded(self, denominator: Tensor) -> Tensor:
        """What the operator divides by: signed sums have a floor (`favor_chunk.ChunkContext.guarded`)."""
        if not self.family.signed:
            return denominator.clamp_min(torch.finfo(torch.float64).tiny)
        floor = torch.full_like(denominator, self.floor)
        return torch.where(denominator.abs() < floor, torch.copysign(floor, denominator), denominator)


def _logits(x: Tensor, projection: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logits `[heads, tokens, rows]` of inputs `[heads, tokens, dim]`, and the scaled inputs."""
    scaled = x if scale is None else x * scale.unsqueeze(1)
    logits = scaled @ projection.double().transpose(1, 2)
    return logits if offset is None else logits + offset.unsqueeze(1), scaled

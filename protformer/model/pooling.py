"""From rows to one vector per packed segment. Specials (`<cls>`, `<eos>`) are never pooled by mean and attention."""

from typing import Literal

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn

from protformer.model.rotary import segment_positions

PoolingName = Literal["mean", "attention", "first", "last"]
POOLINGS = ("mean", "attention", "first", "last")


class Pooling(nn.Module):
    """`[total, hidden] -> [segments, hidden]`.

    mean: the mean over residues. attention: a softmax-weighted mean over residues, with a learned query. first, last:
    the row of the first or last token, which are the specials when the segments have them.

    With `specials`, each segment's first and last rows are specials; a segment of specials alone pools to zero.
    """

    def __init__(self, *, hidden_size: int, pooling: PoolingName = "mean", specials: bool = True) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; there are {', '.join(POOLINGS)}")
        self.pooling = pooling
        self.specials = specials
        if pooling == "attention":
            self.score = nn.Linear(hidden_size, 1)

    def forward(
        self, x: Float[Tensor, "total hidden"], cu_seqlens: Int32[Tensor, "segments_plus_one"]
    ) -> Float[Tensor, "segments hidden"]:
        if self.pooling == "first":
            return x[cu_seqlens[:-1].long()]
        if self.pooling == "last":
            return x[cu_seqlens[1:].long() - 1]
        segments, positions = segment_positions(cu_seqlens, x.shape[0])
        lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).long()
        x32 = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if self.specials:
            counted = (positions > 0) & (positions < lengths[segments] - 1)
        else:
            counted = torch.ones_like(positions, dtype=torch.bool)
        weight = counted.to(x32.dtype)
        if self.pooling == "attention":
            score = self.score(x).squeeze(1).to(x32.dtype)
            # the segment's maximum cancels between the weighted sum and its weights
            most = torch.full((lengths.shape[0],), -torch.inf, dtype=x32.dtype, device=x.device)
            most = most.scatter_reduce(0, segments, score.detach().masked_fill(~counted, -torch.inf), "amax")
            weight = (score - most.nan_to_num(neginf=0.0)[segments]).masked_fill(~counted, -torch.inf).exp()
        sums = x32.new_zeros(lengths.shape[0], x.shape[1]).index_add_(0, segments, x32 * weight[:, None])
        weights = x32.new_zeros(lengths.shape[0]).index_add_(0, segments, weight)
        return sums / weights.clamp_min(torch.finfo(x32.dtype).tiny)[:, None]

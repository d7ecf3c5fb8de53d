"""How much attention residues of one amino acid pay to residues of another, without any attention matrix.

Attention is linear in its values. Given one-hot values, one dimension for each amino acid, an output row holds how much
of that token's attention fell on each: sum_j A_ij [residue j is b]. So a Performer answers in O(L), and every other
attention, too (arXiv 2009.14794, appendix on protein modeling: one-hot V). Summed over the tokens i that are amino acid
a, this is the mass from a to b.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int32, Int64
from torch import Tensor

from protformer.attention import Attention, UniformAttention
from protformer.data.alphabet import STANDARD, TOKENS
from protformer.data.corpus import Corpus
from protformer.evaluation.activations import attention_inputs, packs_of
from protformer.model import ProteinModel

AMINO_ACIDS = len(STANDARD)
# Of each token: its amino acid's place in STANDARD, or -1 for specials and other letters.
_PLACES = np.array([STANDARD.find(token) if len(token) == 1 else -1 for token in TOKENS])


class Mass(NamedTuple):
    """Sums over the residues of each protein, float64. From amino acid (first 20) to amino acid (second 20)."""

    attention: Float64[np.ndarray, "proteins layers heads 20 20"]
    uniform: Float64[np.ndarray, "proteins 20 20"]
    """What uniform attention over the same tokens would pay: the protein's composition."""
    counts: Float64[np.ndarray, "proteins 20"]
    """Residues."""


def measure(model: ProteinModel, corpus: Corpus, *, batch_tokens: int) -> Mass:
    """The mass of every layer and head on each protein of a corpus, nothing masked. The model must be evaluating."""
    encoder = model.trunk.encoder
    layers, heads = encoder.num_layers, encoder.num_heads
    attention = np.zeros((len(corpus), layers, heads, AMINO_ACIDS, AMINO_ACIDS))
    uniform = np.zeros((len(corpus), AMINO_ACIDS, AMINO_ACIDS))
    counts = np.zeros((len(corpus), AMINO_ACIDS))
    for indices in packs_of(corpus, batch_tokens):
        given, cu_seqlens, tokens = attention_inputs(model, [corpus.sequence(index) for index in indices])
        places = torch.from_numpy(_PLACES[tokens])
        for layer, (inputs, one) in enumerate(zip(given, encoder.attentions, strict=True)):
            attention[indices, layer] = mass_of(one, inputs.query, inputs.key, cu_seqlens, places).numpy()
        nobody = torch.zeros(len(tokens), 1, AMINO_ACIDS)
        even = UniformAttention(num_heads=1, head_dim=AMINO_ACIDS, causal=encoder.attentions[0].causal)
        uniform[indices] = mass_of(even, nobody, nobody, cu_seqlens, places)[:, 0].numpy()
        counts[indices] = [
            np.bincount(_PLACES[corpus.sequence(index)] + 1, minlength=AMINO_ACIDS + 1)[1:] for index in indices
        ]
    return Mass(attention, uniform, counts)


@torch.no_grad()
def mass_of(
    attention: Attention,
    query: Float[Tensor, "total heads dim"],
    key: Float[Tensor, "total heads dim"],
    cu_seqlens: Int32[Tensor, "segments_plus_one"],
    places: Int64[Tensor, "total"],
) -> Float64[Tensor, "segments heads 20 20"]:
    """The mass of each segment; `places` are the tokens' amino acids, 0 to 19, or -1 for a token that is none."""
    _, heads, dim = query.shape
    segments = len(cu_seqlens) - 1
    residues = torch.nonzero(places >= 0).squeeze(1)
    owners = torch.repeat_interleave(torch.arange(segments), cu_seqlens.diff().long())
    rows = owners[residues] * AMINO_ACIDS + places[residues]
    sums = torch.zeros(segments * AMINO_ACIDS, heads, AMINO_ACIDS, dtype=torch.float64)
    # Values have as many dimensions as a head, so that every attention takes them: a few amino acids at a time.
    for start in range(0, AMINO_ACIDS, dim):
        stop = min(start + dim, AMINO_ACIDS)
        value = torch.zeros_like(query)
        here = residues[(places[residues] >= start) & (places[residues] < stop)]
        value[here, :, places[here] - start] = 1.0
        paid = attention(query, key, value, cu_seqlens)[residues, :, : stop - start]
        sums[:, :, start:stop].index_add_(0, rows, paid.double())
    return sums.view(segments, AMINO_ACIDS, heads, AMINO_ACIDS).transpose(1, 2)

"""A pack of ordinary proteins: lengths drawn from a FASTA file."""

from pathlib import Path

import numpy as np

from protformer.data.corpus import Corpus
from protformer.errors import ProtformerError
from protformer.surroundings import CHECKOUT

DEMO = CHECKOUT / "data" / "train.fasta"


def draw_lengths(source: str, size: int, seed: int) -> tuple[tuple[int, ...], str]:
    """Tokens of `size` proteins drawn without replacement (residues, `<cls>` and `<eos>`), and where they are from.

    `source` is a FASTA file, plain or compressed, or "demo".
    """
    if source == "demo" and not DEMO.exists():
        raise ProtformerError("The demo set lies in the repository's folder data, which is not here: --pack FILE.")
    corpus = Corpus.from_fasta(DEMO if source == "demo" else source)
    if len(corpus) < size:
        raise ProtformerError(f"{source} holds {len(corpus):,} sequences: --pack-size {len(corpus)} at most.")
    chosen = np.random.default_rng(seed).choice(len(corpus), size, replace=False)
    lengths = tuple(int(length) + 2 for length in corpus.lengths[chosen])
    return lengths, "the demo set (SIMULATED proteins)" if source == "demo" else Path(source).name

"""The paper's own protein figures, to stand beside ours: they cannot be compared with them.

Source: Choromanski et al., Rethinking Attention with Performers (arXiv 2009.14794), the protein results on TrEMBL.
"""

from typing import NamedTuple

CITATION = "Choromanski et al., Rethinking Attention with Performers (arXiv 2009.14794)"


class PaperRow(NamedTuple):
    """Accuracy as a fraction; test, then out of distribution (20 held-out Pfam families)."""

    model: str
    accuracy: float
    perplexity: float
    ood_accuracy: float
    ood_perplexity: float


PAPER = (
    PaperRow("empirical baseline", 0.0992, 17.80, 0.0907, 17.93),
    PaperRow("UNI Transformer", 0.3080, 9.37, 0.1970, 13.20),
    PaperRow("UNI Performer-ReLU", 0.3158, 9.17, 0.1844, 13.63),
    PaperRow("BID Transformer", 0.3332, 9.22, 0.2507, 12.09),
    PaperRow("BID Performer-ReLU", 0.3609, 8.36, 0.2410, 12.26),
    PaperRow("BID Performer-softmax", 0.3300, 9.24, 0.2348, 12.41),
)

THEIR_SETTING = (
    "The paper trained on TrEMBL at length 1,024 with 36 layers of width 512 (8 heads, feed-forward 1,024), and made"
    " the batch of each run as large as memory allowed, so its runs saw different numbers of residues per step; its"
    " out-of-distribution set is 20 held-out Pfam families, and each row is one run without an interval"
)

"""How likely a model finds proteins and their variants. Knows nothing of training."""

from protformer.scoring.job import ScoringPlan, ScoringReport, score_fasta
from protformer.scoring.marginals import blosum_score, marginal_score, masked_marginals
from protformer.scoring.mutations import read_variants
from protformer.scoring.passes import LanguageModel, load_language_model
from protformer.scoring.perplexity import Score, score_corpus
from protformer.scoring.variants import VariantsReport, score_variants

__all__ = [
    "LanguageModel",
    "Score",
    "ScoringPlan",
    "ScoringReport",
    "VariantsReport",
    "blosum_score",
    "load_language_model",
    "marginal_score",
    "masked_marginals",
    "read_variants",
    "score_corpus",
    "score_fasta",
    "score_variants",
]

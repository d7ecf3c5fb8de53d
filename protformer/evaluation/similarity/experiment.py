"""Experiment 6: amino-acid similarity, as a model's attention has it, against BLOSUM62."""

import logging
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from protformer.data.alphabet import STANDARD
from protformer.data.corpus import Corpus
from protformer.errors import ProtformerError
from protformer.evaluation.activations import LookedAt, choose_proteins, load_all
from protformer.evaluation.analysis import Analysis, View
from protformer.evaluation.log_analysis import conclude
from protformer.evaluation.similarity.estimates import ESTIMATES
from protformer.evaluation.similarity.mass import measure
from protformer.evaluation.similarity.rows import COLUMNS, Entry, Row, headline, rows_of
from protformer.evaluation.similarity.settings import Settings
from protformer.model import build_model
from protformer.training.settings import JobSettings

log = logging.getLogger(__name__)
UNIFORM = "uniform"


def run(settings: JobSettings) -> dict[str, Any]:
    """`python train.py experiment=amino_acid_similarity`: rows.json in the run folder."""
    chosen = Settings.of(settings.config)
    models = load_all(chosen.models)
    corpus = choose_proteins(chosen.proteins, count=chosen.sample, longest=chosen.longest, seed=chosen.seed)
    _check_composition(corpus)
    entries = measured(models, corpus, chosen)
    rows = rows_of(entries, chosen)
    analysis = Analysis(
        kind="amino_acid_similarity",
        title="Amino-acid similarity from attention",
        question="Do models attend between amino acids that evolution takes for one another (BLOSUM62)?",
        rows=rows,
        views=_VIEWS,
        columns=COLUMNS,
        notes=_NOTES,
        settings=settings.config["similarity"] | {"seed": chosen.seed},
    )
    conclude(analysis, settings, lambda: _print(entries, rows))
    return {"rows": len(rows)}


def measured(models: list[LookedAt], corpus: Corpus, settings: Settings) -> list[Entry]:
    """Each model, then untrained models of its shape, and uniform attention, on the same proteins."""
    entries, untrained, uniform = [], [], None
    for one in models:
        log.info(f"{one.name} ({one.method}): {len(corpus):,} proteins")
        mass = measure(one.model, corpus, batch_tokens=settings.batch_tokens)
        entries.append(Entry(one.name, one.method, "trained", None, mass))
        uniform = uniform or mass._replace(attention=mass.uniform[:, None, None])
        for number in range(settings.untrained):
            mass = measure(_untrained(one, settings.seed + number), corpus, batch_tokens=settings.batch_tokens)
            name = f"untrained {number + 1}, as {one.name}"
            untrained.append(Entry(name, f"untrained {one.method}", "untrained", one.name, mass))
    assert uniform is not None
    return [*entries, *untrained, Entry(UNIFORM, UNIFORM, UNIFORM, None, uniform)]


def _untrained(one: LookedAt, seed: int) -> Any:
    """A model of the same shape with random weights; global generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(one.configuration["model"]).eval()


def _check_composition(corpus: Corpus) -> None:
    counts = np.bincount(corpus.tokens, minlength=33)
    missing = [letter for place, letter in enumerate(STANDARD) if counts[4 + place] == 0]
    if missing:
        raise ProtformerError(
            f"The {len(corpus):,} proteins that were drawn have no {', '.join(missing)}: raise similarity.sample, or"
            " give more proteins."
        )


_VIEWS = [
    View(
        title="Rank correlation with BLOSUM62 (190 pairs)",
        x="method",
        y="rho",
        low="rho_low",
        high="rho_high",
        x_label="model or floor, a mark each",
        y_label="Spearman's rho",
        kind="scatter",
        panel="estimate",
        where={"part": "correlation", "level": "model"},
    ),
    View(
        title="By layer (attention over frequencies)",
        x="layer",
        y="rho",
        low="rho_low",
        high="rho_high",
        line="model",
        x_label="layer",
        y_label="Spearman's rho",
        where={"part": "correlation", "level": "layer", "estimate": "frequencies"},
    ),
    View(
        title="Attention between amino acids against BLOSUM62 (190 pairs)",
        x="blosum62",
        y="similarity",
        x_label="BLOSUM62 score, half bits",
        y_label="attention over frequencies (1: as by chance)",
        kind="scatter",
        panel="model",
        where={"part": "pairs", "identical": False, "kind": "trained"},
    ),
    View(
        title="By head (attention over frequencies)",
        x="layer",
        y="rho",
        x_label="layer",
        y_label="Spearman's rho",
        kind="scatter",
        panel="model",
        where={"part": "correlation", "level": "head", "estimate": "frequencies"},
    ),
]
_NOTES = [
    "Headline: `frequencies`, attention of all layers and heads summed, over the 190 pairs of different amino acids;"
    " chosen before looking. Layers and heads are many looks: the best of them is larger by chance alone.",
    "Uniform attention has a correlation of its own under `frequencies`: amino acids that are frequent in the same"
    " proteins get more than their overall frequencies give, though nothing is looked at. `over uniform` mends this.",
    "Intervals are over proteins and keep the model; mantel_p asks whether so much likeness to BLOSUM62 comes about"
    " when the twenty amino acids are permuted. Pairs are not independent, so no p-value of 190 points is given.",
    "Untrained models attend between amino acids, too, by the chance of their embeddings, and differ among themselves"
    " by more than the intervals over proteins say: hold a model against the range of its untrained ones.",
    "Attention to neighbours in the sequence counts like any other: what residues stand next to each other is in it.",
    "The paper (arXiv 2009.14794) shows such a matrix beside BLOSUM62 without a figure; Vig et al. (arXiv 2006.15222)"
    " correlate profiles with BLOSUM62 by Pearson.",
]


def _print(entries: list[Entry], rows: list[Row]) -> None:
    table = Table(title="Spearman's rho with BLOSUM62, 190 pairs (95 % interval over proteins; p of Mantel's test)")
    table.add_column("model")
    table.add_column("method")
    for estimate in ESTIMATES:
        table.add_column(estimate, justify="right")
    table.add_column("less untrained", justify="right")
    for entry in entries:
        found = [headline(rows, entry.model, estimate) for estimate in ESTIMATES]
        cells = [
            f"{row['rho']:.2f} ({row['rho_low']:.2f} to {row['rho_high']:.2f})\np = {row['mantel_p']:.2g}"
            if np.isfinite(row["rho"])
            else "none"
            for row in found
        ]
        less = found[0]
        difference = (
            f"{less['over_untrained']:.2f} ({less['over_untrained_low']:.2f} to {less['over_untrained_high']:.2f})"
            if "over_untrained" in less
            else ""
        )
        table.add_row(entry.model, entry.method, *cells, difference)
    Console(width=None if Console().is_terminal else 160).print(table)

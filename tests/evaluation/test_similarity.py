"""Attention between amino acids is that of the matrix, and what is planted in it is found, with the right certainty."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import spearmanr
from test_activations import exact_model

from protformer.attention import Attention, ExactAttention, FavorAttention, SparseAttention, UniformAttention
from protformer.data.alphabet import STANDARD, TOKENS
from protformer.data.blosum import blosum62
from protformer.data.corpus import Corpus
from protformer.errors import ProtformerError
from protformer.evaluation.analysis import read_analysis
from protformer.evaluation.similarity import run
from protformer.evaluation.similarity.correlation import mantel, rank_correlation
from protformer.evaluation.similarity.estimates import over_frequencies, over_uniform, profiles
from protformer.evaluation.similarity.mass import Mass, mass_of, measure
from protformer.evaluation.similarity.resampling import Part, correlations, resampled
from protformer.evaluation.similarity.settings import Settings
from protformer.features import PositiveFeatures, projection_generator
from protformer.model import Encoder, LanguageModelHead, ProteinEncoder, ProteinModel, save_model
from protformer.training.settings import JobSettings

CONF = Path(__file__).parents[2] / "conf"
CU = torch.tensor([0, 1, 12, 12, 30], dtype=torch.int32)


def pack(dim: int, heads: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys, and amino acids of which some are none."""
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 30, heads, dim, generator=generator, dtype=torch.float64)
    return query, key, torch.randint(-1, 20, (30,), generator=generator)


def matrix_of(attention: Attention, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """`[heads, 30, 30]` of a pack, column by column: what the one-hot method spares."""
    columns = []
    for token in range(30):
        value = torch.zeros_like(query)
        value[token] = 1.0
        columns.append(attention(query, key, value, CU)[:, :, 0].T)
    return torch.stack(columns, dim=2)


def attentions(dim: int) -> list[Attention]:
    favor = FavorAttention(
        num_heads=2, head_dim=dim, features=lambda **shape: PositiveFeatures(**shape, num_features=16)
    )
    favor.redraw_(projection_generator(0, 0, 0))
    shape: dict[str, Any] = {"num_heads": 2, "head_dim": dim}
    return [favor, ExactAttention(**shape), ExactAttention(**shape, causal=True), UniformAttention(**shape),
            SparseAttention(**shape, pattern="window", window=2)]  # fmt: skip


@pytest.mark.parametrize("dim", [8, 20, 24])  # three parts, one part, one part and room
@pytest.mark.parametrize("number", range(5))
def test_mass_is_that_of_the_attention_matrix(dim, number):
    attention = attentions(dim)[number].eval()
    query, key, places = pack(dim)
    matrix = matrix_of(attention, query, key)
    found = mass_of(attention, query, key, CU, places)
    expected = torch.zeros(4, 2, 20, 20, dtype=torch.float64)
    for segment, (start, stop) in enumerate([(0, 1), (1, 12), (12, 12), (12, 30)]):
        for i in range(start, stop):
            for j in range(start, stop):
                if places[i] >= 0 and places[j] >= 0:
                    expected[segment, :, places[i], places[j]] += matrix[:, i, j]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def textbook(ours: Any, theirs: Any) -> tuple[float, float]:
    """Spearman's correlation, and the one-sided p of independent pairs."""
    found: Any = spearmanr(ours, theirs, alternative="greater")
    return found.statistic, found.pvalue


def proteins(count: int, length: int = 60, seed: int = 0) -> Corpus:
    generator = np.random.default_rng(seed)
    texts = ["".join(generator.choice(list(STANDARD), length)) for _ in range(count)]
    return Corpus.from_sequences([f"p{i}" for i in range(count)], texts)


def planted_mass(attention: Attention, corpus: Corpus, sharpness: float) -> Mass:
    """Of attention whose logit between residues is their BLOSUM62 score, times `sharpness`."""
    scores, masses, uniforms, counts = torch.from_numpy(blosum62().copy()), [], [], []
    even = UniformAttention(num_heads=1, head_dim=20)
    for index in range(len(corpus)):
        places = torch.from_numpy(corpus.sequence(index).astype(np.int64)) - 4
        cu_seqlens = torch.tensor([0, len(places)], dtype=torch.int32)
        query = torch.eye(20, dtype=torch.float64)[places][:, None]
        key = scores[places][:, None] * sharpness * math.sqrt(20)
        # (equal sizes of queries and keys, for the Performer's sake: products stay)
        balance = (key.norm() / query.norm()).sqrt()
        query, key = query * balance, key / balance
        masses.append(mass_of(attention, query, key, cu_seqlens, places)[0].numpy())
        uniforms.append(mass_of(even, query, key, cu_seqlens, places)[0, 0].numpy())
        counts.append(np.bincount(places.numpy(), minlength=20).astype(float))
    return Mass(np.stack(masses)[:, None], np.stack(uniforms), np.stack(counts))


def test_attention_that_follows_blosum62_is_found():
    corpus = proteins(30, 200)
    exact = correlations(planted_mass(ExactAttention(num_heads=1, head_dim=20), corpus, 0.3))
    assert exact[Part("model", "frequencies")][0] > 0.93
    assert exact[Part("model", "over uniform")][0] > 0.93
    against = correlations(planted_mass(ExactAttention(num_heads=1, head_dim=20), corpus, -0.3))
    assert against[Part("model", "frequencies")][0] < -0.9
    favor = FavorAttention(
        num_heads=1, head_dim=20, features=lambda **shape: PositiveFeatures(**shape, num_features=512)
    )
    favor.redraw_(projection_generator(0, 0, 0))
    assert correlations(planted_mass(favor, corpus, 0.1))[Part("model", "frequencies")][0] > 0.8


def test_uniform_attention_is_a_constant_over_itself():
    corpus = proteins(10)
    mass = planted_mass(UniformAttention(num_heads=1, head_dim=20), corpus, 1.0)
    ratio = over_uniform(mass.attention.sum(axis=(0, 1, 2)), mass.uniform.sum(axis=0))
    np.testing.assert_allclose(ratio, 1.0)
    found = correlations(mass)
    assert np.isnan(found[Part("model", "over uniform")]).all()
    assert np.isfinite(found[Part("model", "frequencies")]).all()


def test_composition_alone_correlates_under_frequencies():
    """Proteins of two kinds, each of alike amino acids: uniform attention correlates, but not over itself."""
    generator = np.random.default_rng(0)
    greasy, other = "LIVMFWCYA", "DENQKRSTGHP"
    texts = ["".join(generator.choice(list(own + STANDARD), 100)) for own in [greasy * 3, other * 3] for _ in range(20)]
    corpus = Corpus.from_sequences([f"p{i}" for i in range(40)], texts)
    found = correlations(planted_mass(UniformAttention(num_heads=1, head_dim=20), corpus, 1.0))
    assert found[Part("model", "frequencies")][0] > 0.3
    assert np.isnan(found[Part("model", "over uniform")][0])


def test_similarities_are_one_by_chance_and_symmetric():
    counts = np.arange(1.0, 21.0)
    chance = np.outer(counts, counts)
    np.testing.assert_allclose(over_frequencies(chance * 3.0, counts), 1.0)
    one_way = np.triu(np.ones((20, 20)))
    assert (over_frequencies(one_way, counts) == over_frequencies(one_way, counts).T).all()


def test_profiles_correlate_over_heads():
    shares = np.ones((6, 20))
    shares[:, 0] += [0, 1, 2, 3, 4, 5]
    shares[:, 1] += [0, 2, 4, 6, 8, 10]
    shares[:, 2] -= np.array([0, 1, 2, 3, 4, 5]) / 10
    shares /= shares.sum(axis=1, keepdims=True)
    attention = np.broadcast_to(shares[:, None, :], (6, 20, 20)) * np.linspace(1, 2, 20)[:, None]
    np.testing.assert_allclose(profiles(attention), np.corrcoef(shares.T))
    assert np.isnan(profiles(np.ones((6, 20, 20)))).all()


def test_the_rank_correlation_is_spearmans_over_190_pairs():
    generator = np.random.default_rng(0)
    matrices = generator.integers(0, 30, (3, 20, 20)).astype(float)
    upper = np.triu_indices(20, 1)
    expected = [textbook(one[upper], blosum62()[upper])[0] for one in matrices]
    np.testing.assert_allclose(rank_correlation(matrices, blosum62()), expected)
    assert rank_correlation(blosum62(), blosum62()) == pytest.approx(1.0)
    assert len(upper[0]) == 190


def test_mantels_test_rejects_as_often_as_it_says():
    """Matrices of effects of single amino acids, which BLOSUM62 has: pairs are far from independent draws."""
    generator = np.random.default_rng(0)
    upper, naive, permuted, trials = np.triu_indices(20, 1), 0, 0, 300
    for trial in range(trials):
        effects = generator.standard_normal(20)
        matrix = effects[:, None] + effects[None, :] + 0.2 * generator.standard_normal((20, 20))
        matrix = matrix + matrix.T
        naive += textbook(matrix[upper], blosum62()[upper])[1] < 0.05
        permuted += mantel(matrix, blosum62(), permutations=199, seed=trial).p < 0.05 + 1e-9
    error = math.sqrt(0.05 * 0.95 / trials)
    assert abs(permuted / trials - 0.05) < 4 * error
    assert naive / trials > 0.05 + 4 * error  # the textbook's test would not do
    found = mantel(blosum62(), blosum62(), permutations=999, seed=0)
    assert found.p == 1 / 1000
    assert found.low < 0 < found.high < 0.5
    assert math.isnan(mantel(np.ones((20, 20)), blosum62(), permutations=99, seed=0).p)


def test_more_proteins_make_narrower_intervals():
    widths = []
    for count in (12, 192):
        mass = planted_mass(ExactAttention(num_heads=1, head_dim=20), proteins(count), 0.02)
        values = resampled(mass, resamples=200, seed=0)[Part("model", "over uniform")]
        low, high = np.quantile(values, [0.025, 0.975])
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]


def small_model(attention: Any, seed: int) -> ProteinModel:
    torch.manual_seed(seed)
    encoder = Encoder(hidden_size=16, num_layers=2, num_heads=2, attention=attention)
    return ProteinModel(trunk=ProteinEncoder(encoder=encoder), head=LanguageModelHead(hidden_size=16)).eval()


def test_packs_do_not_matter():
    model = small_model(lambda **s: FavorAttention(**s, features=lambda **f: PositiveFeatures(**f, num_features=8)), 0)
    corpus = proteins(5)
    together, alone = (measure(model, corpus, batch_tokens=tokens) for tokens in (4096, 1))
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    # every residue's attention goes to residues, <cls> and <eos>
    assert (together.attention.sum(axis=(3, 4)) < corpus.lengths[:, None, None]).all()
    np.testing.assert_allclose(together.counts.sum(axis=1), corpus.lengths)


def config(**changed: Any) -> dict[str, Any]:
    overlay = yaml.safe_load((CONF / "experiment" / "amino_acid_similarity.yaml").read_text())
    assert set(changed) <= set(overlay["similarity"])
    small = {"sample": 8, "untrained": 2, "resamples": 20, "permutations": 50}
    return {"seed": 0, "similarity": {**overlay["similarity"], **small, **changed}}


def test_one_command_compares_models_and_floors(tmp_path, capsys):
    performer = small_model(
        lambda **s: FavorAttention(**s, features=lambda **f: PositiveFeatures(**f, num_features=8)), 8
    )
    save_model(exact_model(seed=7), tmp_path / "exact" / "model", tokens=TOKENS)
    save_model(performer, tmp_path / "performer" / "model", tokens=TOKENS)
    fasta = tmp_path / "p.fasta"
    corpus = proteins(10)
    fasta.write_text("".join(f">{corpus.id(i)}\n{corpus.text(i)}\n" for i in range(10)))
    models = [str(tmp_path / "exact"), str(tmp_path / "performer")]
    run(JobSettings(config=config(models=models, proteins=str(fasta)), run_dir=str(tmp_path)))
    analysis = read_analysis(tmp_path / "rows.json")
    rows = analysis.rows
    whole = [row for row in rows if row["part"] == "correlation" and row["level"] == "model"]
    assert [(row["model"], row["method"]) for row in whole if row["estimate"] == "frequencies"] == [
        ("exact", "exact"),
        ("performer", "performer-positive"),
        ("untrained 1, as exact", "untrained exact"),
        ("untrained 2, as exact", "untrained exact"),
        ("untrained 1, as performer", "untrained performer-positive"),
        ("untrained 2, as performer", "untrained performer-positive"),
        ("uniform", "uniform"),
    ]
    own = next(row for row in whole if (row["model"], row["estimate"]) == ("exact", "frequencies"))
    floors = [row["rho"] for row in whole if row["like"] == "exact" and row["estimate"] == "frequencies"]
    assert own["over_untrained"] == pytest.approx(own["rho"] - np.mean(floors))
    assert own["over_untrained_low"] <= own["over_untrained_high"]
    assert len([row for row in rows if row.get("level") == "head" and row["model"] == "exact"]) == 2 * 4
    pairs = [row for row in rows if row["part"] == "pairs" and row["model"] == "exact"]
    assert len(pairs) == 210
    different = [row for row in pairs if not row["identical"]]
    again, _ = textbook([row["similarity"] for row in different], [row["blosum62"] for row in different])
    assert again == pytest.approx(own["rho"])
    for row in rows:
        assert {name.removesuffix("_low").removesuffix("_high") for name in row} <= {*analysis.columns, "null"}
    for view in analysis.views:
        assert any(all(row.get(k) == v for k, v in view.where.items()) and view.y in row for row in rows), view.title
    assert "uniform" in capsys.readouterr().out


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(ProtformerError, match=r"similarity.models=\[FOLDER,FOLDER\]"):
        Settings.of(config())
    with pytest.raises(ProtformerError, match="resamples must be at least 20"):
        Settings.of(config(models="a", proteins="b", resamples=3))
    save_model(exact_model(), tmp_path / "exact" / "model", tokens=TOKENS)
    (tmp_path / "p.fasta").write_text(">a\nLAGVSERTIDPKQNFYMH\n>b\nLAGV\n")
    few = config(models=str(tmp_path / "exact"), proteins=str(tmp_path / "p.fasta"))
    with pytest.raises(ProtformerError, match="have no W, C"):
        run(JobSettings(config=few, run_dir=str(tmp_path)))

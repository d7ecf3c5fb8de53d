"""What was planted is found again: shares of the gap, paired differences, and intervals that cover as they claim."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted_runs import BINS, Plan, write_run
from scipy.stats import t as student

from protformer.data.floors.bootstrap import paired_difference_interval, perplexity
from protformer.evaluation.comparison import compare
from protformer.evaluation.comparison.answer import answer, signed
from protformer.evaluation.comparison.comparability import arms_of
from protformer.evaluation.comparison.reading import Group, Proteins, Run, read_run
from protformer.evaluation.comparison.resampling import Resampled, interval, mean_of_seeds, spread
from protformer.evaluation.comparison.statistics import in_order_of_novelty, set_rows
from protformer.evaluation.headlines import HEADLINES

EXACT, UNIFORM = 2.80, 2.83


def group(folder: Path, plans: Sequence[Plan]) -> Group:
    return Group("planted", [read_run(write_run(folder / str(i), plan)) for i, plan in enumerate(plans)])


def share(value: float) -> float:
    """The NLL of a method that keeps so much of the gap."""
    return UNIFORM - value * (UNIFORM - EXACT)


def row(rows: Sequence[dict], method: str, part: str = "all") -> dict:
    (found,) = [r for r in rows if r["method"] == method and r["bin"] == part]
    return found


def in_memory(method: str, nll: np.ndarray, targets: np.ndarray, seed: int = 0) -> Run:
    """A run of one set, "test", of which nothing but the proteins is known."""
    count = len(targets)
    keys = tuple((f"P{i:05d}", 0) for i in range(count))
    proteins = Proteins(keys, np.full(count, ""), targets, nll, np.zeros(count))
    metrics = {"method": method, "seed": seed, "sets": {}, "training": {}, "comparison": {}}
    return Run(Path(f"{method}{seed}"), metrics, {}, {"test": proteins})


def test_shares_and_differences_are_found_again(tmp_path):
    planted = {"exact": EXACT, "uniform": UNIFORM, "performer-relu": share(0.6), "linformer": share(0.0)}
    plans = [Plan(method=m, nll=nll, seed=seed, bins=True) for m, nll in planted.items() for seed in range(3)]
    found = compare(group(tmp_path, plans), resamples=500)
    for name in ("valid", "test"):
        rows = [r for r in found.rows if r["set"] == name]
        for part in ("all", *BINS):
            relu, linformer = row(rows, "performer-relu", part), row(rows, "linformer", part)
            assert relu["share_low"] < 0.6 < relu["share_high"]
            assert linformer["share_low"] < 0.0 < linformer["share_high"]
            assert relu["proteins"] == (200 if part == "all" else len(range(BINS.index(part), 200, 3)))
            assert relu["paired_seeds"] == 3
        uniform = row(rows, "uniform")
        assert uniform["gap_low"] < UNIFORM - EXACT < uniform["gap_high"]
        # proteins differ from one another ten times as much as methods do: pairing takes that out
        width = uniform["perplexity_mask_high"] - uniform["perplexity_mask_low"]
        paired = uniform["perplexity_mask_difference_high"] - uniform["perplexity_mask_difference_low"]
        assert paired < width / 4


@pytest.mark.slow
def test_intervals_cover_what_they_claim():
    """In 200 worlds, a 95 % interval misses about 10 times; 25 misses are more than four standard errors off."""
    generator = np.random.default_rng(0)
    missed = np.zeros(2, dtype=int)
    for _ in range(200):
        targets = generator.integers(5, 60, 150).astype(float)
        difficulty = generator.normal(0, 0.25, 150)
        runs = [in_memory(method, targets * (nll + difficulty + generator.normal(0, 0.05, 150)), targets)
                for method, nll in (("exact", EXACT), ("uniform", UNIFORM), ("reformer", share(0.5)))]  # fmt: skip
        rows = set_rows(arms_of(Group("", runs)), "test", HEADLINES[0], resamples=300)
        found, gap = row(rows, "reformer"), row(rows, "uniform")
        if not gap["gap_low"] > 0:
            continue
        truth = (0.5, UNIFORM - EXACT)
        missed += [
            not found["share_low"] <= truth[0] <= found["share_high"],
            not gap["gap_low"] <= truth[1] <= gap["gap_high"],
        ]
    assert 0 < missed[0] < 25
    assert 0 < missed[1] < 25


def test_one_seed_gives_the_paired_interval_of_the_floors():
    generator = np.random.default_rng(1)
    targets = generator.integers(1, 50, 80).astype(float)
    exact, other = (targets * generator.normal(nll, 0.2, 80) for nll in (2.8, 2.9))
    rows = set_rows(
        arms_of(Group("", [in_memory("exact", exact, targets), in_memory("reformer", other, targets)])),
        "test", HEADLINES[0],
    )  # fmt: skip
    found = row(rows, "reformer")
    low, high = paired_difference_interval(other, exact, targets, perplexity, resamples=2000)
    assert found["perplexity_mask_difference_low"] == pytest.approx(low, abs=0.02)
    assert found["perplexity_mask_difference_high"] == pytest.approx(high, abs=0.02)
    assert found["perplexity_mask"] == pytest.approx(np.exp(other.sum() / targets.sum()))


@pytest.mark.parametrize("number", [2, 3, 5])
def test_few_seeds_vary_as_much_as_their_mean_does(number):
    """The variance over draws is s^2 / n; drawn with replacement it would be (n - 1) / n of it."""
    values = np.random.default_rng(2).normal(size=number)
    weights = Resampled(np.ones(1, dtype=bool), resamples=20_000).seed_weights(range(number))
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_allclose(weights[0], 1 / number)
    drawn = weights[1:] @ values
    law = values.var(ddof=1) / number
    error = np.std((drawn - drawn.mean()) ** 2) / np.sqrt(len(drawn))
    assert abs(drawn.var() - law) < 4 * error
    assert abs(drawn.var() - law * (number - 1) / number) > 4 * error, "the test could not tell the uncorrected draws"


def test_seeds_widen_intervals():
    generator = np.random.default_rng(3)
    targets = np.full(400, 30.0)
    protein = generator.normal(2.8, 0.01, 400)
    runs = [
        in_memory("reformer", targets * (protein + shift), targets, seed) for seed, shift in enumerate((-0.05, 0, 0.05))
    ]
    exact = [in_memory("exact", targets * protein, targets, seed) for seed in range(3)]
    rows = set_rows(arms_of(Group("", [*runs, *exact])), "test", HEADLINES[0])
    alone = set_rows(arms_of(Group("", [runs[1], exact[1]])), "test", HEADLINES[0])
    widths = [r["nll_high"] - r["nll_low"] for r in (row(rows, "reformer"), row(alone, "reformer"))]
    assert widths[0] > 10 * widths[1]
    assert row(rows, "reformer")["perplexity_mask_seed_max"] == pytest.approx(np.exp(2.85), rel=1e-3)


@pytest.mark.parametrize(("uniform", "words"), [(EXACT, "cannot be told apart"), (EXACT - 0.05, "is the better one")])
def test_without_a_gap_there_is_no_share_and_the_answer_says_so(uniform, words, tmp_path):
    plans = [Plan(method="exact", nll=EXACT), Plan(method="uniform", nll=uniform), Plan(method="reformer", nll=EXACT)]
    found = compare(group(tmp_path, plans))
    assert all("share" not in r for r in found.rows)
    told = " ".join(answer(found))
    assert words in told
    assert "there is no gap to have a share of" in told
    assert "From exact attention, in perplexity at <mask>: reformer " in told


def test_a_tie_over_all_seeds_leaves_no_share_to_a_method_with_one_lucky_seed():
    generator = np.random.default_rng(4)
    targets = np.full(300, 30.0)
    protein = generator.normal(2.8, 0.01, 300)
    shifts = (0.03, -0.03, 0.0)  # of uniform, by seed: none at all on average
    runs = [in_memory("exact", targets * protein, targets, seed) for seed in range(3)]
    runs += [in_memory("uniform", targets * (protein + shift), targets, seed) for seed, shift in enumerate(shifts)]
    runs.append(in_memory("reformer", targets * (protein + 0.01), targets, 0))
    rows = set_rows(arms_of(Group("", runs)), "test", HEADLINES[0], resamples=500)
    assert all("share" not in r and "ties" in r["share_note"] for r in rows)
    del runs[1:3], runs[2:4]
    rows = set_rows(arms_of(Group("", runs)), "test", HEADLINES[0], resamples=500)
    assert row(rows, "reformer")["share"] == pytest.approx(2 / 3)


def test_the_answer_names_shares_with_intervals(tmp_path):
    plans = [Plan(method=m, nll=nll)
             for m, nll in (("exact", EXACT), ("uniform", UNIFORM), ("performer-relu", share(0.6)))]  # fmt: skip
    found = compare(group(tmp_path, plans))
    relu = row([r for r in found.rows if r["set"] == "test"], "performer-relu")
    told = " ".join(answer(found))
    assert told.startswith("At 5.0 M residues, exact attention reaches a perplexity at <mask> of 17.")
    assert f"performer-relu keeps {100 * relu['share']:.0f} % ({100 * relu['share_low']:.0f} to" in told
    assert any("one seed" in note for note in found.notes)


def test_a_model_worse_than_a_floor_is_called_so(tmp_path):
    plans = [Plan(method="exact", nll=np.log(18.5).item()), Plan(method="uniform", nll=np.log(20).item())]
    told = " ".join(answer(compare(group(tmp_path, plans))))
    assert "No model is better here than \u201cown composition\u201d (17.38)" in told


def test_floors_are_means_over_seeds_and_judged_by_paired_intervals(tmp_path):
    nll = {"exact": np.log(17.0).item(), "reformer": np.log(17.37).item(), "uniform": np.log(18).item()}
    intervals = {"exact": (-0.5, -0.3), "reformer": (-0.1, 0.1), "uniform": (0.5, 0.7)}
    runs = group(tmp_path, [Plan(method=m, nll=n, seed=s) for m, n in nll.items() for s in range(2)])
    for run in runs.runs:
        low, high = intervals[run.method]
        floor = next(r for r in run.metrics["sets"]["test"]["rows"] if r["name"] == "own composition")
        floor["figures"] |= {"trained_minus_this_low": low, "trained_minus_this_high": high}
        floor["figures"]["perplexity_mask"] += 0.1 * run.seed
    found = compare(runs)
    [floor] = [r for r in found.of_set("test", kind="floor") if r["method"] == "own composition"]
    assert (floor["perplexity_mask"], floor["seeds"]) == (pytest.approx(17.43), 2)
    assert answer(found)[-1] == (
        "uniform is not better here than \u201cown composition\u201d (17.43), a floor that needs no model;"
        " reformer cannot be told apart from it."
    )


def test_methods_without_a_common_seed_are_not_called_paired(tmp_path):
    plans = [Plan(method="exact", nll=EXACT, seed=0), Plan(method="reformer", nll=EXACT, seed=1)]
    found = compare(group(tmp_path, plans))
    assert row([r for r in found.rows if r["set"] == "test"], "reformer")["paired_seeds"] == 0
    assert any("no seed in common" in note for note in found.notes)


def test_figures_serve_where_there_are_no_proteins(tmp_path):
    runs = group(tmp_path, [Plan(method="exact", nll=EXACT, seed=s) for s in range(3)])
    (tmp_path / "0" / "per_protein.tsv").unlink()
    runs.runs[0] = read_run(tmp_path / "0")
    found = compare(runs)
    test = row([r for r in found.rows if r["set"] == "test"], "exact")
    assert 16 < test["perplexity_mask"] < 18
    assert "perplexity_mask_difference" not in test
    assert any("per_protein.tsv" in note and str(tmp_path / "0") in note for note in found.notes)


def test_spread_over_seeds():
    assert spread([1.0, 2.0])["seed_low"] is None
    three = spread([1.0, 2.0, 3.0])
    assert (three["seed_min"], three["seed_max"]) == (1.0, 3.0)
    assert three["seed_low"] == pytest.approx(2 - 4.302653 / np.sqrt(3), rel=1e-5)  # t(0.975, 2), s = 1


def test_draws_without_a_value_widen_both_ends():
    values = np.concatenate([[1.0], np.linspace(0, 2, 90), np.full(10, np.nan)])
    assert interval(np.stack([values, values]), seeds=1) == (1.0, -np.inf, np.inf)
    assert interval(np.stack([values, values]), seeds=2) == (1.0, -np.inf, np.inf)


def test_bins_stand_in_the_order_of_novelty_whatever_their_names_go_on_with():
    names = ["homolog_id30_cov80", "mid_id30_qcov50", "nohit", "close_id50_qcov50", "remote_id20", "middling"]
    expected = ["nohit", "remote_id20", "mid_id30_qcov50", "close_id50_qcov50", "homolog_id30_cov80", "middling"]
    assert in_order_of_novelty(names) == expected


def test_few_proteins_have_figures_without_intervals(tmp_path):
    plans = [Plan(method=m, nll=n, proteins=5, seed=s) for m, n in (("exact", 2.8), ("uniform", 2.9)) for s in (0, 1)]
    for row in compare(group(tmp_path, plans)).rows:
        if row["kind"] == "method" and row["set"] == "test":
            assert row["perplexity_mask"] > 1
            assert not {"perplexity_mask_low", "perplexity_mask_difference_low", "gap", "share"} & row.keys()


def test_intervals_end_where_figures_can():
    draws = np.array([0.03, -0.01, 0.02, 0.05, 1.2])
    assert interval(np.stack([draws, draws]), seeds=1, least=0.0, most=1.0) == (0.03, 0.0, 1.0)


@pytest.mark.parametrize(("number", "part"), [(2, 1.0), (3, 1.0), (3, 0.5), (3, 0.0), (5, 0.5)])
def test_an_interval_over_few_seeds_is_student_s(number, part):
    """`part` of the variance is the seeds': degrees of freedom by Satterthwaite, so with seeds alone their t interval,
    and with proteins alone the normal one."""
    generator = np.random.default_rng(5)
    proteins, seeds = generator.normal(size=(2, 40_000)) * np.sqrt([[1 - part], [part]])
    values = np.zeros((2, 40_001))
    values[:, 1:] = proteins + seeds, proteins
    _, low, high = interval(values, seeds=number)
    freedom = (number - 1) / part**2 if part else 1e9
    assert (high - low) / 2 == pytest.approx(student.ppf(0.975, freedom), rel=0.04)
    assert -low == pytest.approx(high, rel=0.05)


def test_a_mean_of_seeds_keeps_the_error_of_its_proteins():
    assert mean_of_seeds([0.3], [0.2]) == pytest.approx((0.3, 0.1, 0.5))
    assert mean_of_seeds([0.3, 0.3, 0.3], [0.2, 0.2, 0.2]) == pytest.approx((0.3, 0.1, 0.5))
    _, low, high = mean_of_seeds([1.0, 2.0, 3.0], [1e-9] * 3)
    assert (low, high) == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)), rel=1e-5)


@pytest.mark.slow
def test_three_seeds_cover_what_they_claim():
    """In 300 worlds whose seeds make half the variance, a 95 % interval misses some 15 times."""
    generator = np.random.default_rng(1)
    targets, missed = np.full(150, 30.0), 0
    for _ in range(300):
        protein, own = generator.normal(2.8, 0.25, 150), generator.normal(0, 0.05, 150)
        shifts = generator.normal(0, 0.05 / np.sqrt(150) * np.sqrt(3), 3)
        runs = [in_memory("exact", targets * protein, targets, seed) for seed in range(3)]
        runs += [in_memory("reformer", targets * (protein + own + s), targets, seed) for seed, s in enumerate(shifts)]
        rows = set_rows(arms_of(Group("", runs)), "test", HEADLINES[0], resamples=400)
        found = row(rows, "reformer")
        missed += not found["perplexity_mask_difference_low"] <= 0 <= found["perplexity_mask_difference_high"]
    assert 3 <= missed <= 30


def test_without_a_plain_run_of_uniform_the_answer_does_not_say_that_there_is_none(tmp_path):
    plans = [Plan(method="exact"), *(Plan(method="uniform", config={"optimizer": {"lr": lr}}) for lr in (0.1, 0.2))]
    told = " ".join(answer(compare(group(tmp_path, plans))))
    assert "Without a run of uniform" not in told
    assert "differ in more than their attention (optimizer.lr)" in told


def test_differences_of_accuracy_are_in_percentage_points():
    row = {"accuracy_difference": -0.012, "accuracy_difference_low": -0.02, "accuracy_difference_high": 0.004}
    assert signed(row, "accuracy_difference") == "\u22121.20 (\u22122.00 to +0.40) points"


def test_a_bin_called_all_is_a_bin():
    generator = np.random.default_rng(2)
    targets = np.full(40, 10.0)
    nll = np.concatenate([np.full(20, 10.0), np.full(20, 30.0)]) + generator.normal(0, 0.01, 40)
    run = in_memory("exact", nll, targets)
    bins = np.array(["all"] * 20 + ["not in the table"] * 10 + [""] * 10)
    run = replace(run, proteins={"test": replace(run.proteins["test"], bins=bins)})
    rows = {r["bin"]: r for r in set_rows(arms_of(Group("", [run])), "test", HEADLINES[0], resamples=100)}
    assert rows["all"]["proteins"] == 40
    assert rows["all"]["perplexity_mask"] == pytest.approx(np.exp(2.0), rel=0.01)
    assert {name: r["proteins"] for name, r in rows.items() if name != "all"} == {
        "all (bin)": 20, "not in the table (bin)": 10, "not in the table": 10
    }  # fmt: skip

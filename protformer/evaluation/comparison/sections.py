"""The report's sections: what stands in them, on the page and in Markdown alike."""

from collections.abc import Sequence
from typing import Any

from protformer.evaluation.analysis import Analysis
from protformer.evaluation.comparison.answer import amount, answer
from protformer.evaluation.comparison.charts import analysis_charts
from protformer.evaluation.comparison.comparison import Comparison, listed
from protformer.evaluation.comparison.page import Section
from protformer.evaluation.comparison.paper import CITATION, THEIR_SETTING
from protformer.evaluation.comparison.pictures import comparison_charts
from protformer.evaluation.comparison.reading import flat
from protformer.evaluation.comparison.tables import (
    cost_table,
    data_table,
    knob_table,
    missing_table,
    pairs_table,
    paper_table,
    result_table,
    rows_tables,
    run_table,
)

METHOD = (
    "Every run of a comparison saw the same data with the same masks for the same budget, or the report would have"
    " been refused. A figure is the mean over seeds of figures per set: perplexity is that of the set's summed NLL,"
    " accuracy is of all its targets. Floors are fitted to a part of the training set that a run's seed draws, so"
    " theirs are means over seeds too. What an experiment's figures and intervals are of, its own section says.",
    "Intervals are 95 % percentile intervals of 2,000 bootstrap draws of proteins; where there are several seeds, their"
    " spread is drawn too, and the interval widened by Student's t for their being few (Satterthwaite's degrees of"
    " freedom). All methods see the same drawn proteins and seeds, so differences are paired, over the seeds that both"
    " have.",
    "The share of the gap is (NLL of uniform \u2212 NLL of the method) / (NLL of uniform \u2212 NLL of exact), per"
    " target. Where the interval of its denominator holds zero, there is no gap to have a share of.",
    "Intervals are not corrected for the number of comparisons: with many methods and sets, some will lie on one side"
    " of zero by chance.",
)


def comparison_section(comparison: Comparison) -> Section:
    """What a comparison says, from the answer to the settings of its runs."""
    main = comparison.main_set
    content: list[Any] = [f"Missing: {missing_words(comparison)}"] if comparison.missing else []
    content.append(result_table(comparison, main))
    others = [name for name in comparison.sets if name != main]
    content += comparison_charts(comparison)
    folded: list[Any] = [result_table(comparison, name) for name in others]
    folded += [result_table(comparison, name, part) for name in comparison.sets for part in comparison.bins(name)]
    folded += [cost_table(comparison), run_table(comparison), data_table(comparison)]
    folded += [knob_table(comparison)] if comparison.knobs else []
    folded += [missing_table(comparison)] if comparison.missing else []
    content += [budget_words(comparison), *comparison.notes]
    return Section(title=comparison.title, sentences=answer(comparison), content=content, folded=folded)


def missing_words(comparison: Comparison) -> str:
    """The members that did not end, by name."""
    names = [f"{member.name} ({member.reason})" for member in comparison.missing]
    return f"{listed(names)}."


def budget_words(comparison: Comparison) -> str:
    run = comparison.runs[0]
    budget, task = run.comparison.get("budget", {}), run.comparison.get("task", {})
    seen = [r.comparison["budget"]["residues"] for r in comparison.runs]
    spread = (
        amount(min(seen)) if amount(min(seen)) == amount(max(seen)) else f"{amount(min(seen))} to {amount(max(seen))}"
    )
    settings = ", ".join(f"{key} {value}" for key, value in task.items() if key != "name")
    sampled = [
        f"{name} is a sample of {data['sequences']:,} of {data['sampled_from']:,}"
        for name, data in run.comparison.get("data", {}).items()
        if data.get("sampled_from")
    ]
    return (
        f"All alike: {budget.get('optimiser_steps', 0):,} optimiser steps of up to {budget.get('batch_tokens', 0):,}"
        f" tokens ({spread} residues seen), task {task.get('name', run.metrics['task'])} ({settings or 'no settings'}),"
        f" evaluation seed {run.comparison.get('evaluation_seed')}{'; ' + listed(sampled) if sampled else ''}. Seeds:"
        f" {listed([str(seed) for seed in sorted({r.seed for r in comparison.runs})])}."
    )


def paper_section(comparisons: Sequence[Comparison]) -> Section:
    """The paper's figures, and in what they differ from these."""
    runs = [run for comparison in comparisons for run in comparison.runs]
    sizes = sorted({run.metrics.get("parameters") or 0 for run in runs})
    seen = sorted({run.comparison["budget"]["residues"] for run in runs})
    tokens = sorted({run.comparison["budget"].get("batch_tokens", 0) for run in runs})
    sets = list(dict.fromkeys(name for comparison in comparisons for name in comparison.sets))
    ours = (
        f"Here, models of {_range(sizes)} parameters saw {_range(seen)} residues in steps of up to {_range(tokens)}"
        f" tokens, the same for all methods of a comparison, and were scored on {listed(sets)}: whole proteins, of any"
        " length."
    )
    return Section(
        title="The paper's figures, and why they differ",
        content=[
            f"These are no target for the figures above, and no evidence for or against them. {THEIR_SETTING}.",
            ours,
            paper_table(),
            f"Source: {CITATION}.",
        ],
    )


def _range(values: Sequence[float | int]) -> str:
    low, high = amount(values[0]), amount(values[-1])
    return low if low == high else f"{low} to {high}"


def method_section() -> Section:
    return Section(title="How the figures were made", content=list(METHOD))


def analysis_section(name: str, analysis: Analysis, *, title: str) -> Section:
    """An experiment's pictures, remarks and rows; it is known by its rows alone."""
    beside = (
        pairs_table("What the columns are", ("column", "meaning"), analysis.columns),
        pairs_table("Settings", ("setting", "value"), flat(analysis.settings)),
        pairs_table("Machine, versions and commit", ("what", "value"), flat(analysis.measured)),
    )
    return Section(
        title=title,
        sentences=[analysis.question],
        content=[*analysis.notes, *analysis_charts(name, analysis)],
        folded=[*rows_tables(analysis.rows, analysis.columns), *(table for table in beside if table.lines)],
    )

"""The pictures of a comparison, as charts: results, differences, shares, learning, novelty, cost; and a benchmark's."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from protformer.evaluation.analysis import Analysis, View
from protformer.evaluation.comparison.charts import Chart, Number, Panel, Rule, Series
from protformer.evaluation.comparison.comparability import Arm
from protformer.evaluation.comparison.comparison import Comparison
from protformer.evaluation.comparison.reading import Run
from protformer.evaluation.comparison.statistics import ALL, Row, common_seeds, plain_arm
from protformer.evaluation.methods import REFERENCE, canonical

AXES = {
    "residues": ("residues seen, millions", 1e-6),
    "seconds": ("wall-clock of training steps, minutes", 1 / 60),
    "cpu_seconds": ("CPU time of training steps, minutes", 1 / 60),
}
_SCHEDULE = (
    " The learning rate falls to the end of a run: at equal time the slower method has more of that fall before it than"
    " a run that ended there, which would have come lower."
)


def comparison_charts(comparison: Comparison) -> list[Chart]:
    """Those that the comparison has rows for."""
    charts = [
        _shares(comparison),
        _differences(comparison),
        _results(comparison),
        *_learning(comparison),
        _by_bin(comparison),
        _costs(comparison),
    ]
    return [chart for chart in charts if chart is not None and chart.panels]


def _results(comparison: Comparison) -> Chart:
    column, panels = comparison.headline.column, []
    for name in comparison.sets:
        rows = [row for row in comparison.of_set(name, kind="method") if row.get(column) is not None]
        series = [_dot(comparison, row, column, row.get(f"{column}_by_seed")) for row in rows]
        panels.append(Panel(title=_sized(rows, name), x_label=comparison.headline.label, series=series,
                            rules=_floors(comparison, name)))  # fmt: skip
    return Chart(
        name=f"{comparison.name}-results",
        title=f"{_capital(comparison.headline.label)} on each evaluation set",
        kind="interval",
        y_label="",
        panels=panels,
        group=comparison.title,
        caption=_results_caption(comparison),
    )


def _results_caption(comparison: Comparison) -> str:
    """What the marks are; there are intervals, and differences, where the runs say something of each protein."""
    column = comparison.headline.column
    if any(row.get(f"{column}_low") is not None for row in comparison.rows):
        return (
            "Points are means over seeds, bars their 95 % intervals (proteins and seeds drawn), small marks the seeds."
            " With other proteins all methods would move together: to rank them, look at the differences."
        )
    return (
        f"Points are means over seeds, small marks the seeds. There are no intervals, for no run says of each protein"
        f" what it adds to {comparison.headline.label}: the spread of the seeds alone tells how sure a rank is."
    )


def _differences(comparison: Comparison) -> Chart | None:
    column = f"{comparison.headline.column}_difference"
    panels = []
    for name in comparison.sets:
        rows = [row for row in comparison.of_set(name, kind="method") if row.get(f"{column}_low") is not None]
        if rows:
            series = [_dot(comparison, row, column, None) for row in rows]
            label = f"{comparison.headline.label}, minus exact's"
            panels.append(
                Panel(title=_sized(rows, name), x_label=label, series=series, rules=[Rule(label="exact", value=0.0)])
            )
    if not panels:
        return None
    return Chart(
        name=f"{comparison.name}-difference",
        title=f"{_capital(comparison.headline.label)}: how far from exact attention",
        kind="interval",
        y_label="",
        panels=panels,
        group=comparison.title,
        caption="Paired by protein and by seed, over the seeds that both have; bars are 95 % intervals.",
    )


def _shares(comparison: Comparison) -> Chart | None:
    ends = ("share", "share_low", "share_high")
    panels = []
    for name in comparison.sets:
        rows = [row for row in comparison.of_set(name, kind="method") if row.get("share") is not None]
        if rows:
            scaled = [{**row, **{key: 100 * row[key] for key in ends}} for row in rows]
            series = [_dot(comparison, row, "share", None) for row in scaled]
            rules = [Rule(label="uniform", value=0.0), Rule(label="exact", value=100.0)]
            panels.append(Panel(title=_sized(rows, name), x_label="share of the gap, %", series=series, rules=rules))
    if not panels:
        return None
    return Chart(
        name=f"{comparison.name}-share",
        title="Of what exact attention gains over uniform, how much each method keeps",
        kind="interval",
        y_label="",
        panels=panels,
        group=comparison.title,
        caption="(NLL of uniform \u2212 NLL of the method) / (NLL of uniform \u2212 NLL of exact), per target, with"
        " 95 % paired bootstrap intervals. Sets where uniform ties with exact are left out: there is no gap.",
    )


def _dot(comparison: Comparison, row: Row, column: str, by_seed: dict[str, float] | None) -> Series:
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    return Series(
        label=row["method"],
        method=row["family"],
        variant=_arm(comparison, row["method"]).variant,
        x=[row[column]],
        y=[row["method"]],
        low=[low] if low is not None and high is not None else None,
        high=[high] if low is not None and high is not None else None,
        singles=list(by_seed.values()) if by_seed and len(by_seed) > 1 else [],
    )


def _arm(comparison: Comparison, label: str) -> Arm:
    return next(arm for arm in comparison.arms if arm.label == label)


def _sized(rows: Sequence[Row], name: str) -> str:
    proteins = rows[0].get("proteins") if rows else None
    return f"{name}: {proteins:,} proteins" if proteins else name


def _floors(comparison: Comparison, name: str, part: str = ALL, column: str | None = None) -> list[Rule]:
    """Floors near enough to be drawn: one far off (the untrained model, a bound) would squeeze the models together."""
    column = column or comparison.headline.column
    values = [row[column] for row in comparison.of_set(name, part, "method") if row.get(column) is not None]
    floors = [row for row in comparison.of_set(name, part, "floor") if row.get(column) is not None]
    if not values:
        return []
    return [
        Rule(label=str(row["method"]), value=row[column])
        for row in floors
        if 0.8 * min(values) < row[column] < 1.25 * max(values)
    ]


def _learning(comparison: Comparison) -> list[Chart]:
    """On valid: the headline figure, and its distance from exact's at the same step."""
    column = comparison.headline.column
    points = [point for point in comparison.curves if point.get(column) is not None]
    if len({point["step"] for point in points}) < 2:
        return []
    floors = _floors(comparison, "valid") if "valid" in comparison.sets else []
    panels = []
    for axis, (label, scale) in AXES.items():
        series = [s for s in (_line(arm, points, column, axis, scale) for arm in comparison.arms) if s is not None]
        if series and any(x for one in series for x in one.x):
            panels.append(Panel(title=f"against {label.partition(',')[0]}", x_label=label, series=series, rules=floors,
                                y_range=_focus(series, floors, comparison.headline.lower_is_better)))  # fmt: skip
    charts = [
        Chart(
            name=f"{comparison.name}-learning",
            title=f"{_capital(comparison.headline.label)} on valid while learning",
            kind="line",
            y_label=comparison.headline.label,
            panels=panels,
            group=comparison.title,
            caption="Lines are means over seeds, bands their extremes, level lines the floors. What lies far off (the"
            " start) is outside the picture; on the page a double click shows it."
            + (_SCHEDULE if any(_falls(run) for arm in comparison.arms for run in arm.runs) else ""),
        )
    ]
    reference = plain_arm(comparison.arms, REFERENCE)
    if reference is not None:
        lines = [
            _distance(arm, reference, points, column) for arm in comparison.arms if arm is not reference
        ]  # fmt: skip
        series = [one for one in lines if one is not None and len(one.x) > 1]
        if series:
            rules = [Rule(label="exact", value=0.0)]
            panel = Panel(title="", x_label=AXES["residues"][0], series=series, rules=rules,
                          y_range=_focus(series, rules, comparison.headline.lower_is_better))  # fmt: skip
            charts.append(
                Chart(
                    name=f"{comparison.name}-learning-from-exact",
                    title=f"{_capital(comparison.headline.label)} on valid, minus exact's at the same step",
                    kind="line",
                    y_label=f"{comparison.headline.label},\nminus exact's",
                    panels=[panel],
                    group=comparison.title,
                    caption="Runs of one seed see the same residues in the same order: seeds are paired. What lies far"
                    " off (the start) is outside the picture; on the page a double click shows it.",
                )
            )
    return charts


def _steps(runs: Sequence[Row], seed: int) -> dict[int, Row]:
    return {point["step"]: point for point in runs if point["seed"] == seed}


def _line(arm: Arm, points: Sequence[Row], column: str, axis: str, scale: float) -> Series | None:
    own = [p for p in points if p["method"] == arm.label and p.get(axis) is not None]
    by_seed = [_steps(own, seed) for seed in arm.by_seed()]
    by_seed = [steps for steps in by_seed if steps]
    if not by_seed:
        return None
    shared = sorted(set.intersection(*(set(steps) for steps in by_seed)))
    ys = [[steps[step][column] for steps in by_seed] for step in shared]
    xs = [scale * statistics.fmean(steps[step][axis] for steps in by_seed) for step in shared]
    return _banded(arm, xs, ys)


def _falls(run: Run) -> bool:
    return run.config.get("optimizer.schedule", "constant") != "constant"


def _distance(arm: Arm, reference: Arm, points: Sequence[Row], column: str) -> Series | None:
    """Over the seeds that both have, at the steps that all have."""
    pairs = []
    for seed in common_seeds(arm, reference):
        mine, theirs = (_steps([p for p in points if p["method"] == one.label], seed) for one in (arm, reference))
        pairs.append((mine, theirs))
    if not pairs:
        return None
    shared = sorted(set.intersection(*(set(mine) & set(theirs) for mine, theirs in pairs)))
    ys = [[mine[step][column] - theirs[step][column] for mine, theirs in pairs] for step in shared]
    xs = [1e-6 * statistics.fmean(mine[step]["residues"] for mine, _ in pairs) for step in shared]
    return _banded(arm, xs, ys)


def _banded(arm: Arm, xs: list[Number], ys: list[list[Number]]) -> Series:
    several = bool(ys) and len(ys[0]) > 1
    return Series(
        label=arm.label,
        method=arm.method,
        variant=arm.variant,
        x=xs,
        y=[statistics.fmean(values) for values in ys],
        low=[min(values) for values in ys] if several else None,
        high=[max(values) for values in ys] if several else None,
    )


def _focus(series: Sequence[Series], floors: Sequence[Rule], lower_is_better: bool) -> tuple[Number, Number] | None:
    """The later half of the curves and the floors; the start, far off, would flatten all that matters."""
    late = [y for one in series for y in (*one.y[len(one.y) // 2 :], *(one.low or [])[len(one.y) // 2 :],
                                          *(one.high or [])[len(one.y) // 2 :]) if y is not None]  # fmt: skip
    everything = [y for one in series for y in one.y]
    if not late:
        return None
    inner = [*late, *(rule.value for rule in floors)]
    low, high = min(inner), max(inner)
    pad = 0.06 * (high - low) or 0.01 * abs(high) or 1.0
    outside = max(everything) - high if lower_is_better else low - min(everything)
    return (low - pad, high + pad) if outside > 0.5 * (high - low) else None


def _by_bin(comparison: Comparison) -> Chart | None:
    """From exact where it is there: proteins of a bin are easy or hard for all methods alike."""
    column, panels = comparison.headline.column, []
    from_exact = any(f"{column}_difference" in row for row in comparison.rows)
    if from_exact:
        column = f"{column}_difference"
    for name in comparison.sets:
        bins = [part for part in comparison.bins(name) if comparison.of_set(name, part, "method")]
        if len(bins) < 2:
            continue
        series = []
        for arm in comparison.arms:
            rows = [r for part in bins for r in comparison.of_set(name, part, "method") if r["method"] == arm.label]
            rows = [row for row in rows if row.get(column) is not None]
            if rows:
                low, high = ([row.get(f"{column}_{end}") for row in rows] for end in ("low", "high"))
                series.append(Series(label=arm.label, method=arm.method, variant=arm.variant, low=low, high=high,
                                     x=[f"{row['bin']} ({row['proteins']:,})" for row in rows],
                                     y=[row[column] for row in rows]))  # fmt: skip
        rules = [Rule(label="exact", value=0.0)] if from_exact else []
        panels.append(Panel(title=name, x_label="best hit in the training set (proteins)", series=series, rules=rules))
    if not panels:
        return None
    label = comparison.headline.label
    return Chart(
        name=f"{comparison.name}-novelty",
        title=f"{_capital(label)} by novelty{', minus exact' + chr(39) + 's' if from_exact else ''}",
        kind="scatter",
        y_label=f"{label},\nminus exact's" if from_exact else label,
        panels=panels,
        group=comparison.title,
        caption="Bars are 95 % intervals, paired by protein where exact attention is the reference. From novel proteins"
        " (left) to ones that resemble something in the training set.",
    )


def _costs(comparison: Comparison) -> Chart:
    columns: list[tuple[str, str, Callable[[Any], float]]] = [
        ("residues_per_second", "residues a second in training steps", float),
        ("peak_memory_bytes", "peak memory of the process, MB", lambda value: value / 1e6),
    ]
    panels = []
    for column, label, scale in columns:
        series = []
        for arm in comparison.arms:
            values = [scale(c[column]) for c in comparison.costs if c["method"] == arm.label and c[column] is not None]
            if values:
                several = len(values) > 1
                series.append(Series(label=arm.label, method=arm.method, variant=arm.variant, y=[arm.label],
                                     x=[statistics.fmean(values)], low=[min(values)] if several else None,
                                     high=[max(values)] if several else None,
                                     singles=values if several else []))  # fmt: skip
        if series:
            panels.append(Panel(title=label.partition(",")[0], x_label=label, series=series))
    return Chart(
        name=f"{comparison.name}-cost",
        title="What the training took",
        kind="interval",
        y_label="",
        panels=panels,
        group=comparison.title,
        caption="Means and extremes over runs; small marks are runs. Other programs on the machine slow a run down.",
    )


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


TIMED = ("single", "crossover", "pack")
"""Kinds of rows that a picture against length shows (`growth` is `single` again, with its slope)."""


def _left_out(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lengths: dict[str, list[int]] = {}
    for row in rows:
        lengths.setdefault(canonical(row["implementation"]), []).append(row["length"])
    told = [f"{who} at {', '.join(f'{n:,}' for n in sorted(set(found)))} tokens" for who, found in lengths.items()]
    reasons = sorted({str(row["reason"]) for row in rows if row["reason"]})
    return [f"Not timed: {'; '.join(told)}{f' ({reasons[0]})' if len(reasons) == 1 else ''}."]


def benchmark_analysis(rows: Sequence[dict[str, Any]]) -> Analysis:
    """Rows of `protformer benchmark attention --json`, as an experiment's: single sequences that were timed."""
    timed = []
    late = [row for row in rows if row["kind"] in TIMED and row["ms"] is None]
    for row in rows:
        if row["kind"] not in TIMED or row["ms"] is None:
            continue
        method = canonical(row["implementation"])
        features = f", {row['features']} features" if row.get("features") else ""
        timed.append({
            "method": method, "who": method + features, "length": row["length"], "ms": row["ms"],
            "ms_low": row["ms_min"], "ms_high": row["ms_max"],
            "peak_mb": row["peak_bytes"] / 1e6 if row.get("peak_bytes") else None,
            "tokens_per_second": row.get("tokens_per_second"),
            "what": f"{row['dtype']}, {row['direction'].replace('_', ' + ')}{', causal' if row['causal'] else ''}"
            + (f", {row['segments']} packed" if row["kind"] == "pack" else ""),
            "threads": row["threads"],
        })  # fmt: skip
    shared: dict[str, Any] = {"x": "length", "x_label": "tokens of a sequence, or of a pack in all",
                              "x_scale": "log", "y_scale": "log", "line": "who", "panel": "what"}  # fmt: skip
    first = rows[0] if rows else {}
    return Analysis(
        kind="attention benchmark",
        title="Time and memory of one attention",
        question="What does one call of each attention take, against length?",
        rows=timed,
        views=[
            View(title="Time of a call", y="ms", low="ms_low", high="ms_high", y_label="milliseconds", **shared),
            View(title="Peak memory of a call", y="peak_mb", y_label="MB beside inputs and outputs", **shared),
        ],
        columns={
            "method": "the attention", "what": "type and direction", "length": "tokens",
            "ms": "median milliseconds of a call",
            "peak_mb": "peak memory beside inputs and outputs, MB", "tokens_per_second": "tokens a second",
        },
        notes=[f"{first['heads']} heads of {first['dim']}."] * ("heads" in first) + _left_out(late),
        measured={k: first[k] for k in ("hardware", "versions", "commit", "time") if k in first},
    )  # fmt: skip

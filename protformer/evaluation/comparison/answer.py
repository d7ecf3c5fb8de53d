"""What a comparison says, in a few sentences that its figures bear out: the first thing that a reader sees."""

from protformer.evaluation.comparison.comparability import Arm
from protformer.evaluation.comparison.comparison import Comparison, beside_the_attention, listed
from protformer.evaluation.comparison.reading import Run
from protformer.evaluation.comparison.resampling import mean_of_seeds
from protformer.evaluation.comparison.statistics import Row, plain_arm
from protformer.evaluation.methods import FLOOR, REFERENCE

NAMES = {REFERENCE: "exact attention", FLOOR: "uniform attention"}
MINUS = "\u2212"
LONGEST = 6
"""Methods that the sentences name; the others are in the table below them."""


def answer(comparison: Comparison) -> list[str]:
    """Sentences, the most important first."""
    rows = {row["method"]: row for row in comparison.of_set(comparison.main_set, kind="method")}
    reference, floor = (plain_arm(comparison.arms, method) for method in (REFERENCE, FLOOR))
    others = [arm for arm in comparison.arms if arm not in (reference, floor)]
    sentences = [_reached(comparison, rows, reference, floor)]
    if not comparison.residues:
        sentences.append("Nothing was trained: these are figures of models as they began.")
    if comparison.headline.is_perplexity and reference and floor and "gap" in rows[floor.label]:
        sentences += _gap(comparison, rows, floor, others)
    elif reference and others:
        sentences.append(_from_reference(comparison, rows, others))
        if comparison.headline.is_perplexity and not any(arm.method == FLOOR for arm in comparison.arms):
            sentences.append(
                "Without a run of uniform attention, nobody can say what attention is worth at this budget."
            )
    sentences.append(beside_the_attention(comparison.knobs) or "")
    if reference and others and all(len(arm.runs) == 1 for arm in comparison.arms):
        sentences.append("Each was trained with one seed: the intervals do not say what another would give.")
    sentences += _beside_floors(comparison, rows)
    return [sentence for sentence in sentences if sentence]


def where(comparison: Comparison) -> str:
    """The evaluation set with its size: "test (500 proteins)"."""
    name = comparison.main_set
    proteins = comparison.of_set(name)[0].get("proteins")
    return f"{name} ({proteins:,} proteins)" if proteins else name


def _reached(comparison: Comparison, rows: dict[str, Row], reference: Arm | None, floor: Arm | None) -> str:
    headline, column = comparison.headline, comparison.headline.column
    start = f"At {amount(comparison.residues)} residues"
    if reference is None:
        known = {label: row[column] for label, row in rows.items() if row.get(column) is not None}
        if not known:
            return f"{start}, no method has a figure on {where(comparison)}."
        best = (min if headline.lower_is_better else max)(known, key=lambda label: known[label])
        if len(known) == 1:
            reached = f"{_article(headline.label)} {headline.label} of {_value(rows[best], column)}"
            return f"{start}, {best} reaches {reached} on {where(comparison)}."
        return f"{start}, {best} has the best {headline.label} on {where(comparison)}: {_value(rows[best], column)}."
    reached = f"{_article(headline.label)} {headline.label} of {_value(rows[reference.label], column)}"
    told = f"{start}, exact attention reaches {reached}"
    if floor is not None:
        joined = floor.runs[0].config.get("data.concatenate")
        mean = f"over all that was joined to {joined:,} tokens" if joined else "over the protein"
        told += f", and uniform attention, a plain mean {mean}, {_value(rows[floor.label], column)}"
    return f"{told} on {where(comparison)}."


def _article(words: str) -> str:
    return "an" if words[:1].lower() in "aeiou" else "a"


def _gap(comparison: Comparison, rows: dict[str, Row], floor: Arm, others: list[Arm]) -> list[str]:
    row = rows[floor.label]
    size = f"{row['gap']:+.4f} nats a residue, {row['gap_low']:+.4f} to {row['gap_high']:+.4f}".replace("-", MINUS)
    if row.get("share_note"):
        found = (
            "uniform attention is the better one, and there is no gap to have a share of"
            if row["gap_high"] < 0
            else "the two cannot be told apart. So this budget shows nothing of what exact attention gains over a plain"
            " mean, and there is no gap to have a share of"
        )
        return [f"NLL of uniform minus NLL of exact is {size}: {found}.", _from_reference(comparison, rows, others)]
    known = [rows[arm.label] for arm in others if rows[arm.label].get("share") is not None]
    known.sort(key=lambda one: -one["share"])
    if not known:
        return [f"The gap between them is {size}."]
    size = size.replace("+", "")
    first, *rest = known[:LONGEST]
    shares = [
        f"{first['method']} keeps {_marked(percent(first), first, rows)}",
        *(f"{one['method']} {_marked(percent(one), one, rows)}" for one in rest),
    ]
    more = f" ({len(known) - LONGEST} more in the table)" if len(known) > LONGEST else ""
    return [f"Of what exact attention gains over uniform ({size}), {listed(shares)}{more}."]


def _marked(told: str, row: Row, rows: dict[str, Row]) -> str:
    """A figure of one seed beside figures of several: its interval is narrower for knowing less."""
    alone = row["seeds"] == 1 and any(other["seeds"] > 1 for other in rows.values())
    if not alone:
        return told
    return f"{told[:-1]}; one seed)" if told.endswith(")") else f"{told} (one seed)"


def _from_reference(comparison: Comparison, rows: dict[str, Row], others: list[Arm]) -> str:
    column = comparison.headline.column
    told = []
    for arm in others[:LONGEST]:
        row = rows[arm.label]
        if row.get(f"{column}_difference") is not None:
            told.append(f"{arm.label} {_marked(signed(row, f'{column}_difference'), row, rows)}")
    return f"From exact attention, in {comparison.headline.label}: {listed(told)}." if told else ""


def _beside_floors(comparison: Comparison, rows: dict[str, Row]) -> list[str]:
    """Says so where a model is not better than what needs no model, or cannot be told apart from it."""
    column, lower = comparison.headline.column, comparison.headline.lower_is_better
    floors = [r for r in comparison.of_set(comparison.main_set, kind="floor") if r.get(column) is not None]
    floors = [row for row in floors if row["method"] in ("unigram", "own composition", "flanks")] or [
        row for row in floors if row["method"] != "untrained"
    ]
    if not floors:
        return []
    best = (min if lower else max)(floors, key=lambda row: row[column])
    found: dict[str, list[str]] = {"worse": [], "alike": [], "better": []}
    for arm in comparison.arms:
        row = rows.get(arm.label, {})
        if row.get(column) is not None:
            found[_against_floor(comparison, arm, row, best)].append(arm.label)
    if not found["worse"] and not found["alike"]:
        return []
    floor = f"\u201c{best['method']}\u201d ({_value({column: best[column]}, column)}), a floor that needs no model"
    if not found["better"]:
        told = f"No model is better here than {floor}"
    elif found["worse"]:
        told = f"{listed(found['worse'])} {'is' if len(found['worse']) == 1 else 'are'} not better here than {floor}"
    else:
        return [f"{listed(found['alike'])} cannot be told apart here from {floor}."]
    return [f"{told}; {listed(found['alike'])} cannot be told apart from it." if found["alike"] else f"{told}."]


def _against_floor(comparison: Comparison, arm: Arm, row: Row, floor: Row) -> str:
    """better, worse or alike: by the interval of the mean over seeds of the paired differences, where runs have them;
    else by whether the method's own interval holds the floor's figure; without one, by the figures."""
    headline, column = comparison.headline, comparison.headline.column
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    difference = row[column] - floor[column]
    ends = (difference, difference) if low is None or high is None else (low - floor[column], high - floor[column])
    if headline.is_perplexity:
        paired = [_paired_with(run, comparison.main_set, floor["method"]) for run in arm.runs]
        known = [one for one in paired if one is not None]
        if len(known) == len(paired):
            _, *ends = mean_of_seeds(*zip(*known, strict=True))
    if ends[0] <= 0 <= ends[1]:
        return "alike" if ends[0] < ends[1] else "worse"
    return "better" if (ends[1] < 0) == headline.lower_is_better else "worse"


def _paired_with(run: Run, name: str, floor: str) -> tuple[float, float] | None:
    """Middle and half of the run's own interval of its model's figure minus the floor's, paired over proteins."""
    rows = run.metrics["sets"].get(name, {}).get("rows", [])
    figures = next((row["figures"] for row in rows if row["name"] == floor), {})
    low, high = (figures.get(f"trained_minus_this_{end}") for end in ("low", "high"))
    return None if low is None or high is None else ((low + high) / 2, (high - low) / 2)


def amount(number: float | int) -> str:
    """5.0 M, 20 k, 300"""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {letter}"
    return f"{number:.0f}"


def percent(row: Row) -> str:
    """The share of the gap, with its interval."""
    share, low, high = (_rounded(row[key]) for key in ("share", "share_low", "share_high"))
    return f"{share} % ({low} to {high} %)"


def _rounded(share: float | int) -> str:
    text = f"{100 * share:.0f}" if abs(share) < 1e6 else f"{'-' * (share < 0)}\u221e"
    return ("0" if text == "-0" else text).replace("-", MINUS)


def signed(row: Row, column: str) -> str:
    """A difference, with its interval where there is one; of accuracy in percentage points."""
    scale, digits, unit = (100, 2, " points") if "accuracy" in column else (1, 4 if abs(row[column]) < 0.05 else 3, "")
    ends = [row[column], row.get(f"{column}_low"), row.get(f"{column}_high")]
    told, *bounds = [f"{scale * end:+.{digits}f}" for end in ends if end is not None]
    return (f"{told} ({' to '.join(bounds)})" if len(bounds) == 2 else told).replace("-", MINUS) + unit


def _value(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        return "an unknown value"
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    scale, unit = (100, " %") if column.startswith("accuracy") else (1, "")
    digits = 1 if unit else 2 if column.startswith("perplexity") else 3
    told, *bounds = [f"{scale * end:.{digits}f}".replace("-", MINUS) for end in (value, low, high) if end is not None]
    return f"{told} ({' to '.join(bounds)}){unit}" if len(bounds) == 2 else f"{told}{unit}"

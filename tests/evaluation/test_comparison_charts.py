"""Where points stand whose place along an axis has a name: none lies upon another."""

from collections.abc import Sequence

import pytest

from protformer.evaluation.comparison.charts import Panel, Rule, Series, rule_sides, side_by_side


def series(*x: str | int) -> Series:
    return Series(label="a", method="exact", x=list(x), y=[0.5] * len(x))


def test_points_of_one_place_stand_beside_one_another():
    names, places = side_by_side([series("near", "far"), series("near", "far"), series("near")])
    assert names == ["near", "far"]
    (first, *_), (second, *_), (third,) = places
    assert first < second < third
    assert second == pytest.approx(0)
    assert (places[0][1] + places[1][1]) / 2 == pytest.approx(1)  # in the middle of their place, though fewer
    assert all(abs(at - round(at)) < 0.5 for one in places for at in one)


def test_a_place_of_one_point_has_it_in_its_middle_and_many_of_one_method_are_spread():
    names, places = side_by_side([series("exact"), series(*["untrained"] * 5)])
    assert names == ["exact", "untrained"]
    assert places[0] == [0]
    assert places[1] == sorted(set(places[1]))
    assert sum(places[1]) / 5 == pytest.approx(1)


def test_numbers_stay_where_they_are():
    assert side_by_side([series(1, 10), series(2)]) == ([], [[1, 10], [2]])


def test_names_of_floors_stand_apart_and_where_no_curve_runs_through_them():
    def sides(*values: float, y: Sequence[float] = (18.5, 18.5), x: Sequence[str | int] = (1, 9)) -> Sequence[str]:
        rules = [Rule(label="floor", value=value) for value in values]
        curve = Series(label="a", method="exact", x=list(x), y=list(y))
        return rule_sides(Panel(title="", series=[curve], x_label="", rules=rules, y_range=(17.0, 18.0)))

    assert sides() == []
    assert sides(17.8, 17.1, 17.5) == ["right"] * 3
    assert sides(17.5, 17.48, 17.0) == ["left", "right", "right"]
    assert sides(17.9, 17.5, 17.1, y=(18.0, 17.0)) == ["right", "right", "left"]  # a curve that comes down
    assert sides(17.9, 17.5, 17.1, y=(17.0, 18.0)) == ["left", "right", "right"]
    assert sides(17.1, y=(18.0, 17.0), x=("near", "far")) == ["right"]
    bare = Series(label="b", method="exact", x=[1, 9], y=[None, None])  # nothing of it is known
    drawn = series(1, 9)
    panel = Panel(title="", series=[bare, drawn], x_label="", rules=[Rule(label="floor", value=0.5)])
    assert rule_sides(panel) == ["right"]

"""Scales, labels and curves, with coordinates worked out by hand."""

import json
import re

import hypothesis.strategies as st
import pytest
from hypothesis import given

from vla_rl.report.charts import MAX_POINTS, Curve, format_value, make_chart, slug


def numbers(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", path)]


def test_points_land_where_the_axes_say() -> None:
    # x runs from 0 to 10, y was given as 0 to 1: x = 5 is 500, y = 0.25 is 1000 * (1 - 0.25) = 750.
    chart = make_chart("t", [Curve("c", [0, 5, 10], [0.0, 0.25, 1.0])], chart_id="c", y_range=(0.0, 1.0), percent=True)
    assert numbers(chart.drawings[0].line) == [(0, 1000), (500, 750), (1000, 0)]
    assert [(tick.at, tick.label) for tick in chart.y_ticks] == [
        (pytest.approx(20 * i), f"{20 * i}%") for i in range(6)
    ]  # fmt: skip
    assert [tick.label for tick in chart.x_ticks] == ["0", "2", "4", "6", "8", "10"]


def test_a_missing_value_breaks_the_line_and_is_counted() -> None:
    chart = make_chart("t", [Curve("c", [0, 1, 2, 3], [1.0, None, 2.0, 3.0])], chart_id="c")
    drawing = chart.drawings[0]
    assert drawing.points == 3 and drawing.line.count("M") == 2
    assert json.loads(drawing.data_y) == [1.0, None, 2.0, 3.0]
    assert "1 value not finite" in chart.note


def test_bands_go_along_the_top_and_back_along_the_bottom() -> None:
    curve = Curve("c", [0, 10], [0.5, 0.5], low=[0.25, 0.0], high=[0.75, 1.0])
    band = make_chart("t", [curve], chart_id="c", y_range=(0.0, 1.0)).drawings[0].band
    assert numbers(band) == [(0, 250), (1000, 0), (1000, 1000), (0, 750)]


def test_whiskers_are_one_upright_line_each() -> None:
    curve = Curve("c", [0, 10], [0.5, 0.5], low=[0.25, 0.0], high=[0.75, 1.0], kind="whiskers")
    band = make_chart("t", [curve], chart_id="c", y_range=(0.0, 1.0)).drawings[0].band
    assert band == "M0.00 750.00L0.00 250.00M1000.00 1000.00L1000.00 0.00"


def test_a_wide_span_gets_a_logarithmic_scale() -> None:
    # From 1 to 10000 in decades: 100 lies in the middle.
    chart = make_chart("t", [Curve("c", [0, 1, 2], [1.0, 100.0, 10000.0])], chart_id="c")
    assert "Log scale" in chart.note
    assert [y for _, y in numbers(chart.drawings[0].line)] == [1000, 500, 0]
    assert "Log scale" not in make_chart("t", [Curve("c", [0, 1], [-1.0, 1e4])], chart_id="c").note


def test_thinning_keeps_the_ends_and_every_peak() -> None:
    values = [0.0] * 100_000
    values[54_321] = 7.0
    drawing = make_chart("t", [Curve("c", range(100_000), values)], chart_id="c").drawings[0]
    xs, ys = json.loads(drawing.data_x), json.loads(drawing.data_y)
    assert len(xs) <= MAX_POINTS + 2 and drawing.points == len(xs)
    assert xs[0] == 0 and xs[-1] == 99_999 and ys[xs.index(54_321)] == 7.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (0.12345, "0.1235"),
        (1234.5, "1,234"),
        (-2.5, "-2.5"),
        (1.5e-5, "1.5e-5"),
        (3e7, "3e7"),
        (None, "none"),
        (float("nan"), "not finite"),
        (float("-inf"), "not finite"),
    ],
)
def test_values_are_written_briefly(value: float | None, text: str) -> None:
    assert format_value(value) == text


def test_narrow_ranges_keep_their_labels_apart() -> None:
    chart = make_chart("t", [Curve("c", [0, 1], [0.000990, 0.001])], chart_id="c")
    labels = [tick.label for tick in chart.y_ticks]
    assert len(set(labels)) == len(labels)
    assert slug("rl", "policy/KL <b>") == "rl-policy-kl-b"


finite = st.floats(-1e12, 1e12)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.none() | finite), min_size=1, max_size=30, unique_by=lambda pair: pair[0]))
def test_any_curve_can_be_drawn_inside_its_frame(points: list[tuple[int, float | None]]) -> None:
    points.sort(key=lambda pair: pair[0])
    chart = make_chart("t", [Curve("c", [x for x, _ in points], [y for _, y in points])], chart_id="c")
    drawn = numbers(chart.drawings[0].line)
    assert len(drawn) == chart.drawings[0].points == sum(y is not None for _, y in points)
    assert all(-0.01 <= x <= 1000.01 and -0.01 <= y <= 1000.01 for x, y in drawn)
    assert len(chart.y_ticks) >= 2 and all(-0.01 <= tick.at <= 100.01 for tick in (*chart.x_ticks, *chart.y_ticks))
    labels = [tick.label for tick in chart.y_ticks]
    assert len(set(labels)) == len(labels)

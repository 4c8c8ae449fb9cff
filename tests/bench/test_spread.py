"""Medians, ranges, ratios and verdicts."""

import pytest

from vla_rl.bench.spread import Spread, Target, ratios


def test_a_spread_is_median_and_range() -> None:
    spread = Spread.of([4.0, 1.0, 2.0, 9.0])
    assert spread == Spread(median=3.0, low=1.0, high=9.0, repeats=4)
    assert spread.text() == "3.00 (1.00-9.00)"
    assert Spread.of([123.4]).text() == "123" and Spread.of([12.34, 12.36]).text(2) == "12.35 (12.34-12.36)"
    with pytest.raises(ValueError, match="no measurements"):
        Spread.of([])


def test_ratios_pair_the_repeats_that_ran_side_by_side() -> None:
    """Half the speed in the second repeat, of both: the ratio stays."""
    assert ratios([100.0, 50.0], [4.0, 2.0]) == [25.0, 25.0]
    with pytest.raises(ValueError):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("relation", "values", "verdict"),
    [
        (">=", [24.0, 25.0, 26.0], "met"),
        (">=", [24.0, 24.9, 26.0], "NOT MET"),
        ("<=", [25.0], "met"),
        ("<", [25.0], "NOT MET"),
        ("<", [24.9], "met"),
        (">=", [], "not measured"),
    ],
)
def test_a_target_is_judged_by_the_median(relation, values: list[float], verdict: str) -> None:  # type: ignore[no-untyped-def]
    target = Target("speed", relation, 25.0, Spread.of(values) if values else None)
    assert target.verdict == verdict and target.to_dict()["met"] is {"met": True, "NOT MET": False}.get(verdict)

"""How episodes through the ROS graph and in the simulator are compared; the drives themselves are in tests/robot."""

import pytest

from vla_rl.bench.output import markdown
from vla_rl.bench.rehearsal import Drive, Pair, ratios, table


def pair(simulator: float, graph: float, arrived: bool = True) -> Pair:
    return Pair(1, Drive(True, False, simulator, 10.0), Drive(arrived, not arrived, graph, 12.0))


def test_the_ratios_by_hand() -> None:
    # Of the first two: each 1.18 and 1, so the median is 1.09 and one is close. Means .15 and .159; differences .018 and 0,
    # standard deviation .018 / sqrt 2; half of the interval is 1.96 * .018 / sqrt 2 / sqrt 2 = .01764 m, of .15.
    found = ratios([pair(0.1, 0.118), pair(0.2, 0.2), pair(0.1, 0.9, arrived=False)])
    assert found == pytest.approx((1.09, 1, 2, 0.159 / 0.15, 0.14136 / 0.15, 0.17664 / 0.15))
    assert ratios([pair(0.1, 0.1)]) is None and ratios([]) is None


def test_the_table_counts_each_side_alone() -> None:
    text = markdown(table([pair(0.1, 0.118), pair(0.2, 0.2), pair(0.3, 0.9, arrived=False)]))
    assert "| simulator | 3/3 | 0 | 0.200 | 10.0 |" in text
    assert "| ROS 2 graph | 2/3 | 1 | 0.159 | 12.0 |" in text
    assert "median 1.090, wanted within 10%: met; 1 of 2 episodes within it; of the means 1.060 (0.942 to 1.178)" in text

"""How episodes through the ROS graph and in the simulator are compared; the drives themselves are in tests/robot."""

import pytest

from vla_rl.bench.output import markdown
from vla_rl.bench.rehearsal import Drive, Pair, ratios, table


def pair(simulator: float, graph: float, arrived: bool = True) -> Pair:
    return Pair(1, Drive(True, False, simulator, 10.0), Drive(arrived, not arrived, graph, 12.0))


def test_the_ratios_by_hand() -> None:
    # Of the first two: each 1.2 and 1, so the median is 1.1 and one is close. Means .15 and .16; differences .02 and 0, standard
    # deviation .02 / sqrt 2; half of the interval is 1.96 * .02 / sqrt 2 / sqrt 2 = .0196 m, of .15.
    found = ratios([pair(0.1, 0.12), pair(0.2, 0.2), pair(0.1, 0.9, arrived=False)])
    assert found == pytest.approx((1.1, 1, 2, 0.16 / 0.15, 0.16 / 0.15 - 0.0196 / 0.15, 0.16 / 0.15 + 0.0196 / 0.15))
    assert ratios([pair(0.1, 0.1)]) is None and ratios([]) is None


def test_the_table_counts_each_side_alone() -> None:
    text = markdown(table([pair(0.1, 0.12), pair(0.2, 0.2), pair(0.3, 0.9, arrived=False)]))
    assert "| simulator | 3/3 | 0 | 0.200 | 10.0 |" in text
    assert "| ROS 2 graph | 2/3 | 1 | 0.160 | 12.0 |" in text
    assert "median 1.100, wanted within 10%: met; 1 of 2 episodes within it; of the means 1.067 (0.936 to 1.197)" in text

"""How episodes through the ROS graph and in the simulator are compared; the drives themselves are in tests/robot."""

import pytest

from vla_rl.bench.output import markdown
from vla_rl.bench.rehearsal import Drive, Pair, ratio, table


def pair(simulator: float, graph: float, arrived: bool = True) -> Pair:
    return Pair(1, Drive(True, False, simulator, 10.0), Drive(arrived, not arrived, graph, 12.0))


def test_the_ratio_by_hand() -> None:
    # Of the first two: means .15 and .16. Differences .02 and 0, standard deviation .02 / sqrt 2; half of the interval is
    # 1.96 * .02 / sqrt 2 / sqrt 2 = .0196 m, or .1307 of .15.
    found = ratio([pair(0.1, 0.12), pair(0.2, 0.2), pair(0.1, 0.9, arrived=False)])
    assert found == pytest.approx((0.16 / 0.15, 0.16 / 0.15 - 0.0196 / 0.15, 0.16 / 0.15 + 0.0196 / 0.15))
    assert ratio([pair(0.1, 0.1)]) is None and ratio([]) is None


def test_the_table_counts_each_side_alone() -> None:
    text = markdown(table([pair(0.1, 0.12), pair(0.2, 0.2), pair(0.3, 0.9, arrived=False)]))
    assert "| simulator | 3/3 | 0 | 0.200 | 10.0 |" in text
    assert "| ROS 2 graph | 2/3 | 1 | 0.160 | 12.0 |" in text
    assert "1.067 (0.936 to 1.197); wanted within 10%: met" in text

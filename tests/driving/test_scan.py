"""Raw ranges after REP-117, worked out by hand."""

import math

import numpy as np
import pytest

from vla_rl.driving.scan import Scan, empty_scan, read_scan, scan_problem
from vla_rl.driving.settings import DriveLimits, RobotSettings, ScannerLayout, ViewSettings

# Eight beams, 45 degrees apart, the first one backward: beam 4 looks forward, beam 6 to the left. Four sectors of two beams.
ROUND = RobotSettings(
    scanner=ScannerLayout(beams=8, angle_min=-math.pi, angle_increment=math.pi / 4, range_min=0.1, range_max=4.0),
    view=ViewSettings(sectors=4),
)
FAR = math.inf


def read(ranges: list[float], settings: RobotSettings = ROUND) -> Scan:
    scan = empty_scan(settings, 1)
    read_scan(settings.scanner, np.array([ranges], np.float32), np.zeros(1, np.int64), scan)
    return scan


def test_returns_become_points_in_base_link() -> None:
    # Beam 4 at angle 0: (2, 0). Beam 6 at 90 degrees: (0, 1). The scanner sits 0.1 m before base_link.
    mounted = ROUND.model_copy(update={"scanner": ROUND.scanner.model_copy(update={"x": 0.1})})
    scan = read([FAR, FAR, FAR, FAR, 2.0, FAR, 1.0, FAR], mounted)
    assert scan.points[0, 4] == pytest.approx([2.1, 0.0])
    assert scan.points[0, 6] == pytest.approx([0.1, 1.0])
    assert np.isnan(scan.points[0, [0, 1, 2, 3, 5, 7]]).all()


def test_a_turned_scanner_turns_its_points() -> None:
    turned = ROUND.model_copy(update={"scanner": ROUND.scanner.model_copy(update={"yaw": math.pi / 2})})
    assert read([FAR] * 4 + [2.0] + [FAR] * 3, turned).points[0, 4] == pytest.approx([0.0, 2.0])


def test_a_sector_holds_its_nearest_return() -> None:
    assert read([3.0, 2.0, FAR, FAR, 1.5, FAR, FAR, 0.5]).sectors[0].tolist() == [2.0, FAR, 1.5, 0.5]


def test_each_special_value_has_one_meaning() -> None:
    # 4.5 is beyond range_max: free. -inf: too near, a return at range_min. NaN, 0, 0.05 and -1 are failed measurements.
    scan = read([4.5, FAR, -FAR, FAR, math.nan, 0.0, 0.05, -1.0])
    assert scan.invalid[0] == 4 and scan.gap[0] == 4
    assert scan.sectors[0, 1] == pytest.approx(0.1) and scan.sectors[0, 0] == FAR
    assert scan.points[0, 2] == pytest.approx([0.0, -0.1], abs=1e-6)


def test_a_blind_sector_takes_the_nearer_of_its_neighbours() -> None:
    # Sector 1 (beams 2, 3) is blind between 3.0 and 1.0: it must look as near as the nearer one, never free.
    assert read([3.0, 3.0, math.nan, math.nan, 1.0, 1.0, FAR, FAR]).sectors[0].tolist() == [3.0, 1.0, 1.0, FAR]
    # Around the back: sector 3 lies between sector 2 (free) and sector 0.
    assert read([0.7, 3.0, FAR, FAR, FAR, FAR, math.nan, math.nan]).sectors[0, 3] == pytest.approx(0.7)


def test_runs_of_invalid_beams_go_around_the_back() -> None:
    assert read([math.nan, FAR, FAR, FAR, FAR, FAR, math.nan, math.nan]).gap[0] == 3
    assert read([math.nan] * 8).gap[0] == 8


@pytest.mark.parametrize("increment", [2 * math.pi / 360, 0.01745])
def test_a_full_turn_may_be_rounded(increment: float) -> None:
    """A driver says 0.01745 rad for 1 degree: 0.0012 rad short of a turn. 33 blind beams on either side of the seam are one gap
    of 66 degrees, and the settings allow 34."""
    settings = RobotSettings(scanner=ScannerLayout(beams=360, angle_min=-math.pi, angle_increment=increment))
    scan = read([math.nan] * 33 + [FAR] * 294 + [math.nan] * 33, settings)
    assert scan_problem(settings, scan, 0) == "the scan is blind over 66 degrees"


def test_a_blind_scan_is_a_problem() -> None:
    assert scan_problem(ROUND, read([1.0] * 8), 0) is None
    assert scan_problem(ROUND, read([1.0, math.nan] * 4), 0) == "4 of 8 beams of the scan are invalid"
    # Two neighbours of 45 degrees each are 90 degrees; the settings allow 0.6 rad = 34 degrees.
    assert scan_problem(ROUND, read([math.nan, math.nan] + [1.0] * 6), 0) == "the scan is blind over 90 degrees"


def test_another_number_of_beams_is_refused() -> None:
    with pytest.raises(ValueError, match="a scan of 3 beams, but the layout has 8"):
        read([1.0, 1.0, 1.0])


def test_impossible_scanners_are_refused() -> None:
    with pytest.raises(ValueError, match="more than a full turn"):
        ScannerLayout(beams=61)
    with pytest.raises(ValueError, match="not below range_max"):
        ScannerLayout(range_min=7.0)
    narrow = ScannerLayout(beams=30, angle_min=-math.pi / 2, angle_increment=math.pi / 30)
    with pytest.raises(ValueError, match=r"cannot guard driving backward; set limits.reverse=0"):
        RobotSettings(scanner=narrow)
    assert RobotSettings(scanner=narrow, limits=DriveLimits(reverse=0)).limits.reverse == 0

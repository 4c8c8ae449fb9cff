"""From the raw ranges of a LaserScan to points and sectors, after REP-117.

Legend: B rows, K beams, S sectors.

| range | means | becomes |
|---|---|---|
| in [range_min, range_max] | a return | a point |
| above range_max, +inf | nothing in sight | free |
| -inf | too near to measure | a point at range_min |
| NaN, 0 or anything else below range_min | a failed measurement | invalid |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from vla_rl.driving.compiled import compiled
from vla_rl.driving.settings import RobotSettings, ScannerLayout

INVALID, FREE, RETURN = 0, 1, 2
"""What a beam can be."""


@dataclass
class Scan:
    """Scans of B rows as everything behind the scanner's driver uses them."""

    points: Float64[np.ndarray, "B K 2"]
    """Of returns, in base_link, m; NaN where the beam is free or invalid."""
    sectors: Float64[np.ndarray, "B S"]
    """Nearest return of each sector, m from the scanner; +inf where it is free. Sector 0 begins at the first beam. A
    sector of invalid beams takes the nearer of its two valid neighbours."""
    invalid: Int64[np.ndarray, "B"]
    """Number of invalid beams."""
    gap: Int64[np.ndarray, "B"]
    """Longest run of neighbouring invalid beams."""


def empty_scan(settings: RobotSettings, rows: int) -> Scan:
    """Room for `read_scan`."""
    beams, sectors = settings.scanner.beams, settings.view.sectors
    return Scan(
        points=np.full((rows, beams, 2), np.nan),
        sectors=np.full((rows, sectors), np.inf),
        invalid=np.zeros(rows, np.int64),
        gap=np.zeros(rows, np.int64),
    )


def read_scan(layout: ScannerLayout, ranges: Float32[np.ndarray, "B K"], rows: Int64[np.ndarray, "R"], scan: Scan) -> None:
    """Fill `scan` in the rows named from ranges as the driver sent them, m.

    Raises `ValueError` for another number of beams than the layout has.
    """
    if ranges.shape[1] != layout.beams:
        raise ValueError(
            f"a scan of {ranges.shape[1]} beams, but the layout has {layout.beams}; give the node the scanner it has"
        )
    around = abs(layout.field_of_view - 2 * math.pi) < 0.5 * layout.angle_increment
    numbers = (layout.angle_min, layout.angle_increment, layout.range_min, layout.range_max, layout.x, layout.y, layout.yaw)
    _read(numbers, around, ranges, rows, scan.points, scan.sectors, scan.invalid, scan.gap)


def scan_problem(settings: RobotSettings, scan: Scan, row: int) -> str | None:
    """Why a scan must not be driven by, or None."""
    beams, safety = settings.scanner.beams, settings.safety
    if scan.invalid[row] > safety.invalid_share * beams:
        return f"{scan.invalid[row]} of {beams} beams of the scan are invalid"
    width = scan.gap[row] * settings.scanner.angle_increment
    if width > safety.invalid_gap:
        return f"the scan is blind over {math.degrees(width):.0f} degrees"
    return None


@compiled
def _kind(value, range_min, range_max):  # type: ignore[no-untyped-def]
    if np.isnan(value):
        return INVALID
    if value > range_max:
        return FREE
    if value >= range_min or value == -np.inf:
        return RETURN
    return INVALID


@compiled
def _read(numbers, around, ranges, rows, points, sectors, invalid, gap):  # type: ignore[no-untyped-def]
    angle_min, increment, range_min, range_max, mount_x, mount_y, yaw = numbers
    beams, count = ranges.shape[1], sectors.shape[1]
    for row in rows:
        invalid[row] = 0
        sectors[row] = np.nan
        for beam in range(beams):
            value = float(ranges[row, beam])
            kind = _kind(value, range_min, range_max)
            points[row, beam, 0] = points[row, beam, 1] = np.nan
            if kind == INVALID:
                invalid[row] += 1
                continue
            nearest = np.inf
            if kind == RETURN:
                nearest = max(value, range_min)
                angle = angle_min + beam * increment + yaw
                points[row, beam, 0] = mount_x + nearest * math.cos(angle)
                points[row, beam, 1] = mount_y + nearest * math.sin(angle)
            if count > 0:
                sector = beam * count // beams
                if not nearest >= sectors[row, sector]:
                    sectors[row, sector] = nearest
        gap[row] = _longest_gap(ranges[row], range_min, range_max, around)
        if invalid[row] > 0 and count > 0:
            _fill(sectors[row], around)


@compiled
def _longest_gap(ranges, range_min, range_max, around):  # type: ignore[no-untyped-def]
    """Of neighbouring invalid beams; in a full turn the last beam is the first one's neighbour."""
    beams = len(ranges)
    longest, run = 0, 0
    for position in range(2 * beams if around else beams):
        if _kind(float(ranges[position % beams]), range_min, range_max) == INVALID:
            run = min(run + 1, beams)
            longest = max(longest, run)
        else:
            run = 0
            if position >= beams:
                break
    return longest


@compiled
def _fill(sectors, around):  # type: ignore[no-untyped-def]
    count = len(sectors)
    known = sectors.copy()
    for sector in range(count):
        if not np.isnan(known[sector]):
            continue
        nearest = np.inf
        for direction in (-1, 1):
            for step in range(1, count):
                neighbour = sector + direction * step
                if not around and not 0 <= neighbour < count:
                    break
                neighbour %= count
                if not np.isnan(known[neighbour]):
                    nearest = min(nearest, known[neighbour])
                    break
        sectors[sector] = nearest

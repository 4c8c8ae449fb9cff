"""Curves as numbers that a template can draw: SVG coordinates in a 1000 x 1000 box, and axis labels in percent.

The box is stretched to whatever place the page has, with strokes and dots that keep their width; the labels are text of
the page beside it. So a chart is readable at every width, without a script and without a picture for each theme.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

BOX = 1000.0
MAX_POINTS = 2000
DOTS_UP_TO = 60
"""Curves with at most so many points show each of them."""


@dataclass(frozen=True)
class Curve:
    """One line (and band) of a chart; values are None where there is no finite number."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    phase: str = ""
    key: str = ""
    style: str = "c1"
    """Class of its colour."""
    kind: str = "line"
    """line | whiskers (points with intervals, joined by a thin line) | stacked (the band alone)."""


@dataclass(frozen=True)
class Tick:
    at: float
    """Percent of the axis."""
    label: str


@dataclass(frozen=True)
class Drawing:
    """A curve in the coordinates of the box."""

    id: str
    curve: Curve
    line: str
    dots: str
    band: str
    points: int
    """Finite points that are drawn."""
    data_x: str
    data_y: str


@dataclass(frozen=True)
class Chart:
    id: str
    title: str
    unit: str
    x_label: str
    drawings: list[Drawing]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_range: tuple[float, float]
    note: str = ""
    latest: str = ""
    percent: bool = False
    summary: str = ""
    group: str = ""


@dataclass
class Axis:
    """A linear or logarithmic map from values to [0, 1]."""

    low: float
    high: float
    log: bool = False
    ticks: list[float] = field(default_factory=list)

    def place(self, value: float) -> float:
        if self.log:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)


def make_chart(
    title: str,
    curves: Sequence[Curve],
    *,
    chart_id: str,
    unit: str = "",
    x_label: str = "step",
    y_range: tuple[float, float] | None = None,
    percent: bool = False,
    note: str = "",
    group: str = "",
) -> Chart:
    """Lay a chart out. The scale is logarithmic where positive values span a factor above 200."""
    curves = [_thin(curve) for curve in curves]
    xs = [x for curve in curves for x in curve.x]
    x_axis = _x_axis(min(xs, default=0.0), max(xs, default=1.0))
    values = [v for c in curves for v in (*c.y, *(c.low or ()), *(c.high or ())) if v is not None]
    y_axis = Axis(*y_range, ticks=_nice_ticks(*y_range)) if y_range else _y_axis(values)
    drawings = [_draw(curve, f"curve-{chart_id}" + (f"-{i}" if i else ""), x_axis, y_axis) for i, curve in enumerate(curves)]
    lost = sum(value is None for curve in curves for value in curve.y)
    notes = [
        note,
        f"{lost} value{'s' if lost > 1 else ''} not finite, left out." if lost else "",
        "Log scale." if y_axis.log else "",
    ]
    first, last = _ends(curves)
    return Chart(
        id=f"chart-{chart_id}",
        title=title,
        unit=unit,
        x_label=x_label,
        drawings=drawings,
        x_ticks=[Tick(100 * x_axis.place(v), f"{v:,.0f}") for v in x_axis.ticks],
        y_ticks=[Tick(100 * y_axis.place(v), text) for v, text in zip(y_axis.ticks, _tick_labels(y_axis, percent), strict=True)],
        x_range=(x_axis.low, x_axis.high),
        note=" ".join(filter(None, notes)),
        latest=format_value(last, percent),
        percent=percent,
        group=group,
        summary=f"from {format_value(first, percent)} to {format_value(last, percent)}",
    )


def slug(*words: str) -> str:
    return "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words if word)


def format_value(value: float | None, percent: bool = False) -> str:
    """Four significant digits, or a percentage with three."""
    if value is None:
        return "none"
    if not math.isfinite(value):
        return "not finite"
    if percent:
        return format_value(float(f"{100 * value:.3g}")) + "%"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _tick_labels(axis: Axis, percent: bool) -> list[str]:
    """Labels with as many decimals as the step between ticks needs, the same for all of an axis."""
    scale = 100.0 if percent else 1.0
    step = scale * (axis.ticks[1] - axis.ticks[0])
    largest = scale * max(abs(tick) for tick in axis.ticks)
    if axis.log:
        return [format_value(tick, percent) for tick in axis.ticks]
    if step < 1e-4 or largest >= 1e6:
        exponent = math.floor(math.log10(largest))
        decimals = max(0, exponent - math.floor(math.log10(step) + 1e-9))
        return [f"{scale * tick / 10.0**exponent:.{decimals}f}e{exponent}" if tick else "0" for tick in axis.ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{scale * tick + 0.0:,.{decimals}f}" + ("%" if percent else "") for tick in axis.ticks]


def _ends(curves: Sequence[Curve]) -> tuple[float | None, float | None]:
    finite = [v for v in (curves[0].y if curves else ()) if v is not None]
    return (finite[0], finite[-1]) if finite else (None, None)


def _thin(curve: Curve) -> Curve:
    """At most MAX_POINTS points: of each stretch the lowest and the highest, so that no peak is lost."""
    if len(curve.x) <= MAX_POINTS or curve.low is not None:
        return curve
    stretch = math.ceil(2 * len(curve.x) / MAX_POINTS)
    chosen = {0, len(curve.x) - 1}
    for start in range(0, len(curve.x), stretch):
        finite = [i for i in range(start, min(start + stretch, len(curve.x))) if curve.y[i] is not None]
        if finite:
            chosen |= {min(finite, key=lambda i: curve.y[i] or 0.0), max(finite, key=lambda i: curve.y[i] or 0.0)}
    order = sorted(chosen)
    return Curve(
        curve.name, [curve.x[i] for i in order], [curve.y[i] for i in order],
        phase=curve.phase, key=curve.key, style=curve.style, kind=curve.kind,
    )  # fmt: skip


def _x_axis(low: float, high: float) -> Axis:
    if low == high:
        low, high = low - 1, high + 1
    ticks = [tick for tick in _nice_ticks(low, high, 6) if tick == round(tick)]
    return Axis(low, high, ticks=ticks)


def _y_axis(values: Sequence[float]) -> Axis:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low > 0 and high / low > 200:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        every = max(1, math.ceil((last - first) / 5))
        return Axis(10.0**first, 10.0**last, log=True, ticks=[10.0**e for e in range(first, last + 1, every)])
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(high) * 0.5 or 1.0
        low, high = low - margin, high + margin
    if 0 < low < 0.35 * high:
        low = 0.0
    ticks = _nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    # Out to the next tick on both sides, so that a curve never touches the frame.
    bottom, top = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
    return Axis(bottom, top, ticks=[bottom + step * i for i in range(round((top - bottom) / step) + 1)])


def _nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten inside [low, high]; never fewer than two."""
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    ticks = [round(step * i, 12) if abs(step) > 1e-9 else step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return ticks if len(ticks) > 1 else [low, high]


def _draw(curve: Curve, identity: str, x_axis: Axis, y_axis: Axis) -> Drawing:
    def at(x: float, y: float) -> str:
        inside = min(max(y_axis.place(y), -0.05), 1.05)
        return f"{BOX * x_axis.place(x):.2f} {BOX * (1 - inside):.2f}"

    line, dots, pen_down = [], [], False
    for x, y in zip(curve.x, curve.y, strict=True):
        if y is not None:
            line.append("L" + at(x, y) if pen_down else f"M{at(x, y)}h0")
            dots.append(f"M{at(x, y)}h0")
        pen_down = y is not None
    band = ""
    if curve.low is not None and curve.high is not None and curve.x:
        if curve.kind == "whiskers":
            band = "".join(f"M{at(x, a)}L{at(x, b)}" for x, a, b in zip(curve.x, curve.low, curve.high, strict=True))
        else:
            there = [at(x, high) for x, high in zip(curve.x, curve.high, strict=True)]
            back = [at(x, low) for x, low in zip(curve.x, curve.low, strict=True)][::-1]
            band = "M" + "L".join(there + back) + "Z"
    return Drawing(
        id=identity,
        curve=curve,
        line="".join(line),
        dots="".join(dots) if len(dots) <= DOTS_UP_TO else "",
        band=band,
        points=len(dots),
        data_x=json.dumps([float(f"{x:.6g}") for x in curve.x], separators=(",", ":")),
        data_y=json.dumps([None if y is None else float(f"{y:.6g}") for y in curve.y], separators=(",", ":")),
    )

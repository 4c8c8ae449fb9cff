"""Numbers in rows and columns as shades, laid out for a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vla_rl.report.charts import Tick


@dataclass(frozen=True)
class Cell:
    shade: float
    """In [0, 1]."""
    text: str
    """What the cell says in words."""


@dataclass(frozen=True)
class HeatMap:
    id: str
    title: str
    unit: str
    rows: list[tuple[str, list[Cell | None]]]
    """Label and cells of each; None where there is nothing."""
    columns: list[Tick]
    """Labels of some columns, at the middle of each."""
    x_label: str
    note: str = ""
    style: str = "c1"


def column_ticks(labels: Sequence[str], most: int = 8) -> list[Tick]:
    """At most `most` evenly spread labels of columns, the first one among them."""
    every = max(1, -(-len(labels) // most))
    return [Tick(100 * (i + 0.5) / len(labels), labels[i]) for i in range(0, len(labels), every)]

"""How much success changed from one evaluation to another: episode by episode where both ran the same ones."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla_rl.evaluate import wilson_interval

Evaluation = Mapping[str, Any]
"""The record of an evaluation: `total` with `successes` and `episodes`, and a list `episodes` with `spec` and `success`."""


@dataclass(frozen=True)
class Difference:
    """After - before, with its 95% interval; shares of the episodes."""

    change: float
    low: float
    high: float
    gained: int | None = None
    """Of the same episodes, how many succeed only after; None where the two ran different ones."""
    lost: int | None = None
    """How many succeed only before."""

    @property
    def points(self) -> str:
        """+12.0"""
        return f"{100 * self.change:+.1f}"

    @property
    def interval(self) -> str:
        """-1.5 to +25.1"""
        return f"{100 * self.low:+.1f} to {100 * self.high:+.1f}"

    @property
    def moved(self) -> str:
        """55 gained, 12 lost; empty where the two ran different episodes."""
        return "" if self.gained is None else f"{self.gained} gained, {self.lost} lost"


def difference(pairs: Sequence[tuple[Evaluation, Evaluation]]) -> Difference | None:
    """The difference of (before, after), pooled over the pairs, such as one of each seed; None where no episode was run.

    Where each pair ran the same episodes, the interval makes use of it: what both solve or both fail says nothing about the
    difference, and the more of that there is, the narrower it gets.
    """
    before, after = ([evaluation["total"] for evaluation in side] for side in (zip(*pairs, strict=True) if pairs else ((), ())))
    counts = [(sum(t["successes"] for t in totals), sum(t["episodes"] for t in totals)) for totals in (before, after)]
    if not counts[0][1] or not counts[1][1]:
        return None
    tables = [_table(*pair) for pair in pairs]
    if any(table is None for table in tables):
        return independent_difference(*counts)
    return paired_difference(*(sum(cells) for cells in zip(*(table for table in tables if table), strict=True)))


def independent_difference(before: tuple[int, int], after: tuple[int, int]) -> Difference:
    """Of two (successes, episodes) that have no episodes in common.

    Newcombe's hybrid score interval (Statistics in Medicine 17, 1998, p. 873, method 10), from the two Wilson intervals.
    """
    return _square_and_add(before, after, 0.0)


def paired_difference(both: int, gained: int, lost: int, neither: int) -> Difference:
    """Of the same episodes: how many succeed in both, only after, only before, and in neither.

    Newcombe's interval for paired proportions (Statistics in Medicine 17, 1998, p. 2635, method 10): the one of independent
    proportions with the correlation phi of the outcomes, whose numerator is corrected for continuity.
    """
    episodes = both + gained + lost + neither
    covariance = float(both * neither - gained * lost)
    if covariance > 0:
        covariance = max(covariance - episodes / 2, 0.0)
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    phi = covariance / math.sqrt(margins) if margins else 0.0
    found = _square_and_add((both + lost, episodes), (both + gained, episodes), phi)
    return Difference(found.change, found.low, found.high, gained, lost)


def _square_and_add(before: tuple[int, int], after: tuple[int, int], phi: float) -> Difference:
    (rate0, low0, high0), (rate1, low1, high1) = ((s / n, *wilson_interval(s, n)) for s, n in (before, after))
    change = rate1 - rate0
    below, above = (rate1 - low1, high0 - rate0), (high1 - rate1, rate0 - low0)
    # Rounding must not make a negative number of what is 0 by phi = 1.
    reach = [math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0)) for a, b in (below, above)]
    return Difference(change, change - reach[0], change + reach[1])


def _table(before: Evaluation, after: Evaluation) -> tuple[int, int, int, int] | None:
    """How many episodes succeed in both, only after, only before and in neither; None where the episodes differ."""
    outcomes = [_outcomes(evaluation) for evaluation in (before, after)]
    if outcomes[0] is None or outcomes[1] is None or outcomes[0].keys() != outcomes[1].keys():
        return None
    cells = Counter((outcomes[0][spec], outcomes[1][spec]) for spec in outcomes[0])
    return cells[True, True], cells[False, True], cells[True, False], cells[False, False]


def _outcomes(evaluation: Evaluation) -> dict[str, bool] | None:
    """Spec -> success; None unless the list is complete and each episode in it once."""
    episodes = evaluation.get("episodes") or []
    found = {
        json.dumps(e["spec"], sort_keys=True): e["success"]
        for e in episodes
        if "spec" in e and isinstance(e.get("success"), bool)
    }
    total = evaluation["total"]
    complete = len(found) == len(episodes) == total["episodes"] and sum(found.values()) == total["successes"]
    return found if complete else None

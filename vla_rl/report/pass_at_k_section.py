"""Pass@k: the chance that at least one of k sampled episodes succeeds, averaged over held-out states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vla_rl.evaluate import ks_up_to, pass_at_k
from vla_rl.report.charts import Chart, Curve, make_chart
from vla_rl.report.run_files import RunFiles


def estimates(records: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """k -> mean over all states of these records, and an approximate 95% interval from the spread between the states.

    k = 1, 2, 4, ... and the largest number of episodes that every state has; empty without states.
    """
    counts = [(int(s["successes"]), int(s["episodes"])) for record in records for s in record["states"]]
    if not counts:
        return {}
    most = min(episodes for _, episodes in counts)
    found = {}
    for k in ks_up_to(most):
        values = [pass_at_k(successes, episodes, k) for successes, episodes in counts]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
        half = 1.96 * math.sqrt(variance / len(values))
        found[k] = {"rate": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)}
    return found


def pass_at_k_chart(curves: Sequence[tuple[str, str, str, Mapping[int, Mapping[str, float]]]], chart_id: str) -> Chart:
    """Curves are (name, style, kind, estimates)."""
    return make_chart(
        "Pass@k",
        [
            Curve(name, list(points), [p["rate"] for p in points.values()], key=f"pass_at_k/{name}", style=style, kind=kind)
            for name, style, kind, points in curves
        ],
        chart_id=chart_id,
        unit="% of states",
        x_label="k",
        y_range=(0.0, 1.0),
        percent=True,
        note="How likely at least one of k sampled episodes of a held-out state is to succeed (unbiased estimator).",
    )


def run_chart(files: RunFiles) -> list[Chart]:
    """Before and after training; none where pass@k was not measured."""
    shown = [(name, style) for name, style in (("start", "c5"), ("final", "c4")) if name in files.pass_at_k]
    curves = [(name, style, "line", estimates([files.pass_at_k[name]])) for name, style in shown]
    return [pass_at_k_chart(curves, "pass-at-k")] if curves else []

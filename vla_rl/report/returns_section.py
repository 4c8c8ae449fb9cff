"""Mean returns of evaluations, for runs that are judged by them: a sentence, a curve, a table."""

from __future__ import annotations

from typing import Any

from vla_rl.report.charts import Chart, Curve, format_value, make_chart
from vla_rl.report.run_files import RunFiles
from vla_rl.report.titles import step_name

PHASE = "off_policy"


def returns(files: RunFiles) -> dict[str, Any] | None:
    """None where no evaluation has a return."""
    if not files.returns:
        return None
    rows = [_row(record) for record in files.returns]
    return {"sentence": _sentence(rows), "charts": _charts(files, rows), "rows": rows}


def _row(record: dict[str, Any]) -> dict[str, Any]:
    each = [e["return"] for e in record.get("episodes") or [] if isinstance(e, dict) and isinstance(e.get("return"), int | float)]
    bias = (record.get("q") or {}).get("bias")
    return {
        "name": record["name"],
        "step": record["step"],
        **{key: record["return"][key] for key in ("mean", "low", "high", "episodes")},
        "worst": min(each, default=None),
        "best": max(each, default=None),
        "steps": record.get("steps_mean"),
        "bias": bias,
    }


def _sentence(rows: list[dict[str, Any]]) -> str:
    first = next((row for row in rows if row["name"] == "start"), None)
    last = next((row for row in reversed(rows) if row["name"] == "final"), rows[-1])
    found = f"At {last['step']:,} control steps the mean return of {last['episodes']} episodes is {_with_interval(last)}"
    return f"{found}." if first is None or first is last else f"{found}; before training it was {_with_interval(first)}."


def _with_interval(row: dict[str, Any]) -> str:
    return f"{format_value(row['mean'])} ({format_value(row['low'])} to {format_value(row['high'])})"


def _charts(files: RunFiles, rows: list[dict[str, Any]]) -> list[Chart]:
    steps = [row["step"] for row in rows]
    curves = []
    training = files.get(PHASE, "rollout/return")
    if training is not None:
        curves.append(
            Curve(
                "training episodes (sampled actions)", training.steps, training.values, phase=PHASE, key=training.key, style="c1"
            )
        )
    columns = {key: [row[key] for row in rows] for key in ("mean", "low", "high")}
    curves.append(
        Curve("evaluations", steps, columns["mean"], columns["low"], columns["high"], PHASE, "return", "c4", "whiskers")
    )
    label = step_name(PHASE)
    charts = [make_chart("Return", curves, chart_id="return", x_label=label)]
    biased = [row for row in rows if row["bias"] is not None]
    if biased:
        curve = Curve("Q minus soft return", [r["step"] for r in biased], [r["bias"] for r in biased], key="q_bias", style="c3")
        charts.append(make_chart("Bias of Q", [curve], chart_id="q-bias", x_label=label))
    return charts

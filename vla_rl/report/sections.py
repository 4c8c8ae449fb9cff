"""The parts of the page, as plain values for its template: headline, curves, tasks, videos, timing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from vla_rl.evaluate import wilson_interval
from vla_rl.report.charts import Chart, Curve, make_chart, slug
from vla_rl.report.curriculum_section import PER_SOURCE
from vla_rl.report.differences import Difference, difference
from vla_rl.report.run_files import RunFiles, Series
from vla_rl.report.titles import GROUPS, phase_title, step_name, title_of

MAX_VIDEOS = 12
MAX_VIDEO_BYTES = 4 * 2**20
MAX_PAGE_VIDEO_BYTES = 24 * 2**20
SHOWN_ELSEWHERE = {"rollout/success", "rollout/successes", "rollout/episodes"}
PART_STYLES = {"simulation": "c1", "rendering": "c2", "inference": "c3", "learning": "c4", "other": "c5"}


def rate_of(count: Mapping[str, Any]) -> dict[str, Any]:
    """Successes, episodes, rate and the 95% Wilson interval of a record that has the two counts."""
    successes, episodes = int(count["successes"]), int(count["episodes"])
    low, high = wilson_interval(successes, episodes)
    rate = successes / episodes if episodes else None
    return {"successes": successes, "episodes": episodes, "rate": rate, "low": low, "high": high}


def first_and_last(files: RunFiles) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The evaluation before training and the latest one after it; None where there is none."""
    first = next((e for e in files.evaluations if e["name"] == "start"), None)
    later = [e for e in files.evaluations if e is not first and e["name"] != "start"]
    last = next((e for e in later if e["name"] == "final"), later[-1] if later else None)
    if first is None and len(later) > 1 and later[0] is not last:
        first = later[0]
    return first, last


def headline(files: RunFiles) -> dict[str, Any]:
    """The two rates, their difference, and one sentence that says in plain words what they mean."""
    first, last = first_and_last(files)
    start, final = (rate_of(e["total"]) if e else None for e in (first, last))
    result: dict[str, Any] = {"start": start, "final": final, "first": first, "last": last, "change": None, "caveat": ""}
    if start is None and final is None:
        sentence = "No evaluation has finished yet, so there is no success rate to report."
    elif final is None or last is None:
        sentence = f"Before training, the policy solved {_of(start)}. It has not been evaluated after training yet."
    elif start is None or first is None:
        sentence = (
            f"The policy solved {_of(final)} at {_when(last)}. There is no evaluation from before training to compare with."
        )
    elif start["rate"] is None or final["rate"] is None:
        sentence = "An evaluation had no episodes, so there is nothing to compare."
    else:
        change = difference([(first, last)])
        assert change is not None
        result["change"] = change
        sentence = (
            f"At {_when(first)} the policy solved {_of(start)}; at {_when(last)} it solved {_of(final)}. {_verdict(change)}"
        )
        result["caveat"] = _caveat(first, last)
    return result | {"sentence": sentence}


def _of(rate: Mapping[str, Any] | None) -> str:
    assert rate is not None
    share = "" if rate["rate"] is None else f" ({100 * rate['rate']:.1f}%)"
    return f"{rate['successes']} of {rate['episodes']} episodes{share}"


def _when(evaluation: Mapping[str, Any]) -> str:
    if evaluation["name"] in ("start", "final"):
        return {"start": "the start", "final": "the end"}[evaluation["name"]]
    return f"{step_name(evaluation.get('phase', 'ppo'))} {evaluation['step']}"


def _verdict(change: Difference) -> str:
    if change.low > 0:
        return "Chance alone does not explain the improvement: the 95% interval of the difference lies above zero."
    if change.high < 0:
        return "Success fell, and chance alone does not explain it: the 95% interval of the difference lies below zero."
    return "Chance alone could explain the difference: its 95% interval includes zero. More episodes would tell."


def _caveat(first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    def specs(evaluation: Mapping[str, Any]) -> list[str]:
        return sorted(str(episode.get("spec")) for episode in evaluation.get("episodes") or [])

    if first.get("mode") != last.get("mode"):
        return f"Mind: actions were {first.get('mode')} in the first evaluation and {last.get('mode')} in the last."
    if specs(first) != specs(last):
        return "Mind: the two evaluations ran different episodes."
    return ""


def success_charts(files: RunFiles) -> list[Chart]:
    """Success over the steps of each phase that has rollouts or evaluations, with 95% Wilson intervals."""
    rollout_phases = [phase for phase in files.series if _rollout_counts(files, phase)]
    default = rollout_phases[0] if rollout_phases else next(reversed(files.series), "rl")
    by_phase: dict[str, list[dict[str, Any]]] = {phase: [] for phase in rollout_phases}
    for evaluation in files.evaluations:
        by_phase.setdefault(evaluation.get("phase") or default, []).append(evaluation)
    charts = []
    for phase, evaluations in by_phase.items():
        curves = [*_rollout_curve(files, phase), *_evaluation_curves(phase, evaluations)]
        charts.append(
            make_chart(
                "Success" if len(by_phase) == 1 else f"Success, {phase_title(phase)}",
                curves,
                chart_id=slug("success", phase),
                unit="% of episodes",
                x_label=step_name(phase),
                y_range=(0.0, 1.0),
                percent=True,
            )
        )
    return charts


def _rollout_counts(files: RunFiles, phase: str) -> list[tuple[int, int, int]]:
    """(step, successes, episodes) of each round."""
    episodes = files.get(phase, "rollout/episodes")
    successes, rates = files.get(phase, "rollout/successes"), files.get(phase, "rollout/success")
    if episodes is None or (successes is None and rates is None):
        return []
    total = dict(zip(episodes.steps, episodes.values, strict=True))
    source = successes or rates
    assert source is not None
    counts = []
    for step, value in zip(source.steps, source.values, strict=True):
        number = total.get(step)
        if value is not None and number:
            count = round(value if successes else value * number)
            counts.append((step, min(max(count, 0), int(number)), int(number)))
    return counts


def _rollout_curve(files: RunFiles, phase: str) -> list[Curve]:
    counts = _rollout_counts(files, phase)
    if not counts:
        return []
    rates = [rate_of({"successes": k, "episodes": n}) for _, k, n in counts]
    return [
        Curve(
            "rollouts (training episodes, sampled actions)",
            [step for step, _, _ in counts],
            [r["rate"] for r in rates],
            [r["low"] for r in rates],
            [r["high"] for r in rates],
            phase,
            "rollout/success",
            "c1",
        )
    ]


def _evaluation_curves(phase: str, evaluations: Sequence[Mapping[str, Any]]) -> list[Curve]:
    curves = []
    modes = sorted({str(e.get("mode") or "") for e in evaluations})
    for mode, style in zip(modes, ("c4", "c3", "c2", "c5"), strict=False):
        chosen = [e for e in evaluations if str(e.get("mode") or "") == mode]
        rates = [rate_of(e["total"]) for e in chosen]
        kept = [(e["step"], r) for e, r in zip(chosen, rates, strict=True) if r["rate"] is not None]
        curves.append(
            Curve(
                f"evaluations ({mode} actions)" if mode else "evaluations",
                [step for step, _ in kept],
                [r["rate"] for _, r in kept],
                [r["low"] for _, r in kept],
                [r["high"] for _, r in kept],
                phase,
                slug("evaluation", mode),
                style,
                "whiskers",
            )
        )
    return curves


def metric_charts(files: RunFiles, phase: str) -> list[Chart]:
    """Every other metric of a phase as a small chart, in groups by what stands before the slash."""
    groups: dict[str, list[Chart]] = {}
    for key, series in files.series[phase].items():
        prefix = key.rpartition("/")[0]
        elsewhere = key.startswith(PER_SOURCE) or (key in SHOWN_ELSEWHERE and _rollout_counts(files, phase))
        if prefix != "time" and not elsewhere:
            groups.setdefault(prefix, []).append(_metric_chart(series, GROUPS.get(prefix, prefix)))
    used = list(GROUPS)
    order = sorted(groups, key=lambda prefix: (prefix != "", used.index(prefix) if prefix in used else len(used), prefix))
    return [chart for prefix in order for chart in groups[prefix]]


def _metric_chart(series: Series, group: str) -> Chart:
    title = title_of(series.key)
    style = {"value": "c3", "speed": "c2", "rollout": "c4"}.get(series.key.partition("/")[0], "c1")
    return make_chart(
        title.text,
        [Curve(series.key, series.steps, series.values, phase=series.phase, key=series.key, style=style)],
        chart_id=slug(series.phase, series.key),
        unit=title.unit,
        x_label=step_name(series.phase),
        percent=title.percent,
        note=title.note,
        group=group,
    )


def task_rows(files: RunFiles) -> dict[str, Any]:
    """One row a suite (where there are several) and a task, with its rate in the first and in the last evaluation."""
    chosen = [e for e in first_and_last(files) if e is not None]
    rows: dict[tuple[str, Any], dict[str, Any]] = {}
    for column, evaluation in enumerate(chosen):
        suites = evaluation.get("suites") or []
        for record in [*(suites if len(suites) > 1 else []), *(evaluation.get("tasks") or [])]:
            key = (str(record.get("suite", "")), record.get("task_id"))
            row = rows.setdefault(key, {"instruction": "", "rates": [None] * len(chosen)})
            row["instruction"] = row["instruction"] or record.get("instruction", "")
            row["rates"][column] = rate_of(record)
    ordered = sorted(rows.items(), key=lambda item: (item[0][0], item[0][1] is not None, item[0][1] or 0))
    return {
        "columns": [e["name"] for e in chosen],
        "rows": [{"suite": suite, "task_id": task, **row} for (suite, task), row in ordered],
    }


def evaluation_rows(files: RunFiles) -> list[dict[str, Any]]:
    return [
        {"name": e["name"], "step": e["step"], "mode": e.get("mode"), "seconds": e.get("seconds"), **rate_of(e["total"])}
        for e in files.evaluations
    ]


def videos(files: RunFiles) -> dict[str, Any]:
    """The videos that the page embeds, successes and failures in turn, and how many are left out for its size."""
    cards: list[dict[str, Any]] = []
    seen: set[str] = set()
    left_out, size = 0, 0
    first, last = first_and_last(files)
    ordered = [e for e in (last, first) if e is not None]
    ordered += [e for e in reversed(files.evaluations) if e not in ordered]
    entries = [entry for evaluation in ordered for entry in _filmed(evaluation)]
    named = {entry["video"] for entry in entries}
    entries += [{"video": path, "evaluation": None} for path in files.videos if path not in named]
    for entry in entries:
        path = files.directory / entry["video"]
        if entry["video"] in seen or not path.resolve().is_relative_to(files.directory.resolve()) or not path.is_file():
            continue
        seen.add(entry["video"])
        bytes_ = path.stat().st_size
        if len(cards) == MAX_VIDEOS or bytes_ > MAX_VIDEO_BYTES or size + bytes_ > MAX_PAGE_VIDEO_BYTES:
            left_out += 1
            continue
        size += bytes_
        cards.append(entry | {"uri": "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()})
    return {"cards": cards, "left_out": left_out}


def _filmed(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    instructions = {(t.get("suite"), t.get("task_id")): t.get("instruction", "") for t in evaluation.get("tasks") or []}
    filmed = []
    for episode in evaluation.get("episodes") or []:
        if not isinstance(episode.get("video"), str):
            continue
        spec = episode.get("spec") or {}
        filmed.append(
            {
                "video": episode["video"],
                "evaluation": evaluation["name"],
                "success": bool(episode.get("success")),
                "steps": episode.get("steps"),
                "return": episode.get("return"),
                "instruction": instructions.get((spec.get("suite"), spec.get("task_id")), ""),
                "spec": describe_spec(spec) if spec else f"seed {episode.get('seed')}",
            }
        )
    good, bad = ([card for card in filmed if card["success"] is wanted] for wanted in (True, False))
    paired = [card for pair in zip(good, bad, strict=False) for card in pair]
    return paired + good[len(bad) :] + bad[len(good) :]


def describe_spec(spec: Mapping[str, Any]) -> str:
    state = spec.get("init_state_id")
    place = f"{spec.get('suite', 'unknown suite')} task {spec.get('task_id', '?')}"
    return f"{place}, " + (f"seed {spec.get('seed')}" if state is None else f"initial state {state}, seed {spec.get('seed')}")


def timing(files: RunFiles, phase: str) -> dict[str, Any] | None:
    """Seconds and shares by part, a chart of the seconds of each iteration, and mean speeds; None without time metrics."""
    parts = {key.removeprefix("time/"): series for key, series in files.series[phase].items() if key.startswith("time/")}
    totals = {name: sum(v for v in series.values if v is not None) for name, series in parts.items()}
    whole = sum(totals.values())
    if whole <= 0:
        return None
    names = sorted(totals, key=lambda name: (list(PART_STYLES).index(name) if name in PART_STYLES else 99, name))
    rows = [
        {
            "name": name,
            "style": PART_STYLES.get(name, "c5"),
            "seconds": totals[name],
            "share": totals[name] / whole,
            "each": totals[name] / max(1, len(parts[name].values)),
        }
        for name in names
    ]
    return {
        "phase": phase_title(phase),
        "step_name": step_name(phase),
        "rows": rows,
        "whole": whole,
        "chart": _time_chart(phase, names, parts),
        "speeds": _speeds(files, phase, parts),
    }


def _time_chart(phase: str, names: Sequence[str], parts: Mapping[str, Series]) -> Chart:
    steps = sorted({step for series in parts.values() for step in series.steps})
    below = [0.0] * len(steps)
    curves = []
    for name in names:
        at = dict(zip(parts[name].steps, parts[name].values, strict=True))
        above = [base + (at.get(step) or 0.0) for base, step in zip(below, steps, strict=True)]
        style = PART_STYLES.get(name, "c5")
        curves.append(Curve(name, steps, [at.get(s) for s in steps], below, above, phase, f"time/{name}", style, "stacked"))
        below = above
    return make_chart(
        f"Seconds of each {step_name(phase)}", curves, chart_id=slug(phase, "time"), unit="s, stacked", x_label=step_name(phase)
    )


def _speeds(files: RunFiles, phase: str, parts: Mapping[str, Series]) -> list[dict[str, Any]]:
    acting: dict[int, float] = {}
    for name in ("simulation", "rendering", "inference"):
        if name in parts:
            for step, value in zip(parts[name].steps, parts[name].values, strict=True):
                acting[step] = acting.get(step, 0.0) + (value or 0.0)
    speeds = []
    for key in ("speed/env_steps_per_s", "speed/turns_per_s"):
        series = files.get(phase, key)
        pairs = [(s, v) for s, v in zip(series.steps, series.values, strict=True) if v is not None] if series else []
        # Weighted by seconds of acting, so that the mean is all steps over all seconds.
        weights = [acting.get(step, 0.0) for step, _ in pairs]
        if not any(weights):
            weights = [1.0] * len(pairs)
        if series and pairs:
            mean = sum(w * v for w, (_, v) in zip(weights, pairs, strict=True)) / sum(weights)
            speeds.append({"title": title_of(key), "mean": mean, "last": pairs[-1][1]})
    return speeds

"""The page of a study: its variants side by side, in one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_rl.report.charts import Chart, Curve, make_chart, slug
from vla_rl.report.differences import difference
from vla_rl.report.page import render_page, write_page
from vla_rl.report.pass_at_k_section import estimates, pass_at_k_chart
from vla_rl.report.study_results import AXES, RunResult, StudyRun, VariantResult, read_result

STYLES = ("c1", "c4", "c2", "c3", "c6", "c7", "c8")
CURVES = {
    "evaluations": ("Evaluation success", "On held-out states; in between, evaluations have episodes of their own."),
    "rollouts": ("Rollout success", "Training episodes of each round, at each variant's own temperature and curriculum."),
}


def read_study(runs: Sequence[StudyRun], settings: Mapping[str, Mapping[str, Any]]) -> list[VariantResult]:
    """The results of all runs by variant, in the order of `settings` (variant -> what it sets)."""
    variants = {name: VariantResult(name, values) for name, values in settings.items()}
    for run in runs:
        variants[run.variant].runs.append(read_result(run))
    return list(variants.values())


def write_study_page(path: Path, name: str, definition: str, variants: Sequence[VariantResult]) -> Path:
    """Write the page of a study, finished or not; `definition` is its YAML. Raises `RunError` where it cannot be written."""
    return write_page(path, render_study(name, definition, variants))


def render_study(name: str, definition: str, variants: Sequence[VariantResult]) -> str:
    """The page as HTML."""
    styles = {variant.name: STYLES[i % len(STYLES)] for i, variant in enumerate(variants)}
    runs = [run for variant in variants for run in variant.runs]
    return render_page(
        "study.html",
        name=name,
        definition=definition,
        finished=all(run.final is not None for run in runs),
        sentence=_sentence(variants),
        rows=_rows(variants, styles),
        charts=[chart for curves in CURVES for axis in AXES if (chart := _learning_curves(variants, styles, curves, axis))],
        pass_at_k=_pass_at_k(variants, styles),
        runs=[_run_row(run, styles) for run in runs],
        cut=[run for run in runs if run.status in ("cut", "stopped")],
        repeated_styles=len(variants) > len(STYLES),
    )


def _sentence(variants: Sequence[VariantResult]) -> str:
    runs = [run for variant in variants for run in variant.runs]
    done = sum(run.final is not None for run in runs)
    cut = sum(run.status == "cut" for run in runs)
    words = f"{done} of {len(runs)} runs are complete"
    words += f", {cut} of them cut short by the time budget." if cut else "."
    seeds = {len(variant.done) for variant in variants}
    if len(seeds) > 1:
        words += " The variants have different numbers of finished seeds, so compare their rates with care."
    return words


def _rows(variants: Sequence[VariantResult], styles: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row a variant: final success of all seeds and of each, and how it differs from the start and from the first variant."""
    rows = []
    for variant in variants:
        done = variant.done
        shared = [] if variant is variants[0] else _of_both(variants[0], variant)
        rows.append(
            {
                "name": variant.name,
                "style": styles[variant.name],
                "settings": [f"{key}={value}" for key, value in variant.settings.items()],
                "start": variant.start,
                "final": variant.final,
                "gain": difference([(run.evaluation("start"), run.evaluation("final")) for run in done if run.start]),
                "difference": difference([(first.evaluation("final"), run.evaluation("final")) for first, run in shared]),
                "of_seeds": [run.plan.seed for _, run in shared],
                "seeds": [{"seed": run.plan.seed, "final": run.final} for run in done],
                "planned": len(variant.runs),
                "episodes": sum(run.episodes for run in done) / len(done) if done else None,
                "minutes": sum(run.minutes for run in done) / len(done) if done else None,
            }
        )
    return rows


def _of_both(first: VariantResult, other: VariantResult) -> list[tuple[RunResult, RunResult]]:
    """The finished runs of the seeds that both variants have: seeds begin differently, so others would not compare."""
    by_seed = {run.plan.seed: run for run in first.done}
    return [(by_seed[run.plan.seed], run) for run in other.done if run.plan.seed in by_seed]


def _learning_curves(variants: Sequence[VariantResult], styles: Mapping[str, str], curves: str, axis: str) -> Chart | None:
    """Each seed thin, their mean thick."""
    drawn = []
    for variant in variants:
        style = styles[variant.name]
        single = [(run.plan.seed, points) for run in variant.runs if (points := getattr(run, curves)[axis])]
        for seed, points in single if len(single) > 1 else ():
            drawn.append(_curve(f"{variant.name}, seed {seed}", points, style, "thin"))
        mean = variant.mean(curves, axis)
        if mean:
            count = f" (mean of {len(single)} seeds)" if len(single) > 1 else ""
            drawn.append(_curve(variant.name + count, mean, style, "line"))
    if not drawn:
        return None
    title, note = CURVES[curves]
    return make_chart(
        f"{title} against {'training episodes' if axis == 'episodes' else 'minutes'}",
        drawn,
        chart_id=slug("study", curves, axis),
        unit="% of episodes",
        x_label="training episodes" if axis == "episodes" else "minutes of the run",
        y_range=(0.0, 1.0),
        percent=True,
        note=note,
    )


def _curve(name: str, points: Sequence[tuple[float, float]], style: str, kind: str) -> Curve:
    return Curve(name, [x for x, _ in points], [y for _, y in points], key=slug(name), style=style, kind=kind)


def _pass_at_k(variants: Sequence[VariantResult], styles: Mapping[str, str]) -> dict[str, Any] | None:
    """A chart and a table of pass@k over the states of all seeds; None where it was not measured."""
    found = {
        (when, variant.name): values
        for when in ("start", "final")
        for variant in variants
        if (values := estimates([run.files.pass_at_k[when] for run in variant.runs if when in run.files.pass_at_k]))
    }
    starts = [values for (when, _), values in found.items() if when == "start"]
    if starts and all(values == starts[0] for values in starts):  # one shared start: one curve
        found = {("start", ""): starts[0]} | {key: values for key, values in found.items() if key[0] == "final"}
    if not found:
        return None
    rows = [(name or "all variants", when, styles.get(name, "c5"), values) for (when, name), values in found.items()]
    curves = [
        (name if when == "final" else f"{name}, start", style, "line" if when == "final" else "dashed", values)
        for name, when, style, values in rows
    ]
    ks = sorted({k for values in found.values() for k in values})
    return {"chart": pass_at_k_chart(curves, "study-pass-at-k"), "ks": ks, "rows": rows}


def _run_row(run: Any, styles: Mapping[str, str]) -> dict[str, Any]:
    chip = {"finished": "done", "cut": "open", "failed": "fail"}.get(run.status, "open")
    return {"run": run, "style": styles[run.plan.variant], "chip": chip, "name": run.plan.directory.name}

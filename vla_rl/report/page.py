"""`write_report`: a run directory in, one HTML file out that needs no network."""

from __future__ import annotations

import base64
import datetime
import hashlib
import os
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vla_rl.report import pass_at_k_section, returns_section, sections
from vla_rl.report.charts import format_value
from vla_rl.report.curriculum_section import curriculum_maps
from vla_rl.report.run_files import RunFiles, read_run
from vla_rl.report.titles import ENVIRONMENT, phase_title
from vla_rl.run import RunError

RUN_FILES = ("config.yaml", "environment.json", "metrics.jsonl", "evaluation")


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` from what the run has recorded so far; returns its path.

    The page holds its style, script, curves and videos, loads nothing, and its content policy forbids it to. Parts of a
    run that are missing or unreadable are named on the page. Raises `RunError` where `run_dir` is no run directory.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise RunError(f"there is no run directory {run_dir}; give the path of a run, as printed when it started")
    if not any((run_dir / name).exists() for name in RUN_FILES):
        raise RunError(f"{run_dir} is not a run directory: it has none of {', '.join(RUN_FILES)}")
    return write_page(run_dir / "report.html", render(read_run(run_dir)))


def write_page(path: Path, html: str) -> Path:
    """Replace a page in one step; returns its path. Raises `RunError` where it cannot be written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(html, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise RunError(f"cannot write the report {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def render(run: RunFiles) -> str:
    """The page of a run as HTML."""
    return render_page("page.html", run=run, name=run.directory.resolve().name, env_names=ENVIRONMENT, **_parts(run))


def render_page(template: str, **content: Any) -> str:
    """A template of this folder with its style and script inside; pages of runs and of datasets share them."""
    folder = package_files("vla_rl.report")
    source = {name: (folder / name).read_text(encoding="utf-8") for name in (template, "macros.html", "page.css", "page.js")}
    script = source["page.js"].strip()
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_value, "duration": duration, "percent": percent}
    return environment.get_template(template).render(
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup(source["page.css"]),
        script=Markup(script),
        # The one script that the page may run: text of a run that ended up in the page as a script would not.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **content,
    )


def _parts(run: RunFiles) -> dict[str, Any]:
    return {
        "headline": sections.headline(run),
        "notes": list(dict.fromkeys(evaluation["note"] for evaluation in run.evaluations if evaluation.get("note"))),
        "success": [*sections.success_charts(run), *pass_at_k_section.run_chart(run)],
        "phases": [(phase, phase_title(phase), sections.metric_charts(run, phase)) for phase in run.series],
        "tasks": sections.task_rows(run),
        "evaluations": sections.evaluation_rows(run),
        "videos": sections.videos(run),
        "curricula": curriculum_maps(run),
        "timings": [timing for phase in run.series if (timing := sections.timing(run, phase))],
        "returns": returns_section.returns(run),
        "finished": any(evaluation["name"] == "final" for evaluation in (*run.evaluations, *run.returns)),
    }


def duration(seconds: float | None) -> str:
    """35 ms, 4.2 s, 3 min 20 s, 2 h 5 min"""
    if seconds is None:
        return "unknown"
    if 0 < seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 100:
        return f"{format_value(float(f'{seconds:.3g}'))} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def percent(fraction: float | None) -> str:
    """One decimal, except where it would be a zero."""
    return "–" if fraction is None else f"{100 * fraction:.1f}".removesuffix(".0") + "%"

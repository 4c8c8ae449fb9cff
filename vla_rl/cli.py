"""The command line: `vla-rl VERB [CONFIG] section.key=value ...`."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vla_rl import bench_commands, data_commands, model_commands, robot_commands, sim_commands
from vla_rl.command_words import Words, split

if TYPE_CHECKING:
    from vla_rl.config import Config
    from vla_rl.control_config import ControlConfig

DEMO = "configs/demo.yaml"

app = typer.Typer(
    help="Train vision-language-action policies by reinforcement learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
collect = typer.Typer(help="Make demonstrations.", no_args_is_help=True)
app.add_typer(collect, name="collect")
app.add_typer(bench_commands.app)
app.add_typer(data_commands.app)
app.add_typer(model_commands.app)
app.add_typer(robot_commands.app)
app.add_typer(sim_commands.app)


def _load(words: list[str] | None) -> tuple[Config, Path | None]:
    """The configuration that the words of a command mean, and its path."""
    from vla_rl.config_files import load_config
    from vla_rl.run import config_of, place_of

    path, overrides = split(words)
    return load_config(config_of(path) if path else None, place_of(path) + overrides), path


def _load_any(words: list[str] | None) -> tuple[Config | ControlConfig, Path | None]:
    """As `_load`, where either kind of experiment will do."""
    from vla_rl.control_config import load_experiment
    from vla_rl.run import config_of, place_of

    path, overrides = split(words)
    return load_experiment(config_of(path) if path else None, place_of(path) + overrides), path


@app.command()
def demo(words: Words = None) -> None:
    """The main job on one LIBERO task with a tiny policy, on a CPU, in minutes; ends with a report."""
    train([DEMO, *(words or [])])


@app.command()
def train(words: Words = None) -> None:
    """Demonstrations, supervised start, reinforcement learning, evaluation, report; continues where the run stopped.

    A configuration with a section `algorithm` is an off-policy run instead: control from a state, by DSAC-T or SAC.
    """
    from vla_rl.config import Config
    from vla_rl.trainers import control, pipeline

    config, _ = _load_any(words)
    report = pipeline.train(config) if isinstance(config, Config) else control.train(config)
    Console().print(f"report: {report}", soft_wrap=True)


@app.command()
def sft(
    words: Words = None,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Also the evaluation before training.")] = False,
) -> None:
    """Demonstrations and supervised fine-tuning alone."""
    from vla_rl.trainers import pipeline

    config, _ = _load(words)
    Console().print(f"run: {pipeline.clone(config, evaluate)}", soft_wrap=True)


@app.command()
def evaluate(words: Words = None) -> None:
    """Success of a policy (a run directory's, policy.checkpoint=PATH or policy.server=URL) on held-out initial states."""
    from vla_rl.config import Config
    from vla_rl.trainers import control, pipeline

    config, path = _load_any(words)
    kind = pipeline if isinstance(config, Config) else control
    Console().print(f"evaluation: {kind.evaluate_policy(config, path)}", soft_wrap=True)


@app.command()
def serve(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN [KEY=VALUE]...", help="A run directory, checkpoint or policy folder; port=8000 max_batch=8"),
    ] = None,
) -> None:
    """A policy behind a websocket, for robots and evaluations on other machines (openpi's protocol); SIGTERM drains it."""
    from vla_rl.config import ConfigError
    from vla_rl.config_files import load_section
    from vla_rl.serve.settings import ServeSettings

    path, overrides = split(words)
    settings = load_section(ServeSettings, None, overrides)
    if path is None:
        raise ConfigError("which policy? give a run directory, a checkpoint or a policy folder: vla-rl serve RUN")
    from vla_rl.serve.server import serve_policy

    serve_policy(path, settings)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run directory of a driving policy.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; by default RUN/export.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The policy that did best during training, not the last one.")] = False,
) -> None:
    """policy.onnx and manifest.json of a driving policy, for robots without torch; proven equal to the trained policy."""
    from vla_rl.export import export_run

    Console().print(f"export: {export_run(run, out, best)}", soft_wrap=True)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Write report.html of a run, finished or under way."""
    from vla_rl.report import write_report

    Console().print(f"report: {write_report(run)}", soft_wrap=True)


@app.command()
def study(
    path: Annotated[Path, typer.Argument(metavar="STUDY", help="The YAML file of a study.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the study file, or settings of all runs.")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only write the page from what is there.")] = False,
) -> None:
    """Run variants x seeds, continue where the study stopped, and compare them on one page; exit code 1 where a run failed."""
    from vla_rl.study import load_study, run_study, write_comparison

    chosen = load_study(path, overrides or [])
    failed = [] if report_only else run_study(chosen)
    Console().print(f"comparison: {write_comparison(chosen)}", soft_wrap=True)
    if failed:
        print(f"failed: {', '.join(failed)}; the same command tries them again", file=sys.stderr)
        raise typer.Exit(1)


@collect.command("expert")
def collect_expert(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="suite=libero_goal task_ids=[0,3] episodes=50")
    ] = None,
) -> None:
    """Demonstrations of the scripted expert, as LIBERO HDF5; a stopped collection continues with the same command."""
    from vla_rl.collect import check_settings, collect_demonstrations
    from vla_rl.config import CollectSettings
    from vla_rl.config_files import load_section

    settings = load_section(CollectSettings, *split(words))
    check_settings(settings)
    for path in collect_demonstrations(settings):
        Console().print(f"demonstrations: {path}", soft_wrap=True)


@app.command()
def doctor() -> None:
    """Check GL, simulators, GPU, ROS, and say how to mend what is missing."""
    from vla_rl.doctor import print_doctor

    raise typer.Exit(print_doctor())


def main() -> None:
    """Run the command line; what a user can mend ends in one line and exit code 2."""
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        print("stopped; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not _is_users(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _is_users(error: Exception) -> bool:
    """Whether an error's message is written for the user."""
    from vla_rl.algorithms.mini_batch import TrainingError
    from vla_rl.checkpoint import CheckpointError
    from vla_rl.config import ConfigError
    from vla_rl.data import DatasetError
    from vla_rl.distributed.weight_sync import WeightSyncError
    from vla_rl.driving.manifest import ExportError
    from vla_rl.metrics import MetricsError
    from vla_rl.policies import PolicyError
    from vla_rl.run import RunError
    from vla_rl.sim import SimError
    from vla_rl.video import VideoError

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    mendable = (
        TrainingError,
        CheckpointError,
        ConfigError,
        DatasetError,
        ExportError,
        MetricsError,
        PolicyError,
        RunError,
        SimError,
        VideoError,
        WeightSyncError,
    )
    return isinstance(error, mendable)


if __name__ == "__main__":
    main()

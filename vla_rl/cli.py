"""The command line: `vla-rl VERB [CONFIG] section.key=value ...`."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vla_rl import bench_commands, data_commands, model_commands
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


def _load(words: list[str] | None) -> tuple[Config, Path | None]:
    """The configuration that the words of a command mean, and its path."""
    from vla_rl.config_files import load_config
    from vla_rl.run import config_of

    path, overrides = split(words)
    return load_config(config_of(path) if path else None, overrides), path


def _load_any(words: list[str] | None) -> tuple[Config | ControlConfig, Path | None]:
    """As `_load`, where either kind of experiment will do."""
    from vla_rl.control_config import load_experiment
    from vla_rl.run import config_of

    path, overrides = split(words)
    return load_experiment(config_of(path) if path else None, overrides), path


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
    from vla_rl.collect import collect_demonstrations
    from vla_rl.config import CollectSettings
    from vla_rl.config_files import load_section

    for path in collect_demonstrations(load_section(CollectSettings, *split(words))):
        Console().print(f"demonstrations: {path}", soft_wrap=True)


<<<<<<< HEAD
=======
@bench.command("sim")
def bench_sim(
    overrides: Overrides = None,
    json_path: JsonPath = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each system, over all repeats.")] = 20.0,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that the systems take.")] = 5,
    scaling: Annotated[bool, typer.Option("--scaling", help="Also measure 1, 8, 16, 32 and 64 environments.")] = False,
    peers: Annotated[bool, typer.Option(help="Also measure LIBERO, robosuite and RLinf.")] = True,
    peer_envs: Annotated[int | None, typer.Option(min=1, help="Environments of LIBERO and RLinf, 1.8 GiB each.")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print tables as markdown.")] = False,
) -> None:
    """Env-steps/s, resets and memory of the simulator, beside LIBERO's, RLinf's and robosuite's own."""
    from vla_rl.bench import sim, sim_report
    from vla_rl.bench.output import save, show
    from vla_rl.bench.sim_settings import SimSettings

    settings = SimSettings.from_overrides(overrides or [])

    def keep(so_far: sim.SimBenchmark) -> None:
        save(sim_report.to_dict(so_far), json_path)

    found = sim.measure(settings, seconds, repeats, sim.PEERS if peers else (), scaling, peer_envs, keep)
    show(sim_report.tables(found), sim_report.to_dict(found), json_path, as_markdown)


@bench.command("fidelity")
def bench_fidelity(
    suites: Annotated[str, typer.Option(help="Suites, separated by commas; by default the five standard ones.")] = "",
    tasks: Annotated[int, typer.Option(min=1, help="Tasks of each suite, evenly spread.")] = 4,
    steps: Annotated[int, typer.Option(min=0, help="Random actions a task.")] = 200,
    expert: Annotated[bool, typer.Option(help="Also an episode of the scripted expert.")] = True,
    quality: Annotated[bool, typer.Option(help="Also compare fast pictures with exact ones.")] = True,
    json_path: JsonPath = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print tables as markdown.")] = False,
) -> None:
    """Compare the simulator with LIBERO's own, step by step and pixel by pixel; exit code 1 where they differ."""
    from vla_rl.bench import fidelity, fidelity_report
    from vla_rl.bench.output import save, show

    chosen = tuple(suites.split(",")) if suites else fidelity.STANDARD_SUITES
    sizes = fidelity.QUALITY_SIZES if quality else ()
    settings = fidelity.FidelitySettings(suites=chosen, tasks=tasks, steps=steps, expert=expert, quality_sizes=sizes)
    found = fidelity.measure(settings, lambda so_far: save(fidelity_report.to_dict(so_far, settings), json_path))
    show(fidelity_report.tables(found, settings), fidelity_report.to_dict(found, settings), json_path, as_markdown)
    if not all(target.met for target in fidelity_report.targets(found)):
        raise typer.Exit(1)


@bench.command("expert")
def bench_expert(
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="[TASKS]...", help="libero_goal, libero_goal:3, libero_90:0-9; all.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Of each task, from initial states that training never sees.")] = 20,
    noise: Annotated[float, typer.Option(min=0.0, help="Standard deviation of the noise on executed actions.")] = 0.0,
    record: Annotated[Path, typer.Option(help="One line an episode; episodes that it holds are not run again.")] = Path(
        "runs/bench_expert.jsonl"
    ),
    json_path: JsonPath = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print tables as markdown.")] = False,
) -> None:
    """How often the scripted expert solves each of LIBERO's 130 tasks, and why it fails."""
    from vla_rl.bench import expert
    from vla_rl.bench.output import show

    chosen = expert.selected_tasks(tasks or [])
    for outcome in expert.measure(chosen, episodes, noise, record):
        print(expert.line(outcome), file=sys.stderr, flush=True)
    outcomes = [outcome for outcome in expert.read_outcomes(record) if (outcome.suite, outcome.task_id) in set(chosen)]
    show(expert.tables(outcomes, noise), expert.to_dict(outcomes, noise), json_path, as_markdown)


@bench.command("soak")
def bench_soak(
    overrides: Overrides = None,
    minutes: Annotated[float, typer.Option(min=0.01)] = 10.0,
    kill_every: Annotated[float, typer.Option(min=0.1, help="Mean seconds between two kills.")] = 15.0,
    json_path: JsonPath = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print tables as markdown.")] = False,
) -> None:
    """Kill the simulator's workers at random instants; exit code 1 where an episode is lost or changed, or memory leaks."""
    from vla_rl.bench import soak
    from vla_rl.bench.output import show
    from vla_rl.bench.sim_settings import SimSettings

    settings = SimSettings.from_overrides(overrides or [])
    outcome = soak.soak(soak.of_libero(settings, "fast", 60 * minutes, kill_every))
    show(soak.tables(outcome), soak.to_dict(outcome), json_path, as_markdown)
    if not all(target.met is not False for target in soak.targets(outcome)):
        raise typer.Exit(1)


@bench.command("dsac")
def bench_dsac(
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each system, over all repeats.")] = 20.0,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that the systems take.")] = 5,
    json_path: JsonPath = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print tables as markdown.")] = False,
) -> None:
    """Updates/s of DSAC-T on one CPU thread, beside the structure of the authors' code and Stable-Baselines3's SAC."""
    from vla_rl.bench import dsac
    from vla_rl.bench.output import save, show

    found = dsac.measure(dsac.DsacSettings(), seconds, repeats, lambda so_far: save(dsac.to_dict(so_far), json_path))
    show(dsac.tables(found), dsac.to_dict(found), json_path, as_markdown)


@bench.command("wheeled")
def bench_wheeled(
    tasks: Annotated[list[str] | None, typer.Argument(metavar="[TASKS]...", help="tracking_slow, goal_fast, ...; all.")] = None,
    num_envs: Annotated[int, typer.Option(min=1, help="Environments side by side while speed is measured.")] = 256,
    seconds: Annotated[float, typer.Option(min=0.1, help="CPU seconds of each case, over all repeats.")] = 10.0,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that the cases take.")] = 5,
    episodes: Annotated[int, typer.Option(min=0, help="Held-out episodes of the baseline on each task.")] = 200,
    foreign: Annotated[int, typer.Option(min=0, help="The same in ir-sim; some seconds an episode.")] = 0,
    videos: Annotated[Path | None, typer.Option(help="Folder for a video of an episode of each task.")] = None,
    json_path: JsonPath = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print tables as markdown.")] = False,
) -> None:
    """Env-steps per CPU second of the wheeled simulator, and how well its classical baseline drives."""
    from vla_rl.bench import wheeled
    from vla_rl.bench.output import save, show

    def keep(so_far: wheeled.WheeledBenchmark) -> None:
        save(wheeled.to_dict(so_far), json_path)

    found = wheeled.measure(num_envs, seconds, repeats, tasks or tuple(wheeled.TASKS), episodes, foreign, videos, keep)
    show(wheeled.tables(found), wheeled.to_dict(found), json_path, as_markdown)


@bench.command("dsac-learning")
def bench_dsac_learning(
    tasks: Annotated[list[str] | None, typer.Argument(metavar="[ENVIRONMENT]...", help="By default all four.")] = None,
    algorithms: Annotated[str, typer.Option(help="Separated by commas.")] = "dsac_t,sac,sb3_sac",
    record: Annotated[Path, typer.Option(help="One line a run; runs that it holds are not made again.")] = Path(
        "runs/dsac_learning/outcomes.jsonl"
    ),
    json_path: JsonPath = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print tables as markdown.")] = False,
) -> None:
    """What DSAC-T and SAC learn with the same budget and networks, beside Stable-Baselines3's SAC; resumable, takes hours."""
    from vla_rl.bench import dsac_learning
    from vla_rl.bench.output import show

    for outcome in dsac_learning.measure(tasks or list(dsac_learning.TASKS), algorithms.split(","), record):
        print(dsac_learning.line(outcome), file=sys.stderr, flush=True)
    outcomes = dsac_learning.read_outcomes(record)
    show(dsac_learning.tables(outcomes), dsac_learning.to_dict(outcomes), json_path, as_markdown)


>>>>>>> wheeled
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

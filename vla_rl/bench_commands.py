"""`vla-rl bench`: speed, fidelity and learning, measured against what is replaced."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vla_rl.command_words import split

app = typer.Typer(name="bench", help="Measure speed and fidelity, against what is replaced.", no_args_is_help=True)
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="section.key=value overrides.")]
JsonPath = Annotated[str | None, typer.Option("--json", metavar="PATH", help='Also write JSON; "-": to standard output.')]


@app.command("sim")
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
    """Env-steps/s, resets and memory of the simulator, beside LIBERO's, RLinf's and robosuite's own.

    With sim.name=robotwin: resets, chunks and memory, with one process and with one a core.
    """
    if "sim.name=robotwin" in (overrides or []):
        return _bench_robotwin(overrides or [], json_path, as_markdown)
    from vla_rl.bench import sim, sim_report
    from vla_rl.bench.output import save, show
    from vla_rl.bench.sim_settings import SimSettings

    settings = SimSettings.from_overrides(overrides or [])

    def keep(so_far: sim.SimBenchmark) -> None:
        save(sim_report.to_dict(so_far), json_path)

    found = sim.measure(settings, seconds, repeats, sim.PEERS if peers else (), scaling, peer_envs, keep)
    show(sim_report.tables(found), sim_report.to_dict(found), json_path, as_markdown)


def _bench_robotwin(overrides: list[str], json_path: str | None, as_markdown: bool) -> None:
    from vla_rl.bench import robotwin
    from vla_rl.bench.output import show

    settings = robotwin.Settings.from_overrides(overrides)
    found = robotwin.measure(settings)
    show(robotwin.tables(settings, found), robotwin.to_dict(settings, found), json_path, as_markdown)


@app.command("fidelity")
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


@app.command("expert")
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


@app.command("policy")
def bench_policy(
    name: Annotated[str, typer.Argument(metavar="[POLICY]", help="A preset, openvla-7b (random weights), or a path.")] = "tiny",
    batches: Annotated[str, typer.Option(help="Observations a call, separated by commas.")] = "1,8",
    dtypes: Annotated[str, typer.Option(help="float32, bfloat16, or both with a comma.")] = "float32,bfloat16",
    chunk: Annotated[int, typer.Option(min=1, help="Actions a chunk, of a preset.")] = 8,
    lora_rank: Annotated[int, typer.Option(min=0, help="Of the adapters that are trained; 0: none.")] = 32,
    compiled: Annotated[bool, typer.Option(help="Update adapters with torch.compile, too, which takes minutes.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: one a core.")] = 0,
    seconds: Annotated[float, typer.Option(min=0.0, help="Of each row, over all repeats.")] = 1.0,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that the rows take.")] = 5,
    json_path: JsonPath = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print tables as markdown.")] = False,
) -> None:
    """Times to act and to learn, tokens/s, FLOP utilisation and memory of a policy, beside the machine's limits."""
    from vla_rl.bench import policy, policy_report
    from vla_rl.bench.output import show
    from vla_rl.run import choose_device, set_threads

    set_threads(threads)
    sizes = tuple(int(batch) for batch in batches.split(","))
    settings = policy.PolicySettings(
        name, sizes, tuple(dtypes.split(",")), chunk, lora_rank, compiled, str(choose_device(device)), seconds, repeats
    )
    found = policy.measure(settings)
    show(policy_report.tables(found), policy_report.to_dict(found), json_path, as_markdown)


@app.command("soak")
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


@app.command("serve")
def bench_serve(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN] [KEY=VALUE]...", help="A policy, by default a tiny random one; settings of the server."),
    ] = None,
    clients: Annotated[str, typer.Option(help="Numbers of concurrent clients, separated by commas.")] = "1,2,4,8",
    requests: Annotated[int, typer.Option(min=1, help="Of each client.")] = 200,
    image_size: Annotated[int, typer.Option(min=1, help="Side of the square images that are sent, px.")] = 128,
    json_path: JsonPath = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print tables as markdown.")] = False,
) -> None:
    """Latency (p50, p99) and requests/s of `vla-rl serve` with concurrent clients, beside local inference."""
    from vla_rl.bench import serve
    from vla_rl.bench.output import show

    path, overrides = split(words)
    found = serve.measure(path, overrides, serve.client_counts(clients), requests, image_size)
    show(serve.tables(found), serve.to_dict(found), json_path, as_markdown)


@app.command("dsac")
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


@app.command("dsac-learning")
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


@app.command("rehearsal")
def bench_rehearsal(
    export: Annotated[Path, typer.Argument(help="Folder that `vla-rl export` wrote.")],
    episodes: Annotated[int, typer.Option(min=1, help="Held-out episodes, in real time.")] = 20,
    json_path: JsonPath = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print tables as markdown.")] = False,
) -> None:
    """An exported driving policy through the whole ROS 2 graph, beside the same episodes in the simulator alone."""
    from vla_rl.bench import rehearsal
    from vla_rl.bench.output import show
    from vla_rl.config_files import shipped_path
    from vla_rl.robot_commands import require_ros

    def tell(pair: rehearsal.Pair) -> None:
        errors = f"{pair.simulator.cross_track:.3f} m in the simulator, {pair.graph.cross_track:.3f} m through the graph"
        print(f"seed {pair.seed}: {errors}", file=sys.stderr, flush=True)

    require_ros()
    pairs = rehearsal.measure(shipped_path(export), episodes, on_pair=tell)
    show([rehearsal.table(pairs)], rehearsal.to_dict(pairs), json_path, as_markdown)


@app.command("wheeled")
def bench_wheeled(
    tasks: Annotated[list[str] | None, typer.Argument(metavar="[TASKS]...", help="tracking_slow, goal_fast, ...; all.")] = None,
    num_envs: Annotated[int, typer.Option(min=1, help="Environments side by side while speed is measured.")] = 256,
    seconds: Annotated[float, typer.Option(min=0.1, help="CPU seconds of each case, over all repeats.")] = 10.0,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that the cases take.")] = 5,
    episodes: Annotated[int, typer.Option(min=0, help="Held-out episodes of the baseline on each task.")] = 200,
    foreign: Annotated[int, typer.Option(min=0, help="The same in ir-sim; some seconds an episode.")] = 0,
    videos: Annotated[Path | None, typer.Option(help="Folder for a video of an episode of each task.")] = None,
    loop: Annotated[float, typer.Option(min=0.0, help="Seconds of the robot's control loop, over all repeats; 0: none.")] = 20.0,
    json_path: JsonPath = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print tables as markdown.")] = False,
) -> None:
    """Speed of wheeled simulator, exported policy and control loop, and how well the classical baseline drives."""
    from vla_rl.bench import wheeled
    from vla_rl.bench.output import save, show

    def keep(so_far: wheeled.WheeledBenchmark) -> None:
        save(wheeled.to_dict(so_far), json_path)

    found = wheeled.measure(num_envs, seconds, repeats, tasks or tuple(wheeled.TASKS), episodes, foreign, videos, loop, keep)
    show(wheeled.tables(found), wheeled.to_dict(found), json_path, as_markdown)

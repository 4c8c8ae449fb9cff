"""The main job: demonstrations -> supervised start -> reinforcement learning -> evaluation -> report, each stage once a run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from vla_rl.algorithms.composition import check_rounds, compose
from vla_rl.checkpoint import latest_checkpoint
from vla_rl.collect import collect_demonstrations
from vla_rl.config import CollectSettings, Config, ConfigError, SimOptions
from vla_rl.curriculum import held_out_specs
from vla_rl.data.chunks import ChunkDataset
from vla_rl.distributed.ranks import Ranks, open_ranks
from vla_rl.policies import PolicyError, load_policy
from vla_rl.policies.base import ActingPolicy
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.policies.openvla.presets import check_preset
from vla_rl.policies.remote import RemotePolicy
from vla_rl.report import write_report
from vla_rl.run import Run, choose_device, set_threads
from vla_rl.sim import VectorSim, make_sim
from vla_rl.sim.robotwin.tasks import SUITE as ROBOTWIN_SUITE
from vla_rl.sim.suites import find_task, suite_tasks
from vla_rl.trainers.evaluation import evaluate_and_save, evaluate_held_out
from vla_rl.trainers.rl import train_rl
from vla_rl.trainers.sft import demonstrated_chunks, given_policy, train_sft
from vla_rl.wire import TOKEN_VARIABLE


def open_sim(config: Config, ranks: Ranks | None = None) -> VectorSim:
    """Of several ranks on a machine each has simulators of its own, and its share of the cores for them."""
    sim, neighbours = config.sim, 1 if ranks is None else ranks.local_size
    workers = sim.num_workers or (max(1, len(os.sched_getaffinity(0)) // neighbours) if neighbours > 1 else None)
    libero = {"render_quality": sim.render_quality, "antialiasing": sim.antialiasing, "controller": sim.controller}
    return make_sim(
        sim.name,
        num_envs=sim.num_envs,
        num_workers=workers,
        cameras=sim.cameras,
        image_size=sim.image_size,
        python=sim.python,
        **(sim.robotwin.model_dump() if sim.name == "robotwin" else libero),
    )


def chosen_tasks(config: Config) -> tuple[int, ...]:
    """`task.task_ids`, or every task of the suite where that is empty. Raises `SimError` for what does not exist."""
    task = config.task
    if (task.suite == ROBOTWIN_SUITE) != (config.sim.name == "robotwin"):
        raise ConfigError(f"sim.name={config.sim.name} does not have the suite {task.suite}; set both: robotwin has robotwin")
    tasks = suite_tasks(task.suite)
    for task_id in task.task_ids:
        find_task(task.suite, task_id)
    return task.task_ids or tuple(range(len(tasks)))


def demonstrations(run: Run) -> list[Path]:
    """The files to clone: those of `demonstrations.path`, or what the scripted expert makes in the run directory."""
    config = run.config
    if config.demonstrations.path is not None:
        path = config.demonstrations.path
        return sorted(path.glob("*.hdf5")) if path.is_dir() else [path]
    settings = CollectSettings(
        suite=config.task.suite,
        task_ids=chosen_tasks(config),
        episodes=config.demonstrations.episodes_per_task,
        seed=config.run.seed,
        output=run.lead / "demonstrations",
        noise=config.demonstrations.noise,
        varied=config.demonstrations.varied,
        workers=config.sim.num_workers,
        **config.sim.model_dump(include=set(SimOptions.model_fields)),
    )
    return collect_demonstrations(settings)


def supervised_start(run: Run) -> OpenVLAPolicy:
    """The policy that RL begins with: `policy.checkpoint`, `policy.path`, or one cloned from demonstrations in this run."""
    device = run.ranks.device(choose_device(run.config.run.device))
    if run.config.policy.checkpoint is not None:
        return given_policy(run.config, device)
    if run.config.policy.path is not None and latest_checkpoint(run.checkpoints("sft")) is None:
        return given_policy(run.config, device)
    return train_sft(run, lambda: demonstrations(run), device)


def check(config: Config) -> tuple[int, ...]:
    """The tasks of a configuration, after a look at all that would otherwise fail only after minutes of work."""
    check_settings(config)
    return chosen_tasks(config)


def check_settings(config: Config) -> None:
    """Raise an error for settings that do not go together or with this machine, whatever the tasks."""
    from vla_rl.sim.libero.pictures import check_pictures

    if config.policy.server is not None:
        raise ConfigError("policy.server is for evaluations; training changes a policy of its own: leave it out")
    if config.policy.checkpoint is not None and config.policy.path is not None:
        raise ConfigError("policy.checkpoint and policy.path both say what to start from; leave one of them out")
    choose_device(config.run.device)
    check_memory_plan(config)
    check_preset(config.policy.preset)
    if config.sim.name == "libero":
        check_pictures(config.sim.render_quality, config.sim.antialiasing)
    check_rounds(config.rl, compose(config.objective))


def check_memory_plan(config: Config) -> None:
    """Raise `ConfigError` for adapters in sharded weights, which nobody needs."""
    if config.policy.sharded and config.policy.lora_rank:
        raise ConfigError(
            "policy.sharded cuts weights that train into shares, and with policy.lora_rank only small adapters train; "
            "set policy.sharded=false: each rank then keeps the frozen weights once, to act and to learn with"
        )


def clone(config: Config, evaluate: bool = False) -> Path:
    """Demonstrations and supervised fine-tuning alone, and where asked for the evaluation `start`; returns the run directory."""
    set_threads(config.run.threads)
    task_ids = check(config)
    with Run(config) as run:
        given = config.policy.checkpoint is not None
        policy = supervised_start(run) if given else train_sft(run, lambda: demonstrations(run), choose_device(config.run.device))
        if evaluate:
            with closing(open_sim(config)) as sim:
                evaluate_held_out(run, sim, policy, task_ids, "start", 0)
        write_report(run.directory)
        return run.directory


def train(config: Config) -> Path:
    """Every stage of the main job that this run has not done yet; returns the path of the report.

    The report is written after each stage, so that a run under way, or one that failed, has one too.
    """
    set_threads(config.run.threads)
    task_ids = check(config)
    with open_ranks() as ranks, ranks.leader_first(lambda: Run(config, ranks)) as run:
        try:
            policy = ranks.leader_first(lambda: supervised_start(run))
            if policy.why_no_token_training:
                raise PolicyError(f"{config.policy.path or config.policy.checkpoint}: {policy.why_no_token_training}")
            with closing(open_sim(config, ranks)) as sim:
                evaluate_held_out(run, sim, policy, task_ids, "start", 0)
                if ranks.leads:
                    write_report(run.directory)

                def chunks() -> ChunkDataset:
                    return demonstrated_chunks(config, demonstrations(run), policy.chunk_length)

                rounds = train_rl(run, sim, policy, task_ids, lambda: ranks.leader_first(chunks))
                if config.policy.sharded and ranks.size > 1:
                    device = policy.device
                    policy = load_policy(run.lead, device) if rounds else ranks.leader_first(lambda: supervised_start(run))
                evaluate_held_out(run, sim, policy, task_ids, "final", rounds)
        finally:
            report = write_report(run.directory) if ranks.leads else run.directory
        return report


def evaluate_policy(config: Config, path: Path | None) -> Path:
    """Evaluate a policy on the held-out list of the configured tasks; returns the JSON's path, in the run directory.

    It is the one behind `policy.server`, that of `policy.checkpoint`, the newest one of the run directory `path`, or that of
    `policy.path`, whichever comes first.
    """
    set_threads(config.run.threads)
    with _policy_to_evaluate(config, path) as policy:
        task_ids, evaluation = chosen_tasks(config), config.evaluation
        mode = "greedy" if evaluation.temperature == 0 else f"temperature_{evaluation.temperature:g}"
        name = f"{config.task.suite}_{_name_of(task_ids)}_{mode}_{evaluation.episodes}_version_{policy.version}"
        directory = config.run.root / config.run.name
        with closing(open_sim(config)) as sim:
            specs = held_out_specs(config.task.suite, task_ids, evaluation.episodes)
            return evaluate_and_save(directory, config, sim, policy, specs, name, policy.version, evaluation.videos)


def _name_of(task_ids: Sequence[int]) -> str:
    """0_3_7, or 0-89 of a row, which keeps within what a file may be called."""
    if len(task_ids) > 2 and list(task_ids) == list(range(task_ids[0], task_ids[0] + len(task_ids))):
        return f"{task_ids[0]}-{task_ids[-1]}"
    name = "_".join(map(str, task_ids))
    return name if len(name) <= 100 else f"{len(task_ids)}_tasks_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@contextmanager
def _policy_to_evaluate(config: Config, path: Path | None) -> Iterator[ActingPolicy]:
    if config.policy.server is not None:
        with closing(RemotePolicy(config.policy.server, os.environ.get(TOKEN_VARIABLE))) as remote:
            yield remote
        return
    source, device = config.policy.checkpoint or path, choose_device(config.run.device)
    if source is not None and not source.is_file():
        yield load_policy(source, device)
    elif config.policy.path is not None:
        yield given_policy(config, device)
    else:
        raise ConfigError(
            "there is no policy to evaluate; give a run directory, policy.checkpoint=PATH, policy.path=PATH or policy.server=URL"
        )

"""Off-policy runs: simulators, training, evaluations, report."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from vla_rl.config import ConfigError
from vla_rl.control_config import ControlConfig
from vla_rl.evaluate import write_json
from vla_rl.policies.best import BEST, chosen_policy
from vla_rl.report import write_report
from vla_rl.run import Run, choose_device, set_threads
from vla_rl.sim.control import ControlSim, evaluation_seeds
from vla_rl.sim.control_registry import ONE_ROW, make_control
from vla_rl.trainers.control_evaluation import ROWS, evaluate_control, record_videos, require_film
from vla_rl.trainers.offpolicy import train_offpolicy


def open_control(config: ControlConfig, num_envs: int) -> ControlSim:
    return make_control(config.sim.name, config.sim.id, num_envs, **config.sim.options)


def _open_judge(config: ControlConfig) -> ControlSim:
    """The simulator of evaluations, apart from that of training, whose episodes they must not disturb."""
    evaluation = config.evaluation
    rows = 1 if config.sim.name in ONE_ROW else max(min(evaluation.episodes, ROWS), evaluation.bias_episodes)
    judge = open_control(config, rows)
    if evaluation.videos:
        require_film(judge)
    return judge


def train(config: ControlConfig) -> Path:
    """Train, evaluate before, during and after; returns the path of the report, which a run that failed has, too."""
    set_threads(config.run.threads)
    device = choose_device(config.run.device)
    with closing(open_control(config, config.sim.num_envs)) as sim, closing(_open_judge(config)) as judge, Run(config) as run:
        try:
            train_offpolicy(run, sim, judge, device)
        finally:
            report = write_report(run.directory)
        return report


def evaluate_policy(config: ControlConfig, path: Path | None) -> Path:
    """Evaluate a policy of the run directory `path` on the held-out seeds; returns the JSON's path."""
    set_threads(config.run.threads)
    if path is None or path.is_file():
        raise ConfigError("there is no policy to evaluate; give a run directory")
    policy = chosen_policy(path, config.evaluation.policy == BEST, choose_device(config.run.device))
    evaluation, directory = config.evaluation, config.run.root / config.run.name
    name = f"{config.sim.name}_{config.sim.id.replace('/', '_')}_{evaluation.episodes}_version_{policy.version}"
    with closing(_open_judge(config)) as judge:
        if (policy.observation_dim, policy.action_dim) != (judge.observation_dim, judge.action_dim):
            raise ConfigError(
                f"the policy maps {policy.observation_dim} numbers to {policy.action_dim}, but {config.sim.id} has "
                f"{judge.observation_dim} and takes {judge.action_dim}; set sim.id and sim.options as in its training"
            )
        record = evaluate_control(policy, judge, evaluation_seeds(evaluation.episodes), name, policy.version)
        if evaluation.videos:
            record_videos(record, judge, policy, directory, evaluation.videos)
    destination = directory / "evaluation" / f"{name}.json"
    write_json(destination, record)
    Console().print(_told(record))
    return destination


def _told(record: dict[str, Any]) -> str:
    """An evaluation in a few lines."""
    found = record["return"]
    lines = [f"return {found['mean']:.1f} ({found['low']:.1f} to {found['high']:.1f}) of {found['episodes']} episodes"]
    if "total" in record:
        total = record["total"]
        lines.append(f"success {total['successes']}/{total['episodes']} ({total['low']:.1%} to {total['high']:.1%})")
    lines += [f"{name} {value:.4g}" for name, value in record["measures"].items() if name != "success"]
    return "\n".join(lines)

"""Off-policy runs: simulators, training, evaluations, report."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from rich.console import Console

from vla_rl.config import ConfigError
from vla_rl.control_config import ControlConfig
from vla_rl.evaluate import write_json
from vla_rl.policies.gaussian import GaussianPolicy
from vla_rl.report import write_report
from vla_rl.run import Run, choose_device, set_threads
from vla_rl.sim.control import ControlSim
from vla_rl.sim.control_registry import make_control
from vla_rl.trainers.control_evaluation import ROWS, evaluate_control
from vla_rl.trainers.offpolicy import train_offpolicy


def open_control(config: ControlConfig, num_envs: int) -> ControlSim:
    return make_control(config.sim.name, config.sim.id, num_envs, **config.sim.options)


def _open_judge(config: ControlConfig) -> ControlSim:
    """The simulator of evaluations, apart from that of training, whose episodes they must not disturb."""
    evaluation = config.evaluation
    return open_control(config, max(min(evaluation.episodes, ROWS), evaluation.bias_episodes))


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
    """Evaluate the newest policy of the run directory `path` on the evaluation's seeds; returns the JSON's path."""
    set_threads(config.run.threads)
    if path is None or path.is_file():
        raise ConfigError("there is no policy to evaluate; give a run directory")
    policy = GaussianPolicy.load(path, choose_device(config.run.device))
    name = f"{config.sim.id.replace('/', '_')}_{config.evaluation.episodes}_version_{policy.version}"
    with closing(_open_judge(config)) as judge:
        record = evaluate_control(policy, judge, config.evaluation.episodes, name, policy.version)
    destination = config.run.root / config.run.name / "evaluation" / f"{name}.json"
    write_json(destination, record)
    found = record["return"]
    Console().print(f"return {found['mean']:.1f} ({found['low']:.1f} to {found['high']:.1f}) of {found['episodes']} episodes")
    return destination

"""The configuration of an off-policy run: control from a state vector, in Gymnasium's or the wheeled simulator.

A YAML file with a section `algorithm` is one of these; any other is a `Config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from vla_rl.config import Config, ConfigError, Count, Experiment, Fraction, Positive, Rate, Section, Setting
from vla_rl.config_files import apply_override, read_yaml, shipped_path, validated


class ControlSimConfig(Section):
    name: str = "gymnasium"
    """Which simulator: a key of `vla_rl.sim.control_registry.CONTROL_SIMS`."""
    id: str = "Pendulum-v1"
    """Which environment or task of that simulator."""
    num_envs: Positive = 1
    """Environments that advance together."""
    options: dict[str, Setting | list[Setting] | dict[str, Any]] = {}
    """What the simulator is made with, such as `max_episode_steps` of Gymnasium's `make`."""


class AlgorithmConfig(Section):
    name: Literal["dsac_t", "dsac_t_huber", "sac"] = "dsac_t"
    """dsac_t: with the paper's loss; dsac_t_huber: with that of the authors' later code; sac: soft actor-critic."""
    hidden: Annotated[tuple[Positive, ...], Field(min_length=1)] = (256, 256, 256)
    """Widths of the hidden layers of actor and critics, with GELU between them."""
    gamma: Fraction = 0.99
    """Discount a control step."""
    tau: Fraction = 0.005
    """How far the targets move towards their networks each time."""
    bound_rate: Fraction = 0.005
    """How far the moving average of sigma moves each update (the paper's tau_b)."""
    delay: Positive | None = None
    """Updates of the critics for one of actor, temperature and targets; null: 2, and 1 for sac."""
    batch_size: Positive = 256
    """Transitions of an update."""
    actor_learning_rate: Rate = 1e-4
    """Adam's, of the actor."""
    critic_learning_rate: Rate = 1e-4
    """Adam's, of both critics."""
    temperature_learning_rate: Rate = 3e-4
    """Adam's, of log alpha."""
    initial_temperature: Rate = 2.718281828459045
    """alpha before training; its logarithm is 1 by default."""
    target_entropy: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """nat, that the temperature steers to; null: minus the number of action dimensions."""


class OffPolicyConfig(Section):
    env_steps: Positive = 100_000
    """Control steps of all environments together."""
    random_steps: Count = 1_000
    """Control steps with uniformly random actions, during which nothing is learned."""
    updates_per_step: Rate = 1.0
    """Updates of the critics for every control step after those (the update-to-data ratio)."""
    greedy_share: Fraction = 0.0
    """Share of the environments that act by the middle of the Gaussian, as the deployed policy does: where only noise gets a
    policy out, such as standing before an obstacle, is hardly ever in the replay otherwise."""
    replay_capacity: Positive = 1_000_000
    """Transitions that are remembered."""
    round_steps: Positive = 1_000
    """Control steps between two metric records; evaluations and checkpoints come after whole rounds."""
    checkpoint_every: Positive = 10
    """Rounds between two checkpoints. Environments begin new episodes after each, so this changes what a run sees."""


class ControlEvaluationConfig(Section):
    episodes: Positive = 10
    """Episodes of each evaluation, with seeds that training never uses; the policy takes the middle of its Gaussian. Those
    during training have other seeds than those before and after it, and choose the best policy."""
    every: Count = 10
    """Rounds between two evaluations during training; 0: only before and after."""
    bias_episodes: Count = 2
    """Episodes with sampled actions, after each evaluation, that the critics' Q is compared with; 0: none."""
    policy: Literal["last", "best"] = "last"
    """Which policy of a run `vla-rl evaluate` takes."""
    videos: Count = 0
    """Of the last evaluation, so many successes and failures are filmed; Gymnasium wants sim.options.render_mode=rgb_array."""


class ControlConfig(Experiment):
    """One off-policy experiment."""

    sim: ControlSimConfig = ControlSimConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    off_policy: OffPolicyConfig = OffPolicyConfig()
    evaluation: ControlEvaluationConfig = ControlEvaluationConfig()


def kind_of(record: dict[str, Any]) -> type[Config] | type[ControlConfig]:
    """Which kind of experiment the sections of a file are."""
    return ControlConfig if "algorithm" in record else Config


def load_experiment(path: Path | str | None = None, overrides: Sequence[str] = ()) -> Config | ControlConfig:
    """As `load_config`, for either kind of experiment: one with a section `algorithm` is off-policy.

    Raises `ConfigError` in one line, also for off-policy settings where a round does not end with a whole step of all
    environments, or the run with a whole round.
    """
    record = read_yaml(shipped_path(Path(path))) if path is not None else {}
    for override in overrides:
        apply_override(record, override)
    source = str(path) if path else "the command line"
    config = validated(kind_of(record), record, source)
    if isinstance(config, Config):
        return config
    plan = config.off_policy
    if plan.round_steps % config.sim.num_envs:
        raise ConfigError(f"off_policy.round_steps in {source} is {plan.round_steps}; make it a multiple of sim.num_envs")
    if plan.env_steps % plan.round_steps:
        raise ConfigError(f"off_policy.env_steps in {source} is {plan.env_steps}; make it a multiple of off_policy.round_steps")
    return config

"""`vla-rl bench dsac`: updates a second, beside the structure of the authors' code and Stable-Baselines3's SAC, on one thread.

Legend: B samples, O observation size, D action size.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from rich.table import Table

from vla_rl.algorithms.dsac_t import DsacT
from vla_rl.bench.output import target_table
from vla_rl.bench.plain_dsac import PlainDsacT
from vla_rl.bench.spread import Spread, Target, ratios
from vla_rl.control_config import AlgorithmConfig
from vla_rl.machine import describe_machine
from vla_rl.replay import ReplayBuffer

OURS, OUR_SAC, PLAIN = "dsac_t", "sac", "reference structure"
SB3, SB3_RELU = "Stable-Baselines3 SAC", "Stable-Baselines3 SAC, ReLU"
SPEEDUP = 1.6
WARM_UP = 5
INSTALL_SB3 = "pip install stable-baselines3"


@dataclass(frozen=True)
class DsacSettings:
    """Sizes of HalfCheetah-v5 and the paper's networks."""

    observation_dim: int = 17
    action_dim: int = 6
    hidden: tuple[int, ...] = (256, 256, 256)
    batch_size: int = 256
    transitions: int = 20_000


@dataclass
class DsacBenchmark:
    settings: DsacSettings
    rates: dict[str, list[float]] = field(default_factory=dict)
    """Updates a second by system, one number a repeat; systems take turns within a repeat."""


def measure(
    settings: DsacSettings, seconds: float, repeats: int, on_progress: Callable[[DsacBenchmark], None] = lambda so_far: None
) -> DsacBenchmark:
    """Each system for `seconds` in all, batches drawn from its own replay buffer included."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        systems = _systems(settings)
        found = DsacBenchmark(settings, {name: [] for name in systems})
        for update in systems.values():
            for _ in range(WARM_UP):
                update()
        for _ in range(repeats):
            for name, update in systems.items():
                found.rates[name].append(_rate(update, seconds / repeats))
            on_progress(found)
        return found
    finally:
        torch.set_num_threads(threads)


def _rate(update: Callable[[], None], seconds: float) -> float:
    began, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < seconds:
        # Two at a time: every second update is the longer one.
        update()
        update()
        count += 2
    return count / (time.perf_counter() - began)


def _systems(settings: DsacSettings) -> dict[str, Callable[[], None]]:
    """Name -> one update."""
    transitions = _transitions(settings)
    systems = {name: _ours(name, settings, transitions) for name in (OURS, OUR_SAC)}
    systems[PLAIN] = _plain(settings, transitions)
    if importlib.util.find_spec("stable_baselines3") is not None:
        systems[SB3] = _sb3(settings, transitions, torch.nn.GELU)
        systems[SB3_RELU] = _sb3(settings, transitions, torch.nn.ReLU)
    return systems


def _transitions(settings: DsacSettings) -> tuple[np.ndarray, ...]:
    rng, count = np.random.default_rng(0), settings.transitions
    return (
        rng.standard_normal((count, settings.observation_dim), np.float32),
        rng.uniform(-1, 1, (count, settings.action_dim)).astype(np.float32),
        rng.standard_normal(count, np.float32),
        rng.random(count) < 0.01,
        rng.standard_normal((count, settings.observation_dim), np.float32),
    )


def _ours(name: str, settings: DsacSettings, transitions: tuple[np.ndarray, ...]) -> Callable[[], None]:
    config = AlgorithmConfig.model_validate({"name": name, "hidden": settings.hidden})
    learner = DsacT(config, settings.observation_dim, settings.action_dim, seed=0)
    replay = ReplayBuffer(settings.transitions, settings.observation_dim, settings.action_dim)
    replay.add(*transitions)
    rng, generator = np.random.default_rng(0), torch.Generator()
    return lambda: learner.update(replay.sample(settings.batch_size, rng), generator)


def _plain(settings: DsacSettings, transitions: tuple[np.ndarray, ...]) -> Callable[[], None]:
    learner = PlainDsacT(settings.observation_dim, settings.action_dim, settings.hidden)
    rng = np.random.default_rng(0)

    def update() -> None:
        rows = rng.integers(settings.transitions, size=settings.batch_size)
        observation, action, reward, terminated, following = (torch.from_numpy(part[rows]) for part in transitions)
        learner.update(observation, action, reward, terminated.float(), following)

    return update


def _sb3(settings: DsacSettings, transitions: tuple[np.ndarray, ...], activation: type[torch.nn.Module]) -> Callable[[], None]:
    """SAC as it ships but for the networks, on a space of these sizes; its replay buffer holds the same transitions."""
    import gymnasium

    sb3: Any = importlib.import_module("stable_baselines3")
    logger: Any = importlib.import_module("stable_baselines3.common.logger")

    class Spaces(gymnasium.Env):  # type: ignore[type-arg]
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (settings.observation_dim,), np.float32)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (settings.action_dim,), np.float32)

    networks = {"net_arch": list(settings.hidden), "activation_fn": activation}
    size = {"buffer_size": settings.transitions, "batch_size": settings.batch_size}
    model = sb3.SAC("MlpPolicy", Spaces(), policy_kwargs=networks, device="cpu", seed=0, **size)
    for observation, action, reward, terminated, following in zip(*transitions, strict=True):
        model.replay_buffer.add(observation, following, action, reward, np.array([terminated]), [{}])
    model.set_logger(logger.Logger(None, []))
    return lambda: model.train(1, settings.batch_size)


def targets(found: DsacBenchmark) -> list[Target]:
    wanted = []
    for name in (PLAIN, SB3):
        rates = found.rates.get(name)
        value = Spread.of(ratios(found.rates[OURS], rates)) if rates else None
        note = "" if rates else f"not installed: {INSTALL_SB3}"
        wanted.append(Target(f"dsac_t against {name}, one CPU thread", ">=", SPEEDUP, value, "x", note))
    return wanted


def tables(found: DsacBenchmark) -> list[Table]:
    s = found.settings
    networks = " x ".join(map(str, s.hidden))
    table = Table(title=f"updates a second on one CPU thread: networks of {networks}, batches of {s.batch_size}")
    for heading in ("system", "updates/s", "dsac_t against it"):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for name, rates in found.rates.items():
        against = "" if name == OURS else Spread.of(ratios(found.rates[OURS], rates)).text()
        table.add_row(name, Spread.of(rates).text(), against)
    return [table, target_table(targets(found))]


def to_dict(found: DsacBenchmark) -> dict[str, Any]:
    return {
        "settings": asdict(found.settings),
        "updates_per_s": found.rates,
        "targets": [target.to_dict() for target in targets(found)],
        "machine": describe_machine(),
    }

"""A run's directory: its configuration, metrics, checkpoints, evaluations, videos and report.

runs/NAME/  config.yaml  environment.json  metrics.jsonl  tensorboard/  checkpoints/  evaluation/  videos/  report.html
            stopped.txt (why training ended early, if it did)
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TextIO

import torch
from rich.console import Console
from typing_extensions import TypeVar

from vla_rl.checkpoint import save_checkpoint
from vla_rl.config import Config, ConfigError, Experiment
from vla_rl.config_files import load_section, read_yaml
from vla_rl.control_config import kind_of
from vla_rl.distributed.ranks import Ranks
from vla_rl.distributed.sharding import gathered
from vla_rl.machine import describe_machine
from vla_rl.metrics import MetricsLogger
from vla_rl.policies import PolicyError, load_policy
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.tensor_tree import load_tree, save_tree

MAY_CHANGE = {
    "run.root",
    "run.name",
    "run.resume",
    "run.threads",
    "run.device",
    "run.keep_checkpoints",
    "run.max_minutes",
    "run.max_episodes",
    "policy.gradient_checkpointing",
    "policy.compile",
    "sim.num_workers",
    "rl.iterations",
    "rl.checkpoint_every",
    "sft.checkpoint_every",
    "evaluation.every",
    "evaluation.episodes",
    "evaluation.interim_episodes",
    "evaluation.samples",
    "evaluation.sample_states",
    "evaluation.videos",
    "evaluation.bias_episodes",
    "off_policy.env_steps",
}
"""Keys that a resumed run may set anew: they change how long or how watched it is, not what it learns."""

ADAPTERS = "adapters"
"""Name of the files of adapters in a checkpoint's policy folder."""

RESULTS = ("checkpoints", "demonstrations", "evaluation")
STOPPED = "stopped.txt"


class RunError(RuntimeError):
    """The run directory cannot be used as asked; the message says why and how to mend it."""


AnyConfig = TypeVar("AnyConfig", bound=Experiment, default=Config)


class Saveable(Protocol):
    """A policy that a checkpoint can hold."""

    def save(self, path: Path) -> None: ...


class Run(Generic[AnyConfig]):
    """An open run directory, locked against a second process. Use as a context manager."""

    def __init__(self, config: AnyConfig, ranks: Ranks | None = None) -> None:
        """Create the directory, or continue in it (`run.resume=auto`). Of several ranks each has metrics of its own, the
        others than the first in `ranks/RANK/`; all else lies in the directory of the first.

        Raises `RunError` where another process is at work in it, where it exists and resume=never, or where it belongs to
        another configuration.
        """
        self.config = config
        self.ranks = ranks or Ranks()
        self.lead = config.run.root / config.run.name
        self.directory = self.lead if self.ranks.leads else self.lead / "ranks" / str(self.ranks.rank)
        self._lock = lock_directory(
            self.directory,
            "run directory",
            "set run.root",
            f"another process is at work in {self.directory}; wait for it or set run.name",
        )
        try:
            self._claim()
        except BaseException:
            self._lock.close()
            raise
        self.metrics = MetricsLogger(self.directory)

    def _claim(self) -> None:
        path = self.directory / "config.yaml"
        if path.exists():
            if self.config.run.resume == "never":
                raise RunError(f"{self.directory} exists already; set run.name, or run.resume=auto to continue it")
            changed = changed_keys(self.directory, self.config)
            if changed and has_results(self.directory):
                raise RunError(
                    f"{self.directory} was made with other values of {', '.join(sorted(changed))}; "
                    "set run.name to start a new run beside it, or give the same values to continue"
                )
            if changed:
                (self.directory / STOPPED).unlink(missing_ok=True)
        write_atomically(path, self.config.to_yaml())
        write_atomically(self.directory / "environment.json", json.dumps(describe_machine(), indent=1))

    def budget_is_spent(self, episodes: int) -> bool:
        """Whether no further round may begin after `episodes` training episodes (`run.max_episodes`, `run.max_minutes`).

        Time is that of the last metric record, so that a resumed run decides as the interrupted one did.
        """
        config = self.config.run
        late = config.max_minutes is not None and self.metrics.recorded_time >= 60 * config.max_minutes
        late = self.ranks.first(late)
        return late or (config.max_episodes is not None and episodes >= config.max_episodes)

    def checkpoints(self, phase: str) -> Path:
        return self.lead / "checkpoints" / phase

    def save(
        self, phase: str, step: int, policy: Saveable, optimizers: Mapping[str, torch.optim.Optimizer], state: dict[str, Any]
    ) -> None:
        """Write a checkpoint of a phase, atomically. All ranks call it; the others than the first give their shares to it."""
        if not self.ranks.leads:
            if isinstance(policy, OpenVLAPolicy) and isinstance(self.config, Config) and self.config.policy.sharded:
                for _ in policy.weights():
                    pass
                gathered([optimizer.state_dict() for optimizer in optimizers.values()])
            return
        save_checkpoint(
            self.checkpoints(phase),
            step,
            policy_save=partial(save_weights, policy),
            optimizers=optimizers,
            state=state,
            keep=self.config.run.keep_checkpoints,
        )

    def stop(self, reason: str) -> None:
        """Note that training ends before its last iteration, and why; the report shows it."""
        write_atomically(self.directory / STOPPED, reason)
        Console().print(f"training stopped: {reason}", highlight=False, soft_wrap=True)

    @property
    def stopped(self) -> bool:
        """Whether training has ended early. It would again, as a run repeats itself."""
        return bool(self.ranks.first((self.directory / STOPPED).exists()))

    def close(self) -> None:
        self.metrics.close()
        self._lock.close()

    def __enter__(self) -> Run[AnyConfig]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def lock_directory(directory: Path, name: str, mend: str, busy: str) -> TextIO:
    """Make the directory and lock it against other processes until the file that is returned is closed.

    Raises `RunError` where it cannot be written, which says what it is (`name`) and how to mend that, or with the message
    `busy` where another process has the lock.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / ".lock").open("w")
    except OSError as error:
        raise RunError(f"cannot write the {name} {directory}: {error.strerror}; {mend}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise RunError(busy) from None
    return file


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step, so that a kill leaves the old or the new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def flatten(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections -> values by dotted key."""
    flat = {}
    for key, value in record.items():
        # An empty section is a value: the part of an objective that has no settings, for one.
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value})
    return flat


def differing_keys(first: Experiment, second: Experiment) -> set[str]:
    """Dotted keys in which two configurations differ."""
    a, b = flatten(first.model_dump(mode="json")), flatten(second.model_dump(mode="json"))
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}


def has_results(directory: Path) -> bool:
    """Whether a run has made anything there yet; one that failed at its first step may be configured anew."""
    return any(any((directory / name).glob("**/*")) for name in RESULTS)


def changed_keys(directory: Path, config: Experiment, decisive: Collection[str] = ()) -> set[str]:
    """Dotted keys that the run in `directory` has other values of, without those that a resumed run may set anew.

    Those of them that are `decisive` count nevertheless.
    """
    path = directory / "config.yaml"
    if not path.exists():
        return set()
    return differing_keys(load_section(kind_of(read_yaml(path)), path), config) - (MAY_CHANGE - set(decisive))


def config_of(path: Path) -> Path:
    """The configuration file that a path means: itself, or that of a run directory."""
    if path.is_dir():
        if not (path / "config.yaml").exists():
            raise ConfigError(f"{path} is a folder without config.yaml, so not a run; give a run directory or a YAML file")
        return path / "config.yaml"
    return path


def place_of(path: Path | None) -> list[str]:
    """Overrides with which the configuration of a run directory means that directory, wherever it was moved to."""
    if path is None or not path.is_dir():
        return []
    directory = path.resolve()
    return [f"run.root={json.dumps(str(directory.parent))}", f"run.name={json.dumps(directory.name)}"]


def choose_device(name: str) -> torch.device:
    """`auto` takes the first GPU, or else the CPU. Raises `ConfigError` for a device that this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"run.device is {name!r}, which cannot be used here: {reason}; set run.device=auto") from None
    return device


def set_threads(threads: int) -> None:
    """Use that many CPU threads, or one a core for 0; results repeat bit for bit at the same number only."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


def prepare_for_training(policy: OpenVLAPolicy, config: Config, adapters: bool = True) -> None:
    """Give a policy that has weights worth keeping the adapters, and any policy the memory savings, that are configured."""
    rank = config.policy.lora_rank
    if rank and adapters:
        policy.adapt(rank, config.policy.lora_alpha or min(rank, 16), config.run.seed)
    if config.policy.compile:
        policy.compile_blocks()
    if config.policy.gradient_checkpointing:
        policy.recompute_activations()


def save_weights(policy: Saveable, folder: Path) -> None:
    """Write a policy, with its adapters merged, and beside it the adapters, as the sum does not tell its parts."""
    policy.save(folder)
    if isinstance(policy, OpenVLAPolicy) and policy.is_adapted:
        save_tree(folder, ADAPTERS, {"frozen": policy.frozen_digest(), "state": policy.state_dict()})


def load_weights(policy: OpenVLAPolicy, folder: Path) -> None:
    """Put the weights and version that `save_weights` wrote into `policy`, of which adapters keep their frozen weights.

    Raises `PolicyError` where the saved policy is of another architecture, or its adapters belong to other weights. Give it
    a folder of the checkpoint that `latest_checkpoint` found whole.
    """
    # On the CPU, where files are mapped and not read whole: a GPU has no room for a second policy of billions of weights.
    saved = load_policy(folder, "cpu", verify=False)
    if saved.config != policy.config:
        raise PolicyError(f"the policy in {folder} has another architecture; resume with the configuration of the run")
    state = saved.state_dict()
    if policy.is_adapted:
        record = load_tree(folder, ADAPTERS)
        if record["frozen"] != policy.frozen_digest():
            raise PolicyError(
                f"the adapters in {folder} belong to other weights than those that this run starts from; "
                "put back the policy (policy.checkpoint, or the run's supervised start) with which the run began"
            )
        state = record["state"]
    policy.load_state_dict(state)
    policy.version = saved.version

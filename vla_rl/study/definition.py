"""A study file, and the runs that it means."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from vla_rl.config import Config, ConfigError, Count, Positive, Rate, Section, TaskConfig
from vla_rl.config_files import apply_override, load_config, read_yaml, shipped_path, validated
from vla_rl.run import MAY_CHANGE, flatten

Setting = bool | int | float | str | list[Any] | None
SET_BY_THE_STUDY = {
    "run.name": "the study names its runs",
    "run.root": "set `root`",
    "run.seed": "set `seeds`",
    "run.resume": "a study always resumes",
    "run.max_minutes": "set `minutes`",
    "run.max_episodes": "set `episodes`",
}
VARIANT = re.compile(r"[\w.,=+-]+")


class StudyFile(Section):
    """What a study file may say. Settings are dotted keys of a configuration, such as `rl.temperature: 1.0`."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Name of the study's folder."""
    base: Path | None = None
    """Configuration that all variants begin with; by default every value is the default."""
    root: Path = Path("runs")
    """Folder of the study's folder."""
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)] = (0,)
    """Each variant is run once with each of them."""
    at_once: Positive = 1
    """Runs that go on side by side; each takes `run.threads` threads and `sim.num_workers` processes."""
    minutes: Rate | None = None
    """Time budget of a run: no round begins later, and the final evaluation follows."""
    episodes: Positive | None = None
    """No round of a run begins after so many training episodes."""
    settings: dict[str, Setting] = {}
    """For all runs."""
    variants: dict[str, dict[str, Setting] | None] = {}
    """Name of a variant -> what it sets beyond `settings`."""
    grid: dict[str, Annotated[list[Setting], Field(min_length=1)]] = {}
    """Instead of `variants`: values of each key; every combination is a variant."""


@dataclass(frozen=True)
class Job:
    """A run of a study, or a supervised start that several of its runs share."""

    config: Config
    variant: str | None
    """None: a shared start."""
    start: Job | None = None
    """What must be finished before."""

    @property
    def name(self) -> str:
        return self.config.run.name

    @property
    def directory(self) -> Path:
        return self.config.run.root / self.name

    @property
    def log(self) -> Path:
        return self.config.run.root / "logs" / f"{self.name}.log"

    @property
    def is_finished(self) -> bool:
        """Whether its last evaluation is there."""
        last = "start.json" if self.variant is None else "final.json"
        folders = ["evaluation", "pass_at_k"] if self.config.evaluation.samples else ["evaluation"]
        return all((self.directory / folder / last).exists() for folder in folders)


@dataclass(frozen=True)
class Study:
    """A study that can be run: its file, its variants in order, and its jobs in the order in which they begin."""

    file: StudyFile
    variants: Mapping[str, Mapping[str, Setting]]
    jobs: Sequence[Job]

    @property
    def directory(self) -> Path:
        return self.file.root / self.file.name

    @property
    def definition(self) -> str:
        """YAML."""
        return yaml.safe_dump(self.file.model_dump(mode="json", exclude_defaults=True), sort_keys=False)


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file; `overrides` set its own keys (`minutes=5`, `seeds=[0]`) or, dotted, settings of all runs.

    Raises `ConfigError` in one line for a file that is missing or malformed, an unknown key, a variant whose configuration
    is wrong, and variants that do not differ.
    """
    record = read_yaml(shipped_path(Path(path)))
    for override in overrides:
        given: dict[str, Any] = {}
        apply_override(given, override)
        if "." in override.partition("=")[0]:
            settings = record.get("settings") or {}
            record["settings"] = settings | flatten(given) if isinstance(settings, dict) else settings
        else:
            record |= given
    file = validated(StudyFile, record, str(path))
    if len(set(file.seeds)) < len(file.seeds):
        raise ConfigError(f"{path} names a seed twice: {list(file.seeds)}")
    variants = _variants(file, path)
    configs = {(name, seed): _config(file, name, values, seed, path) for seed in file.seeds for name, values in variants.items()}
    _check_different(variants, {name: configs[name, file.seeds[0]] for name in variants}, path)
    return Study(file, variants, _jobs(configs))


def _variants(file: StudyFile, path: Path) -> dict[str, dict[str, Setting]]:
    if bool(file.variants) == bool(file.grid):
        raise ConfigError(f"{path} needs either `variants` or `grid`, and not both")
    if file.grid:
        combinations = [dict(zip(file.grid, values, strict=True)) for values in itertools.product(*file.grid.values())]
        found = {_name_of(values): values for values in combinations}
        if len(found) < len(combinations):
            raise ConfigError(f"two combinations of the grid in {path} become one folder; name them yourself, under `variants`")
    else:
        found = {name: values or {} for name, values in file.variants.items()}
    for name, values in found.items():
        if not VARIANT.fullmatch(name):
            raise ConfigError(f"the variant {name!r} in {path} becomes a folder: use letters, digits and . , = + - _")
        for key in [*file.settings, *values]:
            if key in SET_BY_THE_STUDY:
                raise ConfigError(f"{path} sets {key}, which a study does itself: {SET_BY_THE_STUDY[key]}")
            if "." not in key:
                raise ConfigError(f"{path} sets {key!r}; settings are dotted keys such as rl.temperature")
    return found


def _name_of(values: Mapping[str, Setting]) -> str:
    """`rl.temperature=0.5,curriculum.name=dump`"""
    return ",".join(f"{key}=" + re.sub(r"[^\w.+-]+", "_", str(value)) for key, value in values.items())


def _config(file: StudyFile, variant: str, values: Mapping[str, Setting], seed: int, path: Path) -> Config:
    settings = {
        **file.settings,
        **values,
        "run.name": f"{variant}_seed{seed}",
        "run.root": str(file.root / file.name),
        "run.seed": seed,
        "run.max_minutes": file.minutes,
        "run.max_episodes": file.episodes,
    }
    try:
        return load_config(file.base, _overrides(settings))
    except ConfigError as error:
        raise ConfigError(f"{path}, variant {variant!r}: {error}") from None


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    # JSON is YAML, and keeps a text that looks like something else a text.
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _check_different(variants: Mapping[str, Any], configs: Mapping[str, Config], path: Path) -> None:
    seen: dict[str, str] = {}
    for name in variants:
        record = configs[name].model_dump(mode="json")
        record["run"] |= {"name": ""}
        same = seen.setdefault(json.dumps(record, sort_keys=True), name)
        if same != name:
            raise ConfigError(f"the variants {same!r} and {name!r} in {path} set the same values")


def _jobs(configs: Mapping[tuple[str, int], Config]) -> list[Job]:
    """Seed by seed, so that an interrupted study compares all variants on some seeds; each start before its first run."""
    starts: dict[str, Job] = {}
    jobs = []
    for (variant, _), config in configs.items():
        if config.policy.checkpoint is not None or config.policy.path is not None:
            jobs.append(Job(config, variant))
            continue
        start = Job(_start_config(config), None)
        if start.name not in starts:
            starts[start.name] = start
            jobs.append(start)
        jobs.append(Job(_begin_at(config, start.directory), variant, starts[start.name]))
    return jobs


def _start_config(config: Config) -> Config:
    """The supervised start of a run: what decides about it and its evaluation, and defaults elsewhere.

    Variants that differ only in reinforcement learning therefore have the same one, by name too.
    """
    start = Config(
        run=config.run.model_copy(update={"name": "", "max_minutes": None, "max_episodes": None}),
        task=config.task.model_copy(update={"shipped_states": TaskConfig().shipped_states}),
        sim=config.sim,
        policy=config.policy,
        demonstrations=config.demonstrations,
        sft=config.sft,
        evaluation=config.evaluation,
    )
    decisive = {key: value for key, value in flatten(start.model_dump(mode="json")).items() if key not in MAY_CHANGE}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
    return start.model_copy(update={"run": start.run.model_copy(update={"name": f"start_seed{start.run.seed}_{digest}"})})


def _begin_at(config: Config, start: Path) -> Config:
    """The run's configuration with the shared start's policy and demonstrations."""
    policy = config.policy.model_copy(update={"checkpoint": start})
    path = config.demonstrations.path or start / "demonstrations"
    demonstrations = config.demonstrations.model_copy(update={"path": path})
    return config.model_copy(update={"policy": policy, "demonstrations": demonstrations})

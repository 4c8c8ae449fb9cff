"""Configurations from YAML files, which set fields by section, and the command line, which overrides them: `rl.iterations=50`."""

from __future__ import annotations

import contextlib
import difflib
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vla_rl.config import Config, ConfigError

Model = TypeVar("Model", bound=BaseModel)


def load_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply overrides `section.key=value` (values are YAML: 3, 1e-4, true, [0, 1], null).

    Raises `ConfigError` in one line for a missing or malformed file, an unknown key or a value out of range.
    """
    return load_section(Config, path, overrides)


def load_section(model: type[Model], path: Path | str | None = None, overrides: Sequence[str] = ()) -> Model:
    """As `load_config`, for any section: `suite=libero_goal episodes=20` are overrides of `CollectSettings`."""
    record = read_yaml(shipped_path(Path(path))) if path is not None else {}
    for override in overrides:
        apply_override(record, override)
    return validated(model, record, source=str(path) if path else "the command line")


def validated(model: type[Model], record: dict[str, Any], source: str) -> Model:
    """The model of a record that came from `source`. Raises `ConfigError` in one line for what does not fit."""
    try:
        return model.model_validate(record)
    except ValidationError as error:
        raise ConfigError(_explain(error, model, source)) from None


def shipped_path(path: Path) -> Path:
    """`path`, or where an installation keeps it: `configs/NAME.yaml` is found in an installation without a checkout, too."""
    installed = Path(sysconfig.get_path("data")) / "share" / "vla_rl" / path
    return installed if not path.exists() and installed.exists() else path


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a YAML file. Raises `ConfigError` where there is no such file or it holds something else."""
    try:
        record = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}; the shipped ones are in configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if record is None:
        return {}
    if not isinstance(record, dict):
        raise ConfigError(f"{path} must hold sections such as `sim:` and `rl:`, not a {type(record).__name__}")
    return record


def apply_override(record: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in a record. Raises `ConfigError` where the override cannot be read or set."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"cannot read the override {override!r}; write section.key=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that no calendar has
        raise ConfigError(f"the value of the override {override!r} is not valid YAML; put a text in quotes") from None
    if isinstance(value, str) and value == text.strip():  # not where it is in quotes
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-4, which has no dot, as a string
            value = float(value)
    *parents, last = key.split(".")
    node = record
    for parent in parents:
        node[parent] = node = {} if node.get(parent) is None else node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"the override {override!r} goes below {parent!r}, which is not a section")
    node[last] = value


def _known_keys(model: Any, location: Sequence[str | int]) -> list[str]:
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(str(part))
        model = getattr(field, "annotation", None)
    return list(getattr(model, "model_fields", {}))


def _explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"unknown key {key!r} in {source}; {hint}"
    rest = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{key} in {source} is {first['input']!r}: {first['msg']}{rest}"

"""What must go with an exported policy: everything that decides what its numbers mean, and hashes of its files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from vla_rl.config import Count, Positive, Rate, Section
from vla_rl.driving.observation import observation_fields
from vla_rl.driving.settings import RobotSettings

MANIFEST, MODEL = "manifest.json", "policy.onnx"
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ExportError(ValueError):
    """An export cannot be made or used as asked; the message names what differs and how to mend it."""


class ObservationPart(Section):
    """Some neighbouring numbers of an observation, as `vla_rl.driving.observation.Field`."""

    name: str
    size: Positive
    unit: str
    frame: str
    scale: str


class ActionPart(Section):
    """A dimension of the action, in [-1, 1], and the command that it means."""

    name: str
    unit: str
    frame: str
    low: float
    """Command of action -1."""
    high: float
    """Command of action 1; action 0 is 0."""


class ModelFile(Section):
    """The ONNX file: `observation` [B, O] in, `action` [B, 2] in [-1, 1] and `command` [B, 2] in m/s and rad/s out."""

    file: str
    sha256: Sha256
    opset: Positive
    hidden: tuple[Positive, ...]
    version: Count
    """Updates that the policy had."""


class Parity(Section):
    """The largest difference between the ONNX file's actions and the trained policy's, on the simulator's observations."""

    observations: Positive
    difference: Annotated[float, Field(ge=0)]
    bound: Rate


class Manifest(Section):
    format: Literal[1] = 1
    model: ModelFile
    observation: tuple[ObservationPart, ...]
    """In order."""
    action: tuple[ActionPart, ...]
    robot: RobotSettings
    """Beam layout, limits, safety layer, periods and view that the policy was trained with."""
    control_hz: Rate
    """Of the commands."""
    decision_hz: Rate
    """Of the policy."""
    parity: Parity
    training: dict[str, Any]
    """Configuration of the run."""
    training_sha256: Sha256
    """Of that configuration as JSON with sorted keys."""
    software: str
    """That exported it."""


def observation_parts(settings: RobotSettings) -> tuple[ObservationPart, ...]:
    return tuple(ObservationPart(**vars(field)) for field in observation_fields(settings))


def action_parts(settings: RobotSettings) -> tuple[ActionPart, ...]:
    limits = settings.limits
    return (
        ActionPart(name="forward", unit="m/s", frame="base_link", low=-limits.reverse, high=limits.speed),
        ActionPart(name="left turn", unit="rad/s", frame="base_link", low=-limits.turn, high=limits.turn),
    )


def record_sha256(record: Mapping[str, Any]) -> str:
    """Of a record as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_manifest(folder: Path, settings: RobotSettings | None = None) -> Manifest:
    """The manifest of an export, after everything in it was checked: hashes, and agreement with this software and a robot.

    `settings` are the robot's own; None: it has the export's. Raises `ExportError` in one line that names what differs.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError:
        raise ExportError(f"there is no export in {folder}: no {MANIFEST}; make one with: vla-rl export RUN") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ExportError(f"{path} is no manifest of this version: {key}: {first['msg']}; export the run again") from None
    model = folder / manifest.model.file
    if not model.is_file() or file_sha256(model) != manifest.model.sha256:
        raise ExportError(f"{model} is not the file that {path} was written for (its sha256 differs); export the run again")
    if record_sha256(manifest.training) != manifest.training_sha256:
        raise ExportError(f"training in {path} was changed after the export (its sha256 differs); export the run again")
    built = {"observation": observation_parts(manifest.robot), "action": action_parts(manifest.robot)}
    for name, parts in built.items():
        theirs = [part.model_dump() for part in getattr(manifest, name)]
        if found := differences({name: theirs}, {name: [part.model_dump() for part in parts]}):
            raise ExportError(f"{path} was made for another observation builder: {found[0]}; export the run again")
    if settings is not None and (found := differences(manifest.robot.model_dump(), settings.model_dump())):
        more = f" (and {len(found) - 1} more: {', '.join(text.split(' is ')[0] for text in found[1:4])})" if found[1:] else ""
        raise ExportError(f"the policy in {folder} is for another robot: {found[0]} on this one{more}")
    return manifest


def differences(theirs: Any, ours: Any, key: str = "") -> list[str]:
    """What differs between two records, as `limits.speed is 0.4 in the export, but 1.2`; numbers may differ by rounding."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        keys = [*theirs, *(name for name in ours if name not in theirs)]
        parts = ((theirs.get(name), ours.get(name), f"{key}.{name}" if key else str(name)) for name in keys)
        return [text for part in parts for text in differences(*part)]
    if isinstance(theirs, list | tuple) and isinstance(ours, list | tuple) and len(theirs) == len(ours):
        pairs = enumerate(zip(theirs, ours, strict=True))
        return [text for i, (a, b) in pairs for text in differences(a, b, f"{key}[{i}]")]
    both_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (theirs, ours))
    same = math.isclose(theirs, ours, rel_tol=1e-6, abs_tol=1e-9) if both_numbers else theirs == ours
    return [] if same else [f"{key} is {theirs!r} in the export, but {ours!r}"]

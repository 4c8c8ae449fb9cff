"""Tiny original checkpoints, and what the published encoders' sizes are taken to be while they are loaded."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from vla_rl.policies.openvla import original_config
from vla_rl.policies.openvla.original_config import CheckpointOptions


def _load_tiny() -> ModuleType:
    """The module beside this file, which the originals' environment imports as a script does."""
    name = "tiny_checkpoints"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    return _load_tiny()


@pytest.fixture(autouse=True)
def tiny_encoders(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def shrink(config: original_config.FeaturizerConfig) -> original_config.FeaturizerConfig:
        size = tiny.DINOV2 if config.kind == "dinov2" else tiny.SIGLIP
        return replace(
            config,
            width=size["embed_dim"],
            layers=size["depth"] - 1,
            heads=size["num_heads"],
            mlp_width=size["embed_dim"] * size["mlp_ratio"],
        )

    for name, (_, featurizers) in original_config.BACKBONES.items():
        smaller = tiny.IMAGE_SIZE, tuple(shrink(f) for f in featurizers)
        monkeypatch.setitem(original_config.BACKBONES, name, smaller)


@pytest.fixture(scope="session")
def checkpoints(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a case of `tiny_checkpoints.CASES`, written once; not to be changed."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(name: str) -> Path:
        return root / name if (root / name).exists() else tiny.write_checkpoint(root / name, tiny.CASES[name])

    return folder


@pytest.fixture
def options(tiny: ModuleType) -> Callable[[str], CheckpointOptions]:
    """What a user says of a case: its cameras, and whether it decodes in parallel where no file tells."""

    def of(name: str) -> CheckpointOptions:
        case = tiny.CASES[name]
        cameras = ("agentview", "robot0_eye_in_hand")[: case.images]
        return CheckpointOptions(cameras=cameras, decoding="parallel" if case.oft else None)

    return of

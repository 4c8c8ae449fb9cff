"""`vla-rl export`: a trained driving policy as policy.onnx and manifest.json, proven equal to the one that was trained.

Legend: B rows, O observation size.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from vla_rl.control_config import ControlConfig, load_experiment
from vla_rl.driving.manifest import (
    MANIFEST,
    MODEL,
    ExportError,
    Manifest,
    ModelFile,
    Parity,
    action_parts,
    file_sha256,
    observation_parts,
    record_sha256,
)  # fmt: skip
from vla_rl.driving.settings import RobotSettings
from vla_rl.policies.best import chosen_policy
from vla_rl.policies.gaussian import GaussianPolicy
from vla_rl.robot.exported import ExportedPolicy
from vla_rl.run import config_of
from vla_rl.sim.control import evaluation_seeds
from vla_rl.sim.wheeled.settings import TASKS, task_settings
from vla_rl.sim.wheeled.simulator import WheeledControl

OPSET = 18
PARITY_BOUND = 1e-5
"""Of the difference of two actions, which lie in [-1, 1]."""
PARITY_ENVS, PARITY_STEPS = 16, 64
"""Episodes and decisions whose observations the two policies are compared on."""


class _Deterministic(nn.Module):
    """The middle of the Gaussian, as an action and as the command that it means."""

    def __init__(self, policy: GaussianPolicy, settings: RobotSettings) -> None:
        super().__init__()
        parts = action_parts(settings)
        self.policy = policy
        self.low = nn.Buffer(torch.tensor([-part.low for part in parts]))
        self.high = nn.Buffer(torch.tensor([part.high for part in parts]))

    def forward(self, observation: Float[Tensor, "B O"]) -> tuple[Float[Tensor, "B 2"], Float[Tensor, "B 2"]]:
        action = torch.tanh(self.policy(observation)[0])
        return action, torch.relu(action) * self.high - torch.relu(-action) * self.low


def export_run(run: Path, folder: Path | None = None, best: bool = False) -> Path:
    """Export the newest (or best) policy of a run directory into `folder`, by default `export` in the run; returns it.

    Raises `ExportError` where the run drives no wheeled robot, where `folder` is something else, and where the exported policy
    does not act like the trained one.
    """
    config = load_experiment(config_of(run))
    if not isinstance(config, ControlConfig) or config.sim.name not in ("wheeled", "irsim") or config.sim.id not in TASKS:
        raise ExportError(f"{run} trained no driving policy; only runs with sim.name=wheeled can be exported")
    return export_policy(chosen_policy(run, best), config, folder or run / "export")


def export_policy(policy: GaussianPolicy, config: ControlConfig, folder: Path) -> Path:
    """Write an export of `policy`, which `config` describes; as `export_run`."""
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise ExportError(f"{folder} exists and is no export; give another folder")
    settings = task_settings(config.sim.id, config.sim.options).robot
    observations = simulated_observations(config, policy)
    if policy.observation_dim != (width := observations.shape[1]) or policy.action_dim != 2:
        raise ExportError(f"the policy takes {policy.observation_dim} numbers, the task's observation has {width}")
    writing = folder.with_name(folder.name + ".writing")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    _write_onnx(_Deterministic(policy, settings).eval().cpu(), observations[:1], writing / MODEL)
    _write_manifest(policy, config, settings, _parity(policy, observations, writing / MODEL), writing)
    ExportedPolicy(writing, settings)
    shutil.rmtree(folder, ignore_errors=True)
    writing.rename(folder)
    return folder


def simulated_observations(config: ControlConfig, policy: GaussianPolicy | None = None) -> Float32[np.ndarray, "B O"]:
    """Observations of held-out episodes: half of the environments are driven by the policy, half at random."""
    sim = WheeledControl(config.sim.id, PARITY_ENVS, **config.sim.options)
    observation, seen = sim.reset(evaluation_seeds(PARITY_ENVS)), []
    rng = np.random.default_rng(0)
    for _ in range(PARITY_STEPS):
        seen.append(observation)
        actions = rng.uniform(-1, 1, (PARITY_ENVS, 2)).astype(np.float32)
        if policy is not None and policy.observation_dim == sim.observation_dim:
            actions[::2] = policy.act(observation)[::2]
        observation = sim.step(actions).observation
    return np.concatenate(seen)


def _write_onnx(module: nn.Module, example: Float32[np.ndarray, "B O"], path: Path) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"{error.name} is not installed: pip install 'vla_rl[onnx]'") from None
    with _quiet():
        program = torch.onnx.export(
            module, (torch.from_numpy(example),), input_names=["observation"], output_names=["action", "command"],
            dynamic_shapes={"observation": {0: torch.export.Dim("batch")}}, opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    # Weights stay inside the file: one file, one hash.
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(path), save_as_external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


def _parity(policy: GaussianPolicy, observations: Float32[np.ndarray, "B O"], model: Path) -> Parity:
    """Raises `ExportError` where the two policies differ by more than the bound."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    exported = session.run(["action"], {"observation": observations})[0]
    difference = float(np.abs(exported - policy.act(observations)).max())
    if not difference <= PARITY_BOUND:
        raise ExportError(f"the exported policy differs from the trained one by {difference:.1e}, more than {PARITY_BOUND}")
    return Parity(observations=len(observations), difference=difference, bound=PARITY_BOUND)


def _write_manifest(policy: GaussianPolicy, config: ControlConfig, settings: RobotSettings, parity: Parity, folder: Path) -> None:
    training = config.model_dump(mode="json", exclude={"run": {"root"}})
    manifest = Manifest(
        model=ModelFile(
            file=MODEL, sha256=file_sha256(folder / MODEL), opset=OPSET, hidden=policy.hidden, version=policy.version
        ),
        observation=observation_parts(settings),
        action=action_parts(settings),
        robot=settings,
        control_hz=1 / settings.control_period,
        decision_hz=1 / settings.decision_period,
        parity=parity,
        training=training,
        training_sha256=record_sha256(training),
        software=f"vla_rl {version('vla_rl')}",
    )  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")

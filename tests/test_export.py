"""An export acts as the policy that was trained, and refuses to drive what it was not made for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import OPEN_FIELD, hand_made_export, steering_policy, tracking_config

from vla_rl.config_files import validated
from vla_rl.control_config import load_experiment
from vla_rl.driving.manifest import ExportError, differences, file_sha256, read_manifest
from vla_rl.driving.safety import command_of
from vla_rl.driving.settings import FAST, RobotSettings
from vla_rl.export import export_policy, export_run, simulated_observations
from vla_rl.policies.gaussian import GaussianPolicy
from vla_rl.robot.exported import ExportedPolicy


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hand_made_export(tmp_path_factory.mktemp("export") / "hand_made")


@pytest.fixture
def copy(export: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in export.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_it_acts_as_the_trained_policy_does(tmp_path: Path) -> None:
    """A network as large as trained ones, on observations of the simulator other than those of the export's own check."""
    torch.manual_seed(3)
    config = load_experiment("configs/wheeled_tracking.yaml")
    policy = GaussianPolicy(78, 2)
    with torch.no_grad():
        policy.network[-1].weight *= 60  # actions up to the ends, not all near 0
    exported = ExportedPolicy(export_policy(policy, config, tmp_path / "export"))  # type: ignore[arg-type]
    observations = simulated_observations(config)  # type: ignore[arg-type]
    actions = exported.act(observations)
    assert np.abs(actions).max() > 0.5 and actions.dtype == np.float32
    assert np.abs(actions - policy.act(observations)).max() <= 1e-5
    assert exported.manifest.parity.difference <= 1e-5 and exported.manifest.parity.observations == 1024


def test_the_file_also_gives_commands(export: Path) -> None:
    import onnxruntime

    settings = read_manifest(export).robot
    session = onnxruntime.InferenceSession(str(export / "policy.onnx"), providers=["CPUExecutionProvider"])
    observations = np.random.default_rng(0).normal(0, 1, (50, 78)).astype(np.float32)
    action, command = session.run(["action", "command"], {"observation": observations})
    assert command == pytest.approx(command_of(settings, action), abs=1e-6)


def test_the_manifest_says_what_a_robot_needs(export: Path) -> None:
    manifest = read_manifest(export, RobotSettings())
    assert [(part.name, part.size) for part in manifest.observation] == [
        ("scan", 30), ("scan 3 decisions ago", 30), ("velocity", 2), ("last command", 2), ("path error", 3), ("path ahead", 10),
        ("remaining", 1),
    ]  # fmt: skip
    assert (manifest.control_hz, manifest.decision_hz) == (50, 10)
    assert [(part.unit, part.low, part.high) for part in manifest.action] == [
        ("m/s", -0.1, 0.4), ("rad/s", pytest.approx(-np.pi / 3), pytest.approx(np.pi / 3)),
    ]  # fmt: skip
    assert manifest.model.sha256 == file_sha256(export / "policy.onnx") and manifest.model.version == 7
    assert manifest.training["sim"]["options"] == OPEN_FIELD and manifest.training["algorithm"]["name"] == "dsac_t"


def test_another_robot_is_refused_with_the_field_that_differs(export: Path) -> None:
    heavier = validated(RobotSettings, {"limits": {"braking": 2.0}}, "a test")
    with pytest.raises(ExportError, match=r"another robot: limits\.braking is 2\.5 in the export, but 2\.0 on this one$"):
        ExportedPolicy(export, heavier)
    other_scanner = validated(RobotSettings, {"scanner": {"angle_min": 0.0}, "view": {"sectors": 20}}, "a test")
    with pytest.raises(ExportError, match=r"scanner\.angle_min is -3\.14\d+ .* \(and 1 more: view\.sectors\)"):
        ExportedPolicy(export, other_scanner)
    with pytest.raises(ExportError, match="radius is 0.17 in the export, but 0.25"):
        ExportedPolicy(export, FAST)


def test_differences_forgive_rounding_and_see_everything_else() -> None:
    assert differences({"a": 1 / 3, "b": [1, 2]}, {"a": 0.3333333333, "b": (1, 2)}) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3}) == [
        "a.b is 1 in the export, but 2", "c is None in the export, but 3",
    ]  # fmt: skip
    assert differences({"a": [1, 2]}, {"a": [1]}) == ["a is [1, 2] in the export, but [1]"]
    assert differences({"a": True}, {"a": 1.5}) != []


def test_changed_files_are_refused(copy: Path) -> None:
    weights = copy / "policy.onnx"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ExportError, match=r"policy\.onnx is not the file that .* was written for"):
        ExportedPolicy(copy)
    weights.unlink()
    with pytest.raises(ExportError, match="is not the file"):
        ExportedPolicy(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["training"]["algorithm"].update(gamma=0.5), "training in .* was changed after the export"),
        (lambda record: record["observation"].reverse(), r"another observation builder: observation\[0\]\.name is 'remaining'"),
        (lambda record: record["robot"]["limits"].update(speed=0.8), r"observation\[2\]\.scale is '/ 0\.4.*, but '/ 0\.8"),
        (lambda record: record.update(extra=1), "is no manifest of this version: extra"),
    ],
)
def test_changed_manifests_are_refused(copy: Path, change: object, message: str) -> None:
    record = json.loads((copy / "manifest.json").read_text())
    change(record)  # type: ignore[operator]
    (copy / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(ExportError, match=message):
        read_manifest(copy)


def test_a_run_directory_is_exported(tmp_path: Path) -> None:
    config = tracking_config()
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "off_policy" / "step_000000010" / "policy"
    checkpoint.mkdir(parents=True)
    (run / "config.yaml").write_text(config.to_yaml())
    policy = steering_policy(RobotSettings())
    policy.save(checkpoint)
    first = export_run(run)
    assert first == run / "export" and read_manifest(first).model.version == 7
    policy.version = 8
    policy.save(checkpoint)
    assert read_manifest(export_run(run)).model.version == 8, "an older export is replaced"
    with pytest.raises(ExportError, match="exists and is no export; give another folder"):
        export_run(run, tmp_path)


def test_a_run_without_a_robot_is_refused(tmp_path: Path) -> None:
    config = load_experiment("configs/pendulum_dsac_t.yaml")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    with pytest.raises(ExportError, match=r"trained no driving policy; only runs with sim\.name=wheeled can be exported"):
        export_run(tmp_path)


def test_a_policy_of_another_observation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the policy takes 70 numbers, the task's observation has 78"):
        export_policy(GaussianPolicy(70, 2, (4,)), tracking_config(), tmp_path / "export")


def test_driving_needs_neither_torch_nor_a_simulator(export: Path) -> None:
    code = (
        "import sys, numpy; from pathlib import Path; from vla_rl.robot.exported import ExportedPolicy\n"
        f"action = ExportedPolicy(Path({str(export)!r})).act(numpy.zeros((1, 78), numpy.float32))\n"
        "assert 'onnxruntime' in sys.modules and action.shape == (1, 2)\n"
        "assert not {'torch', 'onnx', 'mujoco', 'rclpy', 'vla_rl.sim'} & set(sys.modules)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr

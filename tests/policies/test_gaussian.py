import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_rl.policies.base import PolicyError
from vla_rl.policies.gaussian import GaussianPolicy, squashed_log_prob
from vla_rl.policies.locate import policy_folder


def test_log_prob_by_hand() -> None:
    # u = .5 with mean 0 and std .5, so noise 1. log N = -.5 - log .5 - .918939 = -.725791.
    # 1 - tanh(.5)^2 = 1 - .462117^2 = .786448, its logarithm -.240229. log pi = -.725791 + .240229 = -.485562.
    found = squashed_log_prob(torch.tensor([[0.5]]), torch.tensor([[math.log(0.5)]]), torch.tensor([[1.0]]))
    assert float(found) == pytest.approx(-0.485562, abs=1e-5)


def test_log_probs_are_a_density_over_actions() -> None:
    """They integrate to 1 over [-1, 1], whatever mean and std."""
    action = torch.linspace(-1, 1, 40001, dtype=torch.float64)[1:-1]
    before, log_std, mean = torch.atanh(action)[:, None], torch.tensor(0.2, dtype=torch.float64), 0.4
    density = squashed_log_prob(before, log_std, (before - mean) / log_std.exp()).exp()
    assert float(torch.trapezoid(density, action)) == pytest.approx(1.0, abs=1e-3)


def test_log_prob_is_finite_where_tanh_has_rounded_to_one() -> None:
    before = torch.tensor([[30.0], [-30.0]], requires_grad=True)
    log_prob = squashed_log_prob(before, torch.zeros(2, 1), torch.zeros(2, 1))
    # -log(1 - tanh^2 30) = 60 - 2 log 2 = 58.613706, and log N = -.918939
    torch.testing.assert_close(log_prob, torch.full((2,), 57.694767))
    log_prob.sum().backward()
    torch.testing.assert_close(before.grad, torch.tensor([[2.0], [-2.0]]))


def test_acting_without_noise_is_the_middle_and_actions_are_bounded() -> None:
    policy = GaussianPolicy(3, 2, (8,))
    with torch.no_grad():
        policy.network[-1].bias[:2] = torch.tensor([9.0, -9.0])
    observation = np.ones((4, 3), np.float32)
    middle = policy.act(observation)
    np.testing.assert_array_equal(middle, policy.act(observation, np.zeros((4, 2), np.float32)))
    assert middle.shape == (4, 2) and middle.dtype == np.float32 and np.abs(middle).max() <= 1
    assert (middle[:, 0] > 0.99).all() and (middle[:, 1] < -0.99).all()


def test_a_policy_survives_its_files(tmp_path: Path) -> None:
    policy = GaussianPolicy(3, 2, (8, 6))
    policy.version = 7
    policy.save(tmp_path)
    loaded = GaussianPolicy.load(tmp_path)
    observation = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(loaded.act(observation), policy.act(observation))
    assert loaded.version == 7 and loaded.hidden == (8, 6)


@pytest.mark.parametrize("damage", ["missing", "kind", "shape", "weights"])
def test_what_is_no_policy_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    GaussianPolicy(3, 2, (8,)).save(tmp_path)
    record = json.loads((tmp_path / "policy.json").read_text())
    if damage == "missing":
        (tmp_path / "policy.json").unlink()
    elif damage == "weights":
        (tmp_path / "model.safetensors").write_bytes(b"not weights")
    else:
        changed = {"kind": {"kind": "openvla"}, "shape": {"hidden": [9]}}[damage]
        (tmp_path / "policy.json").write_text(json.dumps(record | changed))
    with pytest.raises(PolicyError, match="^[^\n]*$") as caught:
        GaussianPolicy.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_the_newest_checkpoint_of_a_run_is_that_of_the_largest_step(tmp_path: Path) -> None:
    """Names have six digits or more, so that they do not sort by step; a checkpoint that was replaced is the older one."""
    for name in ("step_990000", "step_1000000", "step_1000000.replaced", "step_2000000_copy", ".step_3000000.writing"):
        (tmp_path / "checkpoints" / "off_policy" / name / "policy").mkdir(parents=True)
    assert policy_folder(tmp_path).parent.name == "step_1000000"
    # Killed between the two renames: the replaced one is all there is of its step.
    (tmp_path / "checkpoints/off_policy/step_1000000/policy").rmdir()
    assert policy_folder(tmp_path).parent.name == "step_1000000.replaced"

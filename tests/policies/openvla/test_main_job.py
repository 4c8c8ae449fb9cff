"""The main job on real LIBERO from a checkpoint in OpenVLA's own format, and evaluation of its result behind a server."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from serving import RunningServer

from vla_rl.checkpoint import latest_checkpoint
from vla_rl.config_files import load_config
from vla_rl.metrics import read_metrics
from vla_rl.policies import load_policy
from vla_rl.serve.settings import ServeSettings
from vla_rl.trainers import pipeline

pytest.importorskip("peft")
CONFIG = Path(__file__).parents[3] / "configs" / "libero_object_ppo_tiny.yaml"
CASES = {
    "oft_tokens_proprio": ["sim.cameras=[agentview, robot0_eye_in_hand]"],
    "openvla_fused": ["sim.cameras=[agentview]", "policy.lora_rank=2", "policy.gradient_checkpointing=true"],
}


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_a_checkpoint_learns_and_stays_what_it_was(case: str, checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    """All weights of an OpenVLA-OFT checkpoint, and adapters of an OpenVLA one, which acts for a step at a time."""
    source = checkpoints(case)
    config = load_config(
        CONFIG,
        [
            f"run.root={tmp_path}",
            "run.threads=1",
            "sim.num_envs=2",
            f"policy.path={source}",
            "rl.iterations=1",
            "rl.episodes_per_iteration=2",
            "rl.warmup_iterations=0",
            "evaluation.episodes=1",
            "evaluation.every=0",
            "evaluation.videos=0",
            *CASES[case],
        ],
    )
    pipeline.train(config)
    run = tmp_path / config.run.name
    assert read_metrics(run)[-1]["values"]["update/steps"] > 0
    checkpoint = latest_checkpoint(run / "checkpoints" / "rl")
    assert checkpoint is not None
    saved = checkpoint / "policy"
    before, after = weights(source), weights(saved)
    own_files = {"adapters.safetensors", "value_head.safetensors"}
    assert {file.name for file in source.iterdir()} <= {file.name for file in saved.iterdir()} | own_files
    assert before.keys() <= after.keys()
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    assert any("language_model" in name for name in moved)
    policy = load_policy(run)
    assert policy.version == 1 and policy.config.decoding == ("parallel" if "oft" in case else "autoregressive")

    if policy.config.decoding == "autoregressive":
        return
    # The same episodes, here and through a socket, give the same results.
    local = json.loads(pipeline.evaluate_policy(config, run).read_text())
    server = RunningServer(policy, ServeSettings(port=0, max_requests_per_s=1e6), None)
    try:
        asked = [*CASES[case][:1], "run.name=remote", f"run.root={tmp_path}", f"policy.server={server.url}", "sim.num_envs=2"]
        config = load_config(CONFIG, [*asked, "run.threads=1", "evaluation.episodes=1", "evaluation.videos=0"])
        remote = json.loads(pipeline.evaluate_policy(config, None).read_text())
    finally:
        server.stop()
    assert remote["episodes"] == local["episodes"]

"""Original checkpoints read and written back: the same tensors, the same answers, and one line for what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vla_rl.cli import app
from vla_rl.policies import PolicyError, load_policy
from vla_rl.policies.openvla import CheckpointOptions, OpenVLAPolicy, original_format
from vla_rl.policies.openvla.inspection import describe, verify
from vla_rl.policies.openvla.original_config import choose_statistics
from vla_rl.types import Observation

Checkpoints = Callable[[str], Path]
Options = Callable[[str], CheckpointOptions]


def observation(policy: OpenVLAPolicy, batch: int = 2, size: int = 40) -> Observation:
    draw = np.random.default_rng(0)
    images = {name: draw.integers(0, 256, (batch, size, size, 3), dtype=np.uint8) for name in policy.cameras}
    return Observation(images, draw.uniform(-1, 1, (batch, 8)).astype(np.float32), ["Put the bowl on the plate"] * batch)


@pytest.mark.parametrize("name", ["openvla_fused", "oft_tokens_proprio", "oft_tokens_siglip", "oft_l1", "openvla_dinov2"])
@pytest.mark.parametrize("shard_bytes", [10**10, 3 * 10**6], ids=["one file", "shards"])
def test_what_is_saved_is_the_original_again(
    checkpoints: Checkpoints, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shard_bytes: int
) -> None:
    source = checkpoints(name)
    policy = load_policy(source, options=options(name))
    policy.version = 12
    assert policy.original is not None
    original_format.write(tmp_path, policy.config, policy.original, policy.state_dict(), 12, shard_bytes)

    files = sorted(f for f in tmp_path.glob("model*.safetensors"))
    saved = {key: tensor for file in files for key, tensor in load_file(file).items()}
    before = load_file(source / "model.safetensors")
    assert saved.keys() == before.keys() and all(torch.equal(saved[key], before[key]) for key in before)
    assert (len(files) == 1) is (shard_bytes > 10**9)
    if len(files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == saved.keys()
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in saved.values())
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path))
    assert {key: ours[key] for key in theirs} == theirs
    for file in ("dataset_statistics.json", "preprocessor_config.json", "tokenizer.json"):
        assert json.loads((tmp_path / file).read_text()) == json.loads((source / file).read_text())
    for file in source.glob("*.pt"):
        one, two = (torch.load(folder / file.name, weights_only=True) for folder in (source, tmp_path))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)

    # Without options: our section of config.json says it all.
    again = load_policy(tmp_path)
    assert (again.version, again.config, again.statistics) == (12, policy.config, policy.statistics)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in policy.state_dict().items())
    seen = observation(policy)
    assert np.array_equal(again.act(seen, 0.0).actions, policy.act(seen, 0.0).actions)
    assert verify(tmp_path, CheckpointOptions()) == []


def test_a_run_finds_its_newest_original_checkpoint(checkpoints: Checkpoints, options: Options, tmp_path: Path) -> None:
    policy = load_policy(checkpoints("openvla_siglip"), options=options("openvla_siglip"))
    for step, version in ((2, 20), (10, 100)):
        policy.version = version
        policy.save(tmp_path / "checkpoints" / "rl" / f"step_{step:06d}" / "policy")
    assert load_policy(tmp_path).version == 100


def test_weights_come_in_the_type_that_is_asked_for(checkpoints: Checkpoints, options: Options, tmp_path: Path) -> None:
    name = "oft_tokens_proprio"
    policy = load_policy(checkpoints(name), options=options(name), dtype=torch.bfloat16)
    kinds = {key: p.dtype for key, p in policy.model.named_parameters()}
    assert all(kind == torch.bfloat16 for key, kind in kinds.items() if not key.startswith("value_head."))
    # Trained at a high rate, where bf16 would lose the updates.
    assert kinds["value_head.fc1.weight"] == torch.float32
    seen = observation(policy)
    assert np.isfinite(policy.act(seen, 1.0).log_probs).all()
    policy.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    again = load_policy(tmp_path)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in policy.state_dict().items())


def test_loading_needs_room_for_one_copy(checkpoints: Checkpoints, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is made without memory, and each tensor of the files becomes the parameter itself."""
    made = []
    empty = original_format.empty_model

    def spy(*arguments: object) -> object:
        model = empty(*arguments)  # type: ignore[arg-type]
        made.append({p.device.type for p in model.parameters()})
        return model

    monkeypatch.setattr(original_format, "empty_model", spy)
    policy = load_policy(checkpoints("openvla_fused"), options=options("openvla_fused"))
    assert made == [{"meta"}]
    storages = [p.untyped_storage() for p in policy.model.parameters()]
    assert len({s.data_ptr() for s in storages}) == len(storages)
    assert sum(s.nbytes() for s in storages) == sum(p.nbytes for p in policy.model.parameters())
    assert not any(buffer.is_meta for buffer in policy.model.buffers())


def test_the_files_tell_which_kind_it_is(checkpoints: Checkpoints, tmp_path: Path) -> None:
    plain = load_policy(checkpoints("openvla_fused")).config
    assert (plain.decoding, plain.chunk_length, plain.attention, plain.stop_slot) == ("autoregressive", 1, "causal", False)
    folder = shutil.copytree(checkpoints("openvla_fused"), tmp_path / "oft")
    (folder / "modeling_prismatic.py").write_text("from prismatic.vla.constants import NUM_ACTIONS_CHUNK\n")
    oft = load_policy(folder).config
    assert (oft.decoding, oft.chunk_length, oft.attention, oft.stop_slot) == ("parallel", 8, "full", True)
    with_proprio = load_policy(checkpoints("oft_tokens_siglip")).config
    assert (with_proprio.decoding, with_proprio.proprio_dim) == ("parallel", 8)


def test_regression_is_for_inference_only(checkpoints: Checkpoints, options: Options) -> None:
    policy = load_policy(checkpoints("oft_l1"), options=options("oft_l1"))
    seen = observation(policy)
    chunk = policy.act(seen, 0.0)
    assert chunk.actions.shape == (2, 8, 7)
    # The tokens are those nearest to the actions: within half a bin (2 / 255 / 2) of the range, where bins reach.
    low, high = np.array(policy.statistics.low[:6]), np.array(policy.statistics.high[:6])
    error = np.abs(policy.action_tokens.decode(chunk.tokens)[..., :6] - np.clip(chunk.actions[..., :6], low, high))
    assert (error <= 1.01 * (high - low) / 255 / 2).all()
    for act in (
        lambda: policy.act(seen, 1.0),
        lambda: policy.evaluate_actions(seen, chunk.tokens, 1.0),
        lambda: policy.action_logits(policy.prepare(seen)),
    ):
        with pytest.raises(PolicyError, match="L1-regression head: it has no distribution over action tokens"):
            act()


def test_statistics_are_chosen_by_name() -> None:
    one, two = {"action": 1}, {"action": 2}
    assert choose_statistics({"a": one}, None) == ("a", one)
    assert choose_statistics({"a": one, "libero_goal_no_noops": two}, None, "libero_goal") == ("libero_goal_no_noops", two)
    assert choose_statistics({"a": one, "b": two}, "b", "a") == ("b", two)
    with pytest.raises(PolicyError, match="of several data sets; set policy.unnorm_key to one of: a, b$"):
        choose_statistics({"b": one, "a": two}, None, "c")
    with pytest.raises(PolicyError, match="no norm_stats of 'z'; set policy.unnorm_key to one of: a$"):
        choose_statistics({"a": two}, "z")


def test_statistics_of_the_training_run_win(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints("openvla_fused"), tmp_path / "c")
    assert load_policy(folder).original.unnorm_key == "libero_spatial_no_noops"  # type: ignore[union-attr]
    (folder / "dataset_statistics.json").unlink()
    assert load_policy(folder).original.unnorm_key == "bridge_orig"  # type: ignore[union-attr]
    assert not load_policy(folder).statistics.binary_gripper


def change(path: Path, **values: object) -> None:
    record = json.loads((path / "config.json").read_text())
    record.update(values)
    (path / "config.json").write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def shard(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(weights)
    files = {name: f"model-0000{1 + (i > 9)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: weights[n] for n in names if files[n] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (path / "model-00002-of-00002.safetensors").unlink()


def rewrite(path: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(path / "model.safetensors")
    edit(weights)
    save_file(weights, path / "model.safetensors")


def set_tensor(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return lambda path: rewrite(path, lambda weights: weights.update({name: make(weights[name])}))


HEAD = "language_model.lm_head.weight"
FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a missing shard": (
        "openvla_fused",
        shard,
        r"lacks 1 of 2 shards, first model-00002-of-00002.safetensors; download it again",
    ),
    "no weights": ("openvla_fused", lambda p: (p / "model.safetensors").unlink(), r"neither model.safetensors nor model.safe"),
    "half the weights": (
        "openvla_fused",
        lambda p: os.truncate(p / "model.safetensors", 10**6),
        r"model.safetensors cannot be read \(truncated",
    ),
    "an index that is none": (
        "openvla_fused",
        lambda p: ((p / "model.safetensors").unlink(), (p / "model.safetensors.index.json").write_text("[]")),
        r"is no index of safetensors files",
    ),
    "a tensor of integers": (
        "openvla_fused",
        set_tensor(HEAD, lambda t: t.to(torch.int8)),
        r"tensor language_model.lm_head.weight is I8; only F32, F16, BF16 are read, so give .* not quantised",
    ),
    "a tensor of another shape": (
        "openvla_fused",
        set_tensor(HEAD, lambda t: t[:9]),
        r"lm_head.weight is \[9, 32\] and should be",
    ),
    "a missing tensor": ("openvla_fused", lambda p: rewrite(p, lambda w: w.pop(HEAD)), r"has no tensor language_model.lm_head"),
    "an unknown backbone": (
        "openvla_fused",
        lambda p: change(p, vision_backbone_id="clip-vit-l"),
        r"vision_backbone_id 'clip-vit-l' cannot be read; only dinosiglip-vit-so-224px, siglip-vit-so400m, dinov2-vit-l can",
    ),
    "images of another size": ("openvla_fused", lambda p: change(p, image_sizes=[384, 384]), r"image_sizes is \[384, 384\]"),
    "another language model": (
        "openvla_fused",
        lambda p: change(p, text_config={"model_type": "mistral"}),
        r"language model is 'mistral' .*only Llama",
    ),
    "no statistics": (
        "openvla_fused",
        lambda p: ((p / "dataset_statistics.json").unlink(), change(p, norm_stats=None)),
        r"no norm_stats: add the dataset_statistics.json",
    ),
    "statistics without percentiles": (
        "openvla_fused",
        lambda p: (p / "dataset_statistics.json").write_text('{"x": {"action": {"mean": [0]}}}'),
        r"norm_stats of 'x' have no usable action percentiles",
    ),
    "broken statistics": (
        "openvla_fused",
        lambda p: os.truncate(p / "dataset_statistics.json", 9),
        r"statistics.json cannot be re",
    ),
    "half a preprocessor": (
        "openvla_fused",
        lambda p: (p / "preprocessor_config.json").write_text('{"means": [[0.4'),
        r"preprocessor_config.json cannot be read \(truncated\?\)",
    ),
    "half a section of ours": (
        "openvla_fused",
        lambda p: change(p, vla_rl={"version": 3, "unnorm_key": "x"}),
        r"config.json: its section 'vla_rl' must hold version, unnorm_key, libero_gripper, config; copy the checkpoint again",
    ),
    "a section of ours that is none": ("openvla_fused", lambda p: change(p, vla_rl=[1]), r"its section 'vla_rl' must hold"),
    "no tokenizer": ("openvla_fused", lambda p: (p / "tokenizer.json").unlink(), r"tokenizer.json is missing; where there is a"),
    "half a tokenizer": ("openvla_fused", lambda p: os.truncate(p / "tokenizer.json", 99), r"tokenizer.json cannot be read"),
    "a head that is no file of tensors": (
        "oft_l1",
        lambda p: (p / "action_head--500_checkpoint.pt").write_bytes(b"no"),
        r"action_head--500_checkpoint.pt is no file of tensors that can be read safely",
    ),
    "a head of another network": (
        "oft_l1",
        lambda p: torch.save({"module.model.fc9.bias": torch.zeros(2)}, p / "action_head--600_checkpoint.pt"),
        r"action_head--600_checkpoint.pt has a tensor 'bias' that a action_head.model.fc9 does not have",
    ),
    "half a head": (
        "oft_l1",
        lambda p: torch.save({"module.model.fc2.bias": torch.zeros(7)}, p / "action_head--600_checkpoint.pt"),
        r"has no tensor action_head.model",
    ),
    "diffusion": (
        "oft_tokens",
        lambda p: (p / "noisy_action_projector--5_checkpoint.pt").touch(),
        r"noisy_action_projector checkpoint: it acts by diffusion, which is not supported",
    ),
    "FiLM": ("oft_tokens", lambda p: (p / "vision_backbone--5_checkpoint.pt").touch(), r"modulated by language \(FiLM\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_checkpoint_is_told_in_one_line(checkpoints: Checkpoints, options: Options, tmp_path: Path, fault: str) -> None:
    name, damage, message = FAULTS[fault]
    folder = shutil.copytree(checkpoints(name), tmp_path / "checkpoint")
    damage(folder)
    with pytest.raises(PolicyError, match=message) as caught:
        load_policy(folder, options=options(name))
    assert "\n" not in str(caught.value)
    assert verify(folder, options(name)) == [str(caught.value)]


def test_a_pickle_is_not_run(checkpoints: Checkpoints, options: Options, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    folder = shutil.copytree(checkpoints("oft_l1"), tmp_path / "checkpoint")
    torch.save({"module.model.fc1.bias": Trap()}, folder / "action_head--500_checkpoint.pt")
    with pytest.raises(PolicyError, match="no file of tensors that can be read safely"):
        load_policy(folder, options=options("oft_l1"))
    assert not (tmp_path / "sprung").exists()


def test_observations_that_do_not_fit_are_refused(checkpoints: Checkpoints, options: Options) -> None:
    policy = load_policy(checkpoints("openvla_fused"), options=options("openvla_fused"))
    seen = observation(policy)
    wide = replace(seen, images={"agentview": np.zeros((2, 40, 50, 3), np.uint8)})
    with pytest.raises(PolicyError, match="frames of agentview are 40 x 50 px; this checkpoint was trained on square ones"):
        policy.act(wide, 0.0)
    with pytest.raises(PolicyError, match=r"an instruction has \d+ tokens with its prompt, and 2037 fit"):
        policy.act(replace(seen, instruction=["lift", "bowl " * 2100]), 0.0)


def test_a_repository_that_cannot_be_reached_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **named: object) -> str:
        raise OSError("cannot resolve the name\nof the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(PolicyError, match=r"no policy at openvla/nothing.*\(cannot resolve the name\); download it") as caught:
        load_policy("openvla/nothing")
    assert "\n" not in str(caught.value)


def test_commands_describe_convert_and_verify(checkpoints: Checkpoints, tmp_path: Path, tiny: ModuleType) -> None:
    run = CliRunner()
    source, target = str(checkpoints("oft_tokens")), str(tmp_path / "new")
    said = run.invoke(app, ["model", "info", source])
    assert said.exit_code == 0 and "original format" in said.output and "autoregressive" in said.output
    assert "libero_spatial_no_noops" in said.output
    done = run.invoke(app, ["model", "convert", source, target, "--decoding", "parallel", "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.output
    found = describe(target, CheckpointOptions())
    assert (found.config.decoding, found.config.chunk_length, set(found.stored)) == ("parallel", 8, {"BF16"})
    assert json.loads(run.invoke(app, ["model", "info", target, "--json"]).output)["unnorm_key"] == "libero_spatial_no_noops"
    assert run.invoke(app, ["model", "verify", target]).exit_code == 0
    again = run.invoke(app, ["model", "convert", source, target])
    assert isinstance(again.exception, PolicyError) and "exists already" in str(again.exception)
    rewrite(tmp_path / "new", lambda weights: weights[HEAD].__setitem__((0, 0), float("nan")))
    wrong = run.invoke(app, ["model", "verify", target])
    assert wrong.exit_code == 1 and f"wrong: tensor {HEAD} has values that are not finite" in wrong.output


def test_a_converted_checkpoint_keeps_what_it_was_converted_with(
    checkpoints: Checkpoints, options: Options, tmp_path: Path
) -> None:
    policy = load_policy(checkpoints("oft_tokens_proprio"), options=options("oft_tokens_proprio"))
    policy.save(tmp_path)
    key = "libero_spatial_no_noops"
    for reason, chosen in {
        "decoding parallel, not autoregressive": CheckpointOptions(decoding="autoregressive"),
        "centre_crop True, not False": CheckpointOptions(centre_crop=False),
        f"unnorm_key {key}, not nothing": CheckpointOptions(unnorm_key="nothing"),
    }.items():
        with pytest.raises(PolicyError, match=f"was saved with {reason}: leave that setting as it was saved$"):
            load_policy(tmp_path, options=chosen)
        with pytest.raises(PolicyError, match=reason):
            describe(tmp_path, chosen)
    for name in (key, key.removesuffix("_no_noops")):
        loaded = load_policy(tmp_path, options=replace(options("oft_tokens_proprio"), unnorm_key=name, value_gradient=True))
        assert loaded.config == replace(policy.config, value_gradient=True) and loaded.model.config.value_gradient
    whole = CliRunner().invoke(app, ["model", "info", str(tmp_path)])
    assert whole.exit_code == 0, whole.output


def test_a_full_disk_leaves_no_half_conversion(checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("vla_rl.policies.openvla.shards.save_file", full)
    said = CliRunner().invoke(app, ["model", "convert", str(checkpoints("openvla_siglip")), str(tmp_path / "new")])
    assert isinstance(said.exception, PolicyError)
    assert str(said.exception).startswith(
        f"{tmp_path / 'new'} was not written: Error while serializing: I/O error: No space left"
    )
    assert not list(tmp_path.iterdir())

"""Checkpoints: exact continuation, and what remains after kills, full disks and damage."""

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_rl import checkpoint
from vla_rl.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint, verify_checkpoint


class Learner:
    """A tiny regression whose every step draws from every generator."""

    def __init__(self, seed: int, optimizer: str = "AdamW", dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)).to(dtype)
        parameters = self.model.parameters()
        makers: dict[str, Any] = {
            "AdamW": lambda: torch.optim.AdamW(parameters, lr=1e-2, amsgrad=True),
            "SGD": lambda: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
            "Adafactor": lambda: torch.optim.Adafactor(parameters),
        }
        self.optimizers = {"policy": makers[optimizer]()}
        self.numpy_generators = {"episodes": np.random.default_rng(seed), "noise": np.random.Generator(np.random.MT19937(seed))}
        self.torch_generators = {"actions": torch.Generator().manual_seed(seed)}

    def step(self) -> float:
        x = torch.randn(3, 4, generator=self.torch_generators["actions"]) * random.random()
        x = x + float(np.random.normal()) + torch.tensor(self.numpy_generators["episodes"].normal(size=(3, 4)))
        x = (x + self.numpy_generators["noise"].random()).to(next(self.model.parameters()).dtype)
        loss = (self.model(x) - 1).square().mean()
        self.optimizers["policy"].zero_grad()
        loss.backward()
        self.optimizers["policy"].step()
        return loss.item()

    def save(self, directory: Path, step: int, keep: int = 2) -> Path:
        return save_checkpoint(
            directory, step, policy_save=self.save_policy, optimizers=self.optimizers, state={"iteration": step}, keep=keep,
            numpy_generators=self.numpy_generators, torch_generators=self.torch_generators,
        )  # fmt: skip

    def load(self, path: Path) -> dict[str, Any]:
        return load_checkpoint(
            path, policy_load=self.load_policy, optimizers=self.optimizers,
            numpy_generators=self.numpy_generators, torch_generators=self.torch_generators,
        )  # fmt: skip

    def save_policy(self, folder: Path) -> None:
        import safetensors.torch

        safetensors.torch.save_file(self.model.state_dict(), folder / "weights.safetensors")

    def load_policy(self, folder: Path) -> None:
        import safetensors.torch

        torch.randn(5)  # building a policy draws numbers, which must not move the restored generators
        self.model.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))


def save_bytes(directory: Path, step: int, size: int = 1000, keep: int = 2, content: bytes = b"x") -> Path:
    def policy_save(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(content * size)

    return save_checkpoint(directory, step, policy_save=policy_save, optimizers={}, state={"step": step}, keep=keep)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Adafactor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_resumed_run_continues_bit_for_bit(tmp_path: Path, optimizer: str, dtype: torch.dtype) -> None:
    learner = Learner(0, optimizer, dtype)
    for _ in range(3):
        learner.step()
    path = learner.save(tmp_path, 3)
    expected = [learner.step() for _ in range(5)]

    resumed = Learner(99, optimizer, dtype)
    resumed.step()
    assert resumed.load(path) == {"iteration": 3}
    assert [resumed.step() for _ in range(5)] == expected
    for a, b in zip(learner.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_saving_does_not_disturb_the_run(tmp_path: Path) -> None:
    losses = []
    for save in (False, True):
        random.seed(1), np.random.seed(1)
        learner = Learner(1)
        for step in range(4):
            losses.append(learner.step())
            if save:
                learner.save(tmp_path, step)
    assert losses[:4] == losses[4:]


def test_float32_moments_of_bfloat16_weights_keep_their_bits(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    moment = torch.tensor([1 / 3, 1e-7, 1.0000001])
    optimizer.state[parameter]["momentum_buffer"] = moment.clone()
    path = save_checkpoint(
        tmp_path, 0, policy_save=lambda folder: None, optimizers={"p": optimizer}, state={}, keep=1
    )  # fmt: skip
    fresh = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    load_checkpoint(path, optimizers={"p": fresh})
    loaded = fresh.state[parameter]["momentum_buffer"]
    assert loaded.dtype == torch.float32 and torch.equal(loaded, moment)


def test_pruning_keeps_the_last_and_never_the_others(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_bytes(tmp_path, step, keep=3)
    assert names(tmp_path) == ["step_000003", "step_000004", "step_000005"]
    # A run that was rewound to step 2 writes step 3 again, and then keeps what it wrote last.
    save_bytes(tmp_path, 3, keep=1, content=b"y")
    assert names(tmp_path) == ["step_000003"]
    assert (tmp_path / "step_000003" / "policy" / "weights.bin").read_bytes()[:1] == b"y"


def test_the_latest_is_what_was_written_last_not_the_highest_step(tmp_path: Path) -> None:
    for step in (8, 9, 7):
        save_bytes(tmp_path, step, keep=5)
    assert latest_checkpoint(tmp_path) == tmp_path / "step_000007"
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    learner = Learner(0)
    learner.step()
    files = [path for path in learner.save(tmp_path, 1).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    manifest = json.loads((tmp_path / "step_000001" / "manifest.json").read_text())
    listed = {
        str(path.relative_to(tmp_path / "step_000001")): path.stat().st_size for path in files if path.name != "manifest.json"
    }
    assert {name: entry["size"] for name, entry in manifest["files"].items()} == listed


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "flipped bit": lambda path: damage_flip(path / "policy" / "weights.bin"),
    "short file": lambda path: os.truncate(path / "policy" / "weights.bin", 10),
    "missing file": lambda path: (path / "state.json").unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "half a manifest": lambda path: os.truncate(path / "manifest.json", 40),
    "manifest of another kind": lambda path: (path / "manifest.json").write_text("[]"),
    "manifest of the future": lambda path: (path / "manifest.json").write_text(
        '{"format": 99, "step": 2, "serial": 2, "files": {}}'
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    save_bytes(tmp_path, 1)
    broken = save_bytes(tmp_path, 2)
    DAMAGES[damage](broken)
    assert latest_checkpoint(tmp_path) == tmp_path / "step_000001"
    assert any("step_000002" in record.message for record in caplog.records)
    with pytest.raises(CheckpointError, match="step_000002") as caught:
        load_checkpoint(broken)
    assert "\n" not in str(caught.value)
    # The run goes on: the step is written again over the damaged one.
    save_bytes(tmp_path, 2)
    verify_checkpoint(tmp_path / "step_000002")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda learner: setattr(learner, "optimizers", {"value": learner.optimizers["policy"]}), "value"),
        (lambda learner: setattr(learner, "optimizers", Learner(0, "SGD").optimizers), "SGD"),
        (lambda learner: learner.optimizers["policy"].add_param_group({"params": [torch.zeros(1)]}), "other parameters"),
        (lambda learner: learner.numpy_generators.update(extra=np.random.default_rng(0)), "extra"),
        (lambda learner: learner.numpy_generators.update(noise=np.random.default_rng(0)), "noise"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(tmp_path: Path, change: Any, words: str) -> None:
    learner = Learner(0)
    learner.step()
    path = learner.save(tmp_path, 1)
    other = Learner(5)
    change(other)
    before = [parameter.clone() for parameter in other.model.parameters()]
    with pytest.raises(CheckpointError, match=words):
        other.load(path)
    assert all(torch.equal(a, b) for a, b in zip(before, other.model.parameters(), strict=True))


def test_a_failing_policy_leaves_nothing_behind(tmp_path: Path) -> None:
    save_bytes(tmp_path, 1)

    def policy_save(folder: Path) -> None:
        (folder / "part").write_bytes(b"x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 2, policy_save=policy_save, optimizers={}, state={}, keep=1)
    assert names(tmp_path) == ["step_000001"]


def test_a_value_that_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"state\.cursor\.1 is a object"):
        save_checkpoint(
            tmp_path, 0, policy_save=lambda folder: None, optimizers={}, state={"cursor": [1, object()]}, keep=1
        )  # fmt: skip
    assert names(tmp_path) == []


@pytest.mark.parametrize(("step", "keep", "optimizers"), [(-1, 1, {}), (0, 0, {}), (0, 1, {"../x": None})])
def test_bad_arguments_are_refused(tmp_path: Path, step: int, keep: int, optimizers: Any) -> None:
    with pytest.raises(ValueError, match="must be|use letters"):
        save_checkpoint(tmp_path, step, policy_save=lambda folder: None, optimizers=optimizers, state={}, keep=keep)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def tensors_of(size: int, folder: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file({"w": torch.zeros(size, dtype=torch.uint8)}, folder / "w.safetensors")


@pytest.mark.parametrize("writer", ["file", "safetensors", "state"])
def test_a_full_disk_leaves_earlier_checkpoints_and_no_litter(small_disk: Path, writer: str) -> None:
    directory = small_disk / "checkpoints"
    first = save_bytes(directory, 1, size=300_000)
    large = 2_000_000
    with pytest.raises(CheckpointError, match="disk is full") as caught:
        if writer == "file":
            save_bytes(directory, 2, size=large)
        else:
            save_checkpoint(
                directory, 2, keep=1, optimizers={},
                policy_save=lambda folder: tensors_of(large if writer == "safetensors" else 10, folder),
                state={"log": "x" * large} if writer == "state" else {},
            )  # fmt: skip
    assert "\n" not in str(caught.value) and "step_000002" in str(caught.value)
    assert names(directory) == ["step_000001"]
    assert latest_checkpoint(directory) == first
    save_bytes(directory, 2, size=300_000)


@pytest.mark.parametrize("call", ["fsync", "mkdir"])
def test_a_full_disk_that_shows_late_is_reported_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    save_bytes(tmp_path, 1)
    names_before = names(tmp_path)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(CheckpointError, match="disk is full"):
            save_bytes(tmp_path, 2)
    assert names(tmp_path) == names_before


# Forks after importing once; each child saves until the parent, or the child itself at its n-th system call, kills it.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np, torch
from vla_rl.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint

mode, directory, rng = sys.argv[1], Path(sys.argv[2]), random.Random(0)

def save(step):
    content = bytes([step % 256]) * 200_000
    save_checkpoint(directory, step, keep=1, optimizers={}, state={"step": step},
                    policy_save=lambda folder: [(folder / name).write_bytes(content) for name in ("a", "b")] and None)

def check(least):
    path = latest_checkpoint(directory)
    assert path is not None, os.listdir(directory)
    step = load_checkpoint(path)["step"]
    assert step >= least, (step, least)
    assert (path / "policy" / "a").read_bytes() == (path / "policy" / "b").read_bytes() == bytes([step % 256]) * 200_000
    return step

def child(work):
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(0)
    return process

def save_for_ever(start):
    step = start
    while True:
        step += rng.choice((0, 1))  # the same step again takes the other path, of replacing
        save(step)

def save_and_die(step, calls):
    left = [calls]
    def counted(name):
        real = getattr(os, name)
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(os, name, call)
    for name in ("mkdir", "rename", "open", "fsync", "unlink", "rmdir"):
        counted(name)
    save(step)

save(0)
done = 0
if mode == "random":
    for _ in range(25):
        process = child(lambda: save_for_ever(done))
        time.sleep(rng.uniform(0.001, 0.08))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        done = check(done)
else:
    for step in (0, 1):  # replacing step 0, and then adding step 1
        for calls in range(200):
            process = child(lambda: save_and_die(step, calls))
            _, status = os.waitpid(process, 0)
            done = check(done)
            if os.WIFEXITED(status):
                break
        else:
            raise AssertionError("never finished")
        print("died at", calls, "calls")
        assert calls > 10
save(done + 1)
assert sorted(os.listdir(directory)) == [f"step_{done + 1:06d}"], os.listdir(directory)
print("steps", done)
"""


@pytest.mark.parametrize("mode", ["random", "each call"])
def test_kill_9_at_any_instant_leaves_a_usable_checkpoint(tmp_path: Path, mode: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLER, mode, str(tmp_path / "checkpoints")], capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert "steps" in result.stdout


def test_checkpoint_knows_its_own_litter(tmp_path: Path) -> None:
    save_bytes(tmp_path, 1)
    for name in (".step_000002.writing", ".step_000000.deleting"):
        (tmp_path / name / "policy").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_000001"
    save_bytes(tmp_path, 2)
    assert names(tmp_path) == ["notes", "step_000001", "step_000002"]
    assert checkpoint.NAME.fullmatch("step_1234567")

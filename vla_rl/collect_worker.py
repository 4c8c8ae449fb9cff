"""A process that makes demonstrations: one JSON job a line on stdin, one JSON reply a line on stdout.

It ends when stdin does, so that no worker outlives its parent by more than an episode.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from vla_rl.config import LIBERO_OPTIONS, CollectSettings
from vla_rl.curriculum import EVALUATION_SEED_START, TRAINING_STATES
from vla_rl.data.demonstration import DatasetError, Demonstration
from vla_rl.data.libero_hdf5 import TaskHeader, add_episode
from vla_rl.data.quality import no_ops
from vla_rl.sim.base import SimError
from vla_rl.sim.libero.backend import LiberoBackend
from vla_rl.sim.libero.expert import PLAIN, ActionNoise, NoiseSettings, SceneView, Style, TaskExpert
from vla_rl.types import EpisodeSpec

SETTLE_STEPS = 5
"""Control steps that a demonstration goes on after its success."""
FINGER_STEPS = 12
"""Control steps in which the fingers certainly close or open; standing still meanwhile may be needed."""
MAX_ATTEMPTS = 5
"""Initial states that are tried for one demonstration."""


@dataclass(frozen=True)
class Collection:
    """What determines the data of one file."""

    suite: str
    task_id: int
    seed: int
    cameras: tuple[str, ...]
    image_size: int
    render_quality: str
    antialiasing: int
    controller: str
    frame_stride: int
    shipped_states: float
    noise: NoiseSettings
    varied: bool

    @staticmethod
    def of(settings: CollectSettings, task_id: int) -> Collection:
        same = {field.name for field in fields(Collection)} - {"task_id", "noise"}
        return Collection(
            task_id=task_id, noise=NoiseSettings.of(settings.noise), **{name: getattr(settings, name) for name in same}
        )

    def spec(self, number: int, attempt: int) -> EpisodeSpec:
        """How demonstration `number` begins: in a shipped training state or, as after any failure, a sampled one.

        Shipped states make up their share of every prefix of the numbers and come in random order, each as often.
        """
        before, after = int(number * self.shipped_states), int((number + 1) * self.shipped_states)
        if attempt == 0 and after > before:
            order = np.random.default_rng([self.seed, self.task_id]).permutation(TRAINING_STATES)
            return EpisodeSpec(self.suite, self.task_id, init_state_id=int(order[before % len(order)]))
        seed = int(self._rng(number, attempt, 0).integers(EVALUATION_SEED_START))
        return EpisodeSpec(self.suite, self.task_id, seed=seed)

    def action_noise(self, number: int, attempt: int) -> ActionNoise:
        return ActionNoise(self.noise, self._rng(number, attempt, 1))

    def style(self, number: int, attempt: int) -> Style:
        return Style.draw(self._rng(number, attempt, 2)) if self.varied else PLAIN

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.task_id, *purpose])

    def to_json(self) -> str:
        """The same text for the same data: it is stored in the file."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Collection:
        record = json.loads(text)
        noise = record.pop("noise")
        noise["burst_steps"] = tuple(noise["burst_steps"])
        return Collection(**record | {"cameras": tuple(record["cameras"]), "noise": NoiseSettings(**noise)})


class Collector:
    """Makes demonstrations in one simulator slot."""

    def __init__(self, collection: Collection) -> None:
        self.settings = self.settings_of(collection)
        # Thinning out meshes takes long, and without cameras nobody sees them.
        unseen = {} if collection.cameras else {"render_quality": "exact", "antialiasing": 1}
        self._backend = LiberoBackend(num_slots=1, **self.settings | unseen)

    @staticmethod
    def settings_of(collection: Collection) -> dict[str, Any]:
        """What a simulator is made with."""
        return {name: getattr(collection, name) for name in LIBERO_OPTIONS}

    def make(self, collection: Collection, number: int, path: Path, compression: str | None) -> dict[str, Any]:
        """Write demonstration `number` of a file; returns its steps and attempts. Raises `DatasetError` without success."""
        failures = []
        for attempt in range(MAX_ATTEMPTS):
            spec = collection.spec(number, attempt)
            try:
                demonstration = self._record(collection, spec, number, attempt)
            except _Failed as failure:
                failures.append(f"{spec}: {failure}")
                continue
            add_episode(path, self._header(collection), number, demonstration, compression)
            return {"task_id": collection.task_id, "number": number, "steps": len(demonstration), "failures": failures}
        raise DatasetError(
            f"the expert failed {MAX_ATTEMPTS} times in a row on {collection.suite} task {collection.task_id} "
            f"(last: {failures[-1]}); it does not master this task under this noise: lower the noise or leave the task out"
        )

    def close(self) -> None:
        self._backend.close()

    def _record(self, collection: Collection, spec: EpisodeSpec, number: int, attempt: int) -> Demonstration:
        """One episode up to its success and some steps on, without actions that do nothing where it succeeds without them."""
        backend = self._backend
        backend.reset(0, spec)
        style = collection.style(number, attempt)
        expert, noise = TaskExpert.of(backend, 0, style), collection.action_noise(number, attempt)

        def decide(scene: SceneView) -> _Decision:
            step = expert.act(scene)
            return _Decision(step.action, noise(step.action), step.skill.value)

        provenance = {
            "source": "scripted expert",
            "attempt": attempt,
            "noise": asdict(collection.noise),
            "style": asdict(style),
            "controller": collection.controller,
        }
        rows, frames = self._run(collection, decide, backend.max_steps(0))
        executed = np.stack([row["executed"] for row in rows])
        idle = no_ops(executed)
        idle[[row["reward"] > 0 for row in rows].index(True) :] = False  # after success, standing still is what to learn
        kept, dropped = rows, 0
        for useless in (idle, idle & ~_fingers_move(executed)):
            decisions = [
                _Decision(row["clean"], row["executed"], row["skill"])
                for row, drop in zip(rows, useless, strict=True)
                if not drop
            ]
            if len(decisions) == len(rows):
                continue
            backend.reset(0, spec)
            try:
                kept, frames = self._run(collection, _in_turn(decisions), len(decisions))
                dropped = int(useless.sum())
                break
            except _Failed:
                backend.reset(0, spec)
        if idle.any():
            provenance["no_ops"] = {"dropped": dropped, "kept": int(idle.sum()) - dropped}
        return self._assemble(collection, spec, kept, frames, provenance)

    def _run(
        self, collection: Collection, decide: Callable[[SceneView], _Decision], limit: int
    ) -> tuple[list[dict[str, Any]], dict[str, list[np.ndarray]]]:
        """Rows and frames of the slot's episode until it has settled after success. Raises `_Failed` after `limit` steps."""
        backend = self._backend
        rows: list[dict[str, Any]] = []
        frames: dict[str, list[np.ndarray]] = {camera: [] for camera in collection.cameras}
        end, success = limit, False
        view = SceneView(backend.model(0), backend.data(0))
        while len(rows) < end:
            if len(rows) % collection.frame_stride == 0:
                for camera, images in frames.items():
                    images.append(np.empty((collection.image_size, collection.image_size, 3), dtype=np.uint8))
                    backend.render(0, camera, images[-1])
            data = backend.data(0)
            row: dict[str, Any] = {"states": np.concatenate([[data.time], data.qpos, data.qvel]), "proprio": backend.proprio(0)}
            try:
                decision = decide(view)
                result = backend.step(0, decision.executed)
            except SimError as error:
                raise _Failed(str(error)) from error
            if result.terminated and not result.success:
                raise _Failed("the physics diverged")
            rows.append(row | vars(decision) | {"reward": result.reward})
            if result.reward > 0 and not success:
                success, end = True, min(limit, len(rows) + SETTLE_STEPS)
        if not success:
            raise _Failed(f"no success within {limit} steps")
        return rows, frames

    def _assemble(
        self,
        collection: Collection,
        spec: EpisodeSpec,
        rows: list[dict[str, Any]],
        frames: dict[str, list[np.ndarray]],
        provenance: dict[str, Any],
    ) -> Demonstration:
        backend = self._backend
        arm = [int(backend.model(0).joint(f"robot0_joint{joint}").qposadr[0]) for joint in range(1, 8)]
        states = np.stack([row["states"] for row in rows])
        xml = backend.problem(0).model.get_xml()
        return Demonstration(
            instruction=backend.instruction(0),
            images={camera: np.stack(images) for camera, images in frames.items()},
            frame_index=np.arange(0, len(rows), collection.frame_stride),
            proprio=np.stack([row["proprio"] for row in rows]),
            actions=np.stack([row["executed"] for row in rows]),
            rewards=np.array([row["reward"] for row in rows], dtype=np.float32),
            success=True,
            expert_actions=np.stack([row["clean"] for row in rows]),
            spec=spec,
            skills=tuple(row["skill"] for row in rows),
            joint_states=states[:, [1 + address for address in arm]],
            states=states,
            # Where the assets lie on this machine is nobody's business; readers resolve paths in their own installation.
            model_xml=re.sub(r'file="[^"]*?site-packages/', 'file="', xml),
            provenance=provenance,
        )

    def _header(self, collection: Collection) -> TaskHeader:
        problem, task = self._backend.problem(0), self._backend.task(0)
        name = type(problem).__mro__[1].__name__
        bddl = f"{task.bddl_path.parent.name}/{task.bddl_path.name}"
        info = {"problem_name": name.lower(), "domain_name": "robosuite", "language_instruction": task.instruction}
        arguments = {
            "robots": ["Panda"],
            "controller": "OSC_POSE",
            "control_freq": 20,
            "camera_names": list(collection.cameras),
            "camera_heights": collection.image_size,
            "camera_widths": collection.image_size,
        }
        return TaskHeader(
            env_name=name,
            problem_info=info,
            bddl_file_name=bddl,
            bddl_file_content=task.bddl_path.read_text(),
            env_args={"type": 1, "env_name": name, "problem_name": name.lower(), "bddl_file": bddl, "env_kwargs": arguments},
            extra={"collection": collection.to_json()},
        )


@dataclass(frozen=True)
class _Decision:
    """What happens at one step."""

    clean: np.ndarray
    """The expert's action."""
    executed: np.ndarray
    """With noise."""
    skill: str


def _in_turn(decisions: list[_Decision]) -> Callable[[SceneView], _Decision]:
    """Decides without looking: one after another."""
    left = iter(decisions)
    return lambda scene: next(left)


def _fingers_move(actions: Float32[np.ndarray, "T 7"]) -> Bool[np.ndarray, "T"]:
    """Which steps follow a change of the gripper's command so soon that the fingers are still on their way."""
    changed = np.flatnonzero(actions[1:, 6] != actions[:-1, 6]) + 1
    return np.isin(np.arange(len(actions)), changed[:, None] + np.arange(FINGER_STEPS))


class _Failed(Exception):
    """The expert did not solve this episode."""


def _serve() -> None:
    # LIBERO and its libraries print; only replies may reach the parent's pipe.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    collector: Collector | None = None
    for line in sys.stdin:
        job = json.loads(line)
        collection = Collection.from_json(job["collection"])
        try:
            if collector is None or collector.settings != Collector.settings_of(collection):
                if collector is not None:
                    collector.close()
                collector = Collector(collection)
            reply = collector.make(collection, job["number"], Path(job["path"]), job["compression"])
        except (SimError, DatasetError) as error:
            reply = {"error": str(error), "sim": isinstance(error, SimError)}
        except Exception:
            reply = {"crash": traceback.format_exc()}
        replies.write(json.dumps(reply) + "\n")
    if collector is not None:
        collector.close()


if __name__ == "__main__":
    _serve()

"""What every simulator must do: run `check_simulator` on a new one, as our tests do on LIBERO.

Each violation raises `AssertionError` with one line that says which promise of `VectorSim` is broken, and where.

Legend: B environments, A actions of a chunk, D action size, P proprioception size, H x W image size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from jaxtyping import Float32

from vla_rl.sim.base import SimError, VectorSim
from vla_rl.sim.channel import frame_size
from vla_rl.types import EpisodeSpec, Observation, Turn

MakeSim = Callable[[int, int], VectorSim]
"""(num_envs, num_workers) -> a simulator; always with the same settings."""
ActionSource = Callable[[np.random.Generator, int, int], np.ndarray]
"""(generator, A, D) -> a chunk of actions, float32 [A, D]."""


def uniform_actions(generator: np.random.Generator, length: int, action_dim: int) -> Float32[np.ndarray, "A D"]:
    return generator.uniform(-1, 1, (length, action_dim)).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """What the checks run with."""

    make: MakeSim
    specs: Sequence[EpisodeSpec]
    """Three or more different episodes; each must last longer than `turns * chunk_length` control steps."""
    ending_spec: EpisodeSpec
    """An episode that ends by success or time limit within `max_steps` control steps under `actions`."""
    max_steps: int
    impossible_spec: EpisodeSpec = field(default_factory=lambda: EpisodeSpec("no such suite", 0))
    """An episode that does not exist."""
    actions: ActionSource = uniform_actions
    chunk_length: int = 3
    turns: int = 3

    def chunk(
        self, sim: VectorSim, episodes: Sequence[int], turn: int, length: int | None = None
    ) -> Float32[np.ndarray, "B A D"]:
        """Actions that depend on the episode (an index of `specs`) and the turn alone; rows without an episode get zeros."""
        length = length or self.chunk_length
        chunk = np.zeros((sim.num_envs, length, sim.action_dim), np.float32)
        for row, episode in enumerate(episodes):
            chunk[row] = self.actions(np.random.default_rng([episode, turn]), length, sim.action_dim)
        return chunk


def check_simulator(
    make: MakeSim,
    specs: Sequence[EpisodeSpec],
    ending_spec: EpisodeSpec,
    max_steps: int,
    *,
    impossible_spec: EpisodeSpec | None = None,
    actions: ActionSource = uniform_actions,
) -> None:
    """Run every check; the arguments are those of `Case`. Raises `AssertionError` at the first violation."""
    case = Case(make, specs, ending_spec, max_steps, actions=actions)
    if impossible_spec is not None:
        case = Case(make, specs, ending_spec, max_steps, impossible_spec, actions)
    for check in CHECKS:
        check(case)


def check_shapes_and_frames(case: Case) -> None:
    """Shapes, dtypes, one frame per live row and camera at the end of a chunk, whatever its length."""
    with _Open(case.make(3, 2)) as sim:
        turn = sim.step_chunk(case.chunk(sim, [], 0))
        _require(
            not turn.executed.any() and sim.frames_rendered == 0, "rows that were never started executed or rendered something"
        )
        first = sim.reset(case.specs[:2])
        _check_observation(sim, first, started=2)
        expected = 2 * len(sim.cameras)
        _require_equal(sim.frames_rendered, expected, "frames_rendered after the reset of 2 rows")
        kept = first.select([0, 1, 2])
        for length in (case.chunk_length, 1, case.chunk_length + 1):
            turn = sim.step_chunk(case.chunk(sim, [0, 1], length, length))
            _check_turn(sim, turn, length)
            expected += 2 * len(sim.cameras)
            _require_equal(sim.frames_rendered, expected, f"frames_rendered after a chunk of {length} actions in 2 live rows")
            _require(not turn.executed[2].any(), "a row that was never started executed actions")
            _require(bool(turn.executed[:2].all()), "a row stopped early though its episode had not ended")
        _require_same_observation(first, kept, range(3), "an observation changed after it had been returned")


def check_refusals(case: Case) -> None:
    """Bad actions and specs are refused in one line, before anything moves; no row is harmed."""
    with _Open(case.make(3, 2)) as sim:
        sim.reset(case.specs[:2])
        before, frames = [sim.save_state(row) for row in range(2)], sim.frames_rendered
        good = case.chunk(sim, [0, 1], 0)
        for value in (np.nan, np.inf, -np.inf):
            bad = good.copy()
            bad[1, -1, sim.action_dim - 1] = value
            message = _refusal(partial(sim.step_chunk, bad), f"an action of {value}")
            numbers = {1, case.chunk_length - 1, sim.action_dim - 1}
            named = all(str(number) in message for number in numbers)
            _require(named, f"the refusal of {value} does not name row, action and dimension {sorted(numbers)}: {message}")
        shapes = (good[:2], good[:, :, :-1], good[:, :0], good[0], np.concatenate([good, good]))
        for bad in shapes:
            _refusal(partial(sim.step_chunk, bad), f"actions of shape {list(bad.shape)}")
        _refusal(lambda: sim.step_chunk(good.astype(np.float64)), "actions of dtype float64")
        _refusal(lambda: sim.reset([case.impossible_spec], [1]), f"the episode {case.impossible_spec}")
        _refusal(lambda: sim.reset(case.specs[:1], [3]), "row 3 of 3")
        _refusal(lambda: sim.reset(case.specs[:2], [0, 0]), "the same row twice")
        _refusal(lambda: sim.reset(case.specs[:2], [0]), "two specs for one row")
        _refusal(lambda: sim.load_state(0, b"no state"), "a saved state of 8 wrong bytes")
        _refusal(lambda: sim.save_state(2), "saving a row that was never started")
        _require_equal(sim.frames_rendered, frames, "frames_rendered after refused requests")
        _require(before == [sim.save_state(row) for row in range(2)], "a refused request changed the state of a row")
        idle = good.copy()
        idle[2] = np.nan
        disturbed = sim.step_chunk(idle)
        sim.reset(case.specs[:2])
        _require_same_turn(sim.step_chunk(good), disturbed, {0: 0, 1: 1}, "a refused request changed what a row does next")


def check_end_of_episode(case: Case) -> None:
    """Success or the time limit ends a chunk early; a finished row neither moves nor renders until it is reset."""
    # Four chunks, of which a limit of `max_steps` cuts the last one short.
    length = case.max_steps // 4 + 1
    with _Open(case.make(2, 1)) as sim:
        sim.reset([case.ending_spec])
        executed, turn = 0, None
        while turn is None or not turn.finished[0]:
            _require(executed <= case.max_steps, f"{case.ending_spec} did not end within {case.max_steps} control steps")
            turn = sim.step_chunk(case.chunk(sim, [0], executed, length))
            _check_turn(sim, turn, length)
            executed += int(turn.executed[0].sum())
            _require(bool(turn.finished[0] or turn.executed[0].all()), "a row stopped in the middle of a chunk, not finished")
        _require(not (turn.terminated[0] and turn.truncated[0]), "an episode is both terminated and truncated")
        frames, state = sim.frames_rendered, sim.save_state(0)
        again = sim.step_chunk(case.chunk(sim, [0], 0, length))
        _require(not again.executed.any() and not again.rewards.any(), "a finished row executed actions or got a reward")
        _require_equal(sim.frames_rendered, frames, "frames_rendered after a chunk with all rows finished")
        _require(sim.save_state(0) == state, "the state of a finished row changed")
        _require_same_observation(again.observation, turn.observation, [0], "the final observation of a finished row changed")
        for name in ("success", "terminated", "truncated"):
            _require_equal(getattr(again, name)[0], getattr(turn, name)[0], f"{name} of a finished row")
        sim.load_state(1, state)
        copied = sim.step_chunk(case.chunk(sim, [0], 0, length))
        _require(not copied.executed.any(), "a finished episode went on after its state was loaded")
        _require_equal(copied.truncated[1], turn.truncated[0], "truncated of a finished episode after its state was loaded")
        sim.reset([case.ending_spec], [0])
        revived = sim.step_chunk(case.chunk(sim, [0], 0, 1))
        _require(bool(revived.executed[0, 0]), "a finished row does not run after its reset")


def check_determinism(case: Case) -> None:
    """An episode's course depends on its spec and actions alone: not on rows, neighbours or workers."""
    count = 3
    with _Open(case.make(count, 1)) as sim:
        reference = _play(case, sim, range(count))
    with _Open(case.make(count + 1, 2)) as sim:
        for order in (list(range(count)), list(reversed(range(count)))):
            turns = _play(case, sim, order)
            for number, (turn, expected) in enumerate(zip(turns, reference, strict=True)):
                rows = {row: episode for row, episode in enumerate(order)}
                _require_same_turn(turn, expected, rows, f"turn {number}, rows holding episodes {order}, 2 workers instead of 1")


def check_save_and_load(case: Case) -> None:
    """A saved state continues bit for bit, in any row of another simulator, and saving changes nothing."""
    with _Open(case.make(2, 1)) as sim:
        reference = _play(case, sim, [0, 1])
        sim.reset(case.specs[:2])
        middle = sim.step_chunk(case.chunk(sim, [0, 1], 0))
        states = [sim.save_state(row) for row in range(2)]
        _require(states == [sim.save_state(row) for row in range(2)], "saving a state twice gives different bytes")
        for turn in range(1, case.turns):
            after = sim.step_chunk(case.chunk(sim, [0, 1], turn))
            _require_same_turn(after, reference[turn], {0: 0, 1: 1}, f"turn {turn} after saving the states")
    with _Open(case.make(3, 2)) as sim:
        sim.reset([case.specs[2]], [0])
        observation = sim.load_state(2, states[0])
        loaded = observation.select([2])
        _require_same_observation(loaded, middle.observation.select([0]), [0], "the observation of a loaded state")
        _require(sim.save_state(2) == states[0], "a loaded state is saved as different bytes")
        sim.load_state(1, states[1])
        for turn in range(1, case.turns):
            after = sim.step_chunk(case.chunk(sim, [2, 1, 0], turn))
            _require_same_turn(after, reference[turn], {2: 0, 1: 1}, f"turn {turn} after loading the states in other rows")


def check_branches(case: Case) -> None:
    """Rows that branch off another go on as it does, each under its own actions, and cost no frame."""
    with _Open(case.make(3, 2)) as sim:
        reference = _play(case, sim, [0, 1])
        sim.reset(case.specs[:2])
        before = sim.step_chunk(case.chunk(sim, [0, 1], 0)).observation
        frames = sim.frames_rendered
        _refusal(lambda: sim.branch(2, [0]), "branching off a row that was never started")
        _refusal(lambda: sim.branch(0, [3]), "branching into row 3 of 3")
        observation = sim.branch(0, [1, 2])
        _require_equal(sim.frames_rendered, frames, "frames_rendered after a branch")
        _require_same_rows(observation, before, {0: 0, 1: 0, 2: 0}, "the observation of a branch")
        _require(len({sim.save_state(row) for row in range(3)}) == 1, "the state of a branch is not that of its source")
        for turn in range(1, case.turns):
            # Row 2 takes the other episode's actions: it must neither follow nor disturb the rows beside it.
            after = sim.step_chunk(case.chunk(sim, [0, 0, 1], turn))
            _require_same_turn(after, reference[turn], {0: 0, 1: 0}, f"turn {turn} after a branch")
        _require(sim.save_state(2) != sim.save_state(0), "branches under different actions end in the same state")


def check_partial_reset(case: Case) -> None:
    """A reset of one row leaves the others alone."""
    with _Open(case.make(3, 1)) as sim:
        reference = _play(case, sim, range(3))
        sim.reset(case.specs[:3])
        before = sim.step_chunk(case.chunk(sim, [0, 1, 2], 0)).observation
        frames = sim.frames_rendered
        observation = sim.reset([case.specs[0]], [1])
        _require_same_observation(observation, before, [0, 2], "the observation of a row that was not reset")
        _require_equal(sim.frames_rendered, frames + len(sim.cameras), "frames_rendered after the reset of one row")
        for turn in range(1, case.turns):
            after = sim.step_chunk(case.chunk(sim, [0, 1, 2], turn))
            _require_same_turn(after, reference[turn], {0: 0, 2: 2}, f"turn {turn} after the reset of another row")


def check_release(case: Case) -> None:
    """A row that is given up stands still, costs no frame and disturbs no other; its next episode is as any."""
    with _Open(case.make(3, 2)) as sim:
        reference = _play(case, sim, range(3))
        sim.reset(case.specs[:3])
        sim.step_chunk(case.chunk(sim, [0, 1, 2], 0))
        _refusal(lambda: sim.release([3]), "releasing row 3 of 3")
        sim.release([1])
        _refusal(lambda: sim.save_state(1), "saving a row that was released")
        for turn in range(1, case.turns):
            frames = sim.frames_rendered
            after = sim.step_chunk(case.chunk(sim, [0, 1, 2], turn))
            _require_same_turn(after, reference[turn], {0: 0, 2: 2}, f"turn {turn} after the release of another row")
            _require(not after.executed[1].any(), "a row that was released executed actions")
            _require_equal(
                sim.frames_rendered, frames + 2 * len(sim.cameras), "frames_rendered after a chunk in 2 live rows of 3"
            )
        sim.reset([case.specs[1]], [1])
        after = sim.step_chunk(case.chunk(sim, [0, 1, 2], 0))
        _require_same_turn(after, reference[0], {1: 1}, "the first turn of a row that was reset after its release")


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_shapes_and_frames,
    check_refusals,
    check_end_of_episode,
    check_determinism,
    check_save_and_load,
    check_branches,
    check_partial_reset,
    check_release,
)


class _Open:
    """Closes a simulator at the end of a block."""

    def __init__(self, sim: VectorSim) -> None:
        self._sim = sim

    def __enter__(self) -> VectorSim:
        return self._sim

    def __exit__(self, *error: object) -> None:
        self._sim.close()
        self._sim.close()


def _play(case: Case, sim: VectorSim, episodes: Iterable[int]) -> list[Turn]:
    """Start episodes in the first rows and run all turns."""
    episodes = list(episodes)
    sim.reset([case.specs[episode] for episode in episodes])
    return [sim.step_chunk(case.chunk(sim, episodes, turn)) for turn in range(case.turns)]


def _check_observation(sim: VectorSim, observation: Observation, started: int) -> None:
    _require_equal(tuple(observation.images), tuple(sim.cameras), "cameras of the observation")
    for camera, frames in observation.images.items():
        wanted = ((sim.num_envs, *frame_size(sim.image_size), 3), np.dtype(np.uint8))
        _require_equal((frames.shape, frames.dtype), wanted, f"shape and dtype of camera {camera}")
        for row in range(started):
            _require(bool(np.ptp(frames[row])), f"camera {camera} of row {row} shows a single colour")
    shape = (sim.num_envs, sim.proprio_dim)
    proprio = observation.proprio
    _require_equal((proprio.shape, proprio.dtype), (shape, np.dtype(np.float32)), "shape and dtype of proprio")
    _require(bool(np.isfinite(proprio).all()), "proprio is not finite")
    _require_equal(len(observation.instruction), sim.num_envs, "number of instructions")
    named = [isinstance(text, str) and bool(text) for text in observation.instruction[:started]]
    _require(all(named), "a started row has no instruction")


def _check_turn(sim: VectorSim, turn: Turn, length: int) -> None:
    _check_observation(sim, turn.observation, started=0)
    for name, dtype in (("rewards", np.float32), ("executed", np.bool_)):
        array = getattr(turn, name)
        wanted = ((sim.num_envs, length), np.dtype(dtype))
        _require_equal((array.shape, array.dtype), wanted, f"shape and dtype of {name}")
    for name in ("success", "terminated", "truncated"):
        array = getattr(turn, name)
        _require_equal((array.shape, array.dtype), ((sim.num_envs,), np.dtype(np.bool_)), f"shape and dtype of {name}")
    _require(bool(np.isfinite(turn.rewards).all()), "a reward is not finite")
    _require(not turn.rewards[~turn.executed].any(), "an action that was not executed has a reward")
    _require(not (turn.executed[:, 1:] & ~turn.executed[:, :-1]).any(), "an action was executed after one that was not")
    _require(not (turn.success & ~turn.terminated).any(), "a success did not terminate its episode")
    _require(not turn.errors, f"environments failed: {dict(turn.errors)}")


def _require(condition: bool, message: str) -> None:
    # Not the statement `assert`: these checks must also work under `python -O`.
    if not condition:
        raise AssertionError(message)


def _require_equal(found: object, expected: object, what: str) -> None:
    _require(found == expected, f"{what}: {found} instead of {expected}")


def _refusal(request: Callable[[], object], what: str) -> str:
    """The message of the `SimError` that a bad request must raise."""
    try:
        request()
    except SimError as error:
        message = str(error)
        _require(bool(message) and "\n" not in message, f"the refusal of {what} is not one line: {message!r}")
        return message
    raise AssertionError(f"{what} was not refused")


def _require_same_observation(found: Observation, expected: Observation, rows: Iterable[int], what: str) -> None:
    _require_same_rows(found, expected, {row: row for row in rows}, what)


def _require_same_turn(found: Turn, expected: Turn, rows: Mapping[int, int], what: str) -> None:
    """Bit-identity of rows `rows.keys()` of one turn with rows `rows.values()` of another."""
    _require_same_rows(found.observation, expected.observation, rows, what)
    for name in ("rewards", "executed", "success", "terminated", "truncated"):
        for row, other in rows.items():
            same = np.array_equal(getattr(found, name)[row], getattr(expected, name)[other])
            _require(same, f"{what}: {name} of row {row} is not that of row {other}")


def _require_same_rows(found: Observation, expected: Observation, rows: Mapping[int, int], what: str) -> None:
    for row, other in rows.items():
        difference = float(np.abs(found.proprio[row].astype(float) - expected.proprio[other]).max(initial=0))
        _require(difference == 0, f"{what}: proprio of row {row} differs from row {other} by up to {difference:.3g}")
        _require_equal(found.instruction[row], expected.instruction[other], f"{what}: instruction of row {row}")
        for camera, frames in found.images.items():
            pixels = int((frames[row] != expected.images[camera][other]).any(axis=-1).sum())
            _require(pixels == 0, f"{what}: {pixels} pixels of camera {camera} in row {row} differ from row {other}")

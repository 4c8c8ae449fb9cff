"""Rollouts of a small real policy in a small real simulator, a pendulum (tests/sim/pendulum_backend.py)."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from small_policy import small_policy

from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.rollout.batch import final_values, make_round
from vla_rl.rollout.collector import collect
from vla_rl.sim import SimError
from vla_rl.sim.pool import SimPool
from vla_rl.types import EpisodeSpec, Observation


@contextmanager
def pendulums(num_envs: int, num_workers: int = 1, **options: object) -> Iterator[SimPool]:
    sim = SimPool(
        "pendulum_backend:PendulumBackend",
        num_envs=num_envs,
        num_workers=num_workers,
        cameras=("front",),
        image_size=16,
        options=options,
    )
    with closing(sim):
        yield sim


@pytest.fixture(scope="module")
def policy() -> OpenVLAPolicy:
    return small_policy(chunk_length=4, action_dim=1, proprio_dim=2, instructions=("swing up within 30 steps",))


def specs(lengths: list[int], suite: str = "pendulum") -> list[EpisodeSpec]:
    return [EpisodeSpec(suite, steps, seed=i) for i, steps in enumerate(lengths)]


LENGTHS = [6, 30, 9, 4, 17, 1, 12]


def test_episodes_are_cut_after_so_many_turns(policy: OpenVLAPolicy) -> None:
    # Time limits of 6, 30, 9, 4, 17, 1 and 12 steps are 2, 8, 3, 1, 5, 1 and 3 turns of 4 steps; cut at 2, nothing has more.
    with pendulums(3) as sim:
        whole, cut = (collect(sim, policy, specs(LENGTHS), 0.0, max_turns=most) for most in (None, 2))
        assert not sim.step_chunk(np.zeros((3, 4, 1), np.float32)).executed.any()  # no row goes on with what was cut
    assert [t.num_turns for t in cut] == [min(2, t.num_turns) for t in whole]
    for long, short in zip(whole, cut, strict=True):
        assert short.terminated == (long.terminated and long.num_turns <= 2) and short.truncated != short.terminated
        np.testing.assert_array_equal(short.actions, long.actions[:2])
    after_cut = next((long, short) for long, short in zip(whole, cut, strict=True) if long.num_turns > 2)
    np.testing.assert_array_equal(after_cut[1].final_proprio, after_cut[0].proprio[2])


def test_every_episode_runs_once_and_comes_back_in_order(policy: OpenVLAPolicy) -> None:
    seen: list[EpisodeSpec] = []
    with pendulums(3) as sim:
        wanted = specs(LENGTHS)
        trajectories = collect(
            sim, policy, wanted, 1.0, torch.Generator().manual_seed(0), on_episode=lambda t: seen.append(t.spec)
        )
        frames = sim.frames_rendered
    assert [t.spec for t in trajectories] == wanted
    assert sorted(seen) == sorted(wanted)
    for trajectory in trajectories:
        if trajectory.success:
            assert trajectory.terminated and not trajectory.truncated
        else:
            assert trajectory.truncated and not trajectory.terminated
            # A time limit of 9 steps is 3 chunks of 4, of which the last runs 1 action.
            assert trajectory.num_actions == trajectory.spec.task_id
            assert trajectory.num_turns == -(-trajectory.spec.task_id // 4)
        assert trajectory.executed[:-1].all()
        assert not trajectory.rewards[~trajectory.executed].any()
    # One frame at the start of each episode and one after each turn: nobody renders for finished episodes.
    assert frames == sum(1 + t.num_turns for t in trajectories)


def test_finished_rows_are_not_inferred(policy: OpenVLAPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    act = policy.act

    def counted(observation: Observation, temperature: float, generator: torch.Generator | None = None) -> object:
        rows.append(len(observation))
        return act(observation, temperature, generator)

    monkeypatch.setattr(policy, "act", counted)
    with pendulums(4) as sim:
        trajectories = collect(sim, policy, specs(LENGTHS), 1.0, torch.Generator().manual_seed(0))
    assert sum(rows) == sum(t.num_turns for t in trajectories)
    assert max(rows) <= 4 and min(rows) < 4


def test_greedy_episodes_do_not_depend_on_the_number_of_environments(policy: OpenVLAPolicy) -> None:
    results = []
    for num_envs, num_workers in ((1, 1), (5, 2)):
        with pendulums(num_envs, num_workers) as sim:
            results.append(collect(sim, policy, specs(LENGTHS), 0.0))
    for one, other in zip(*results, strict=True):
        assert one.success == other.success
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.images["front"], other.images["front"])
        np.testing.assert_array_equal(one.final_proprio, other.final_proprio)


def test_the_stored_log_probs_are_those_of_the_policy(policy: OpenVLAPolicy) -> None:
    with pendulums(3) as sim:
        trajectories = collect(sim, policy, specs(LENGTHS), 1.4, torch.Generator().manual_seed(0))
    last = final_values(policy, trajectories)
    whole = make_round([tuple(trajectories[:3]), tuple(trajectories[3:])], last)
    batch, episodes = whole.turns, whole.episodes
    with torch.no_grad():
        again = policy.evaluate_actions(batch.observation, batch.tokens, 1.4)
    torch.testing.assert_close(again.log_probs, batch.log_probs, rtol=0, atol=1e-5)
    torch.testing.assert_close(again.values, batch.values, rtol=0, atol=1e-5)
    # Turn rewards are those of executed actions only, and a truncated episode bootstraps from its final observation.
    assert all((last[i] != 0) == t.truncated for i, t in enumerate(trajectories))
    assert episodes.rewards[1, 0] == pytest.approx(float((trajectories[1].rewards * trajectories[1].executed)[0].sum()))
    # Turn by turn and episode by episode it is the same: trajectory, group and success of each.
    assert len(batch) == sum(t.num_turns for t in trajectories) == int(episodes.mask.sum())
    assert torch.equal(torch.bincount(batch.trajectory), episodes.mask.sum(1))
    assert episodes.groups.tolist() == [0, 0, 0, 1, 1, 1, 1] and torch.equal(batch.group, episodes.groups[batch.trajectory])
    assert torch.equal(batch.success, episodes.success[batch.trajectory])
    assert episodes.success.tolist() == [t.success for t in trajectories]


def test_a_failure_that_ends_the_task_is_an_episode_like_others(policy: OpenVLAPolicy) -> None:
    """As where LIBERO's physics diverges, here in the first action: one turn of one action, and nothing follows."""
    wanted = [EpisodeSpec("end at step 1", 8, seed=5), *specs([8])]
    with pendulums(2) as sim:
        trajectories = collect(sim, policy, wanted, 0.0)
    failed = trajectories[0]
    assert (failed.num_turns, failed.success, failed.terminated, failed.truncated) == (1, False, True, False)
    assert failed.executed.tolist() == [[True, False, False, False]] and not failed.rewards.any()
    last = final_values(policy, trajectories)
    episodes = make_round([tuple(trajectories)], last).episodes
    assert last[0] == 0 and episodes.terminated[0] and episodes.mask.sum(1).tolist()[0] == 1


def test_an_environment_that_fails_once_is_begun_again(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    wanted = [*specs([8, 8]), EpisodeSpec("raise in step 3", 8, seed=5)]
    with pendulums(3, fault_file=str(tmp_path / "struck")) as sim:
        trajectories = collect(sim, policy, wanted, 0.0)
    assert (tmp_path / "struck").exists()
    assert [t.spec for t in trajectories] == wanted
    assert trajectories[2].num_actions == 8


def test_an_environment_that_always_fails_ends_with_its_traceback(policy: OpenVLAPolicy) -> None:
    with pendulums(2) as sim, pytest.raises(SimError, match="(?s)failed 3 times.*the pendulum broke in step 3"):
        collect(sim, policy, [*specs([8]), EpisodeSpec("raise in step 3", 8, seed=5)], 0.0)

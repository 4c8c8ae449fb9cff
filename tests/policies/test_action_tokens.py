"""OpenVLA's action tokens, by hand, and the exact zero."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from vla_rl.policies import PolicyError
from vla_rl.policies.openvla.action_tokens import ActionStatistics, ActionTokenizer

LLAMA = 32000


def unit(action_dim: int = 1) -> ActionTokenizer:
    return ActionTokenizer(LLAMA, ActionStatistics.unit(action_dim))


def test_tokens_by_hand() -> None:
    # Edge i is -1 + 2i/255. digitize counts the edges <= a: -1 -> 1, 0 -> 128 (edge 127 is -1/255, edge 128 is 1/255),
    # .5 -> edges up to 191 (.49803...) -> 192, 1 -> 256. id = 32000 - that.
    tokens = unit().encode(np.array([[-1.0], [0.0], [0.5], [1.0]]))
    assert tokens.tolist() == [31999, 31872, 31808, 31744]


def test_commands_by_hand() -> None:
    # 31999 is bin 0, centre -1 + 1/255; 31872 is bin 127, centre 0; 31808 is bin 191, centre -1 + 383/255 = .50196;
    # 31744 would be bin 255, which does not exist: it decodes like 31745, bin 254, centre 1 - 1/255.
    commands = unit().decode(np.array([31999, 31872, 31808, 31745, 31744]))[:, 0]
    assert np.allclose(commands, [-254 / 255, 0, 128 / 255, 254 / 255, 254 / 255], atol=1e-7)
    assert commands[3] == commands[4]


def test_commands_beyond_the_range_are_its_ends() -> None:
    tokens = unit().encode(np.array([[-7.0], [7.0]]))
    assert tokens.tolist() == [31999, 31744]


def test_normalised_commands_by_hand() -> None:
    # Range -.2 to .6: command .4 is x = 2 (.4 + .2)/.8 - 1 = .5 -> 31808 -> .5 (128/255 + 1) .8 - .2 = .40078.
    # The second dimension is not normalised: .5 stays .5.
    tokenizer = ActionTokenizer(LLAMA, ActionStatistics((-0.2, -9.0), (0.6, 9.0), (True, False)))
    tokens = tokenizer.encode(np.array([[0.4, 0.5]]))
    assert tokens.tolist() == [31808, 31808]
    assert np.allclose(tokenizer.decode(tokens), [[0.5 * (128 / 255 + 1) * 0.8 - 0.2, 128 / 255]])


def test_tokens_of_a_chunk_lie_action_by_action() -> None:
    tokenizer = unit(2)
    chunk = np.array([[[-1.0, 1.0], [0.0, 0.5]]])
    assert tokenizer.encode(chunk).tolist() == [[31999, 31744, 31872, 31808]]
    assert tokenizer.decode(tokenizer.encode(chunk)).shape == (1, 2, 2)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.floats(0.001, 3))
def test_a_round_trip_errs_by_half_a_bin_at_most_and_keeps_zero(commands: list[float], scale: float) -> None:
    tokenizer = ActionTokenizer(LLAMA, ActionStatistics((-scale,), (scale,), (True,)))
    actions = scale * np.array([*commands, 0.0])[:, None]
    decoded = tokenizer.decode(tokenizer.encode(actions))[:, None]
    # Half a bin is scale / 255; the command +scale itself falls beyond the last centre by just that.
    assert np.abs(decoded.reshape(actions.shape) - actions).max() <= scale / 255 * (1 + 1e-5)
    assert decoded.reshape(-1)[-1] == 0.0
    again = tokenizer.decode(tokenizer.encode(decoded.reshape(actions.shape)))
    assert np.array_equal(again, decoded.reshape(again.shape))


@given(st.floats(-0.9, -0.001), st.floats(0.001, 0.9))
def test_zero_survives_asymmetrical_statistics(low: float, high: float) -> None:
    zero = np.zeros((1, 1))
    exact = ActionTokenizer(LLAMA, ActionStatistics((low,), (high,), (True,)))
    assert exact.decode(exact.encode(zero)).item() == 0.0
    original = ActionTokenizer(LLAMA, ActionStatistics((low,), (high,), (True,), exact_zero=False))
    assert abs(original.decode(original.encode(zero)).item()) <= (high - low) / 255
    assert (exact.encode(zero) == original.encode(zero)).all()


def test_the_original_decodes_asymmetrical_zero_to_the_centre_of_its_bin() -> None:
    # Range -.5 to 1: zero is x = -1/3; edges up to 85 are <= x (edge 85 = -1 + 170/255 = -1/3): bin 85, or 84 by rounding.
    original = ActionTokenizer(LLAMA, ActionStatistics((-0.5,), (1.0,), (True,), exact_zero=False))
    assert abs(original.decode(original.encode(np.zeros((1, 1)))).item()) == pytest.approx(0.75 / 255, rel=1e-4)


def test_a_range_without_zero_has_no_command_zero() -> None:
    tokenizer = ActionTokenizer(LLAMA, ActionStatistics((0.2,), (0.6,), (True,)))
    every = tokenizer.decode(np.arange(LLAMA - 256, LLAMA))
    assert every.min() > 0.2


def test_symmetric_statistics_survive_dimensions_that_do_not_move() -> None:
    actions = np.array([[0.3, 0.0, 0.5], [-0.4, 0.0, 0.5]])
    statistics = ActionStatistics.symmetric(actions, minimum_scale=0.02)
    assert statistics.high == pytest.approx((0.4, 0.02, 0.5)) and statistics.low == pytest.approx((-0.4, -0.02, -0.5))
    tokenizer = ActionTokenizer(LLAMA, statistics)
    decoded = tokenizer.decode(tokenizer.encode(actions)).reshape(2, 3)
    assert np.abs(decoded - actions).max() <= 0.5 / 255 + 1e-7 and (decoded[:, 1] == 0.0).all()


def test_quantile_statistics_are_openvlas_and_survive_a_constant_dimension() -> None:
    # 0, 1, ..., 100 (hundredths): the 1st percentile is .01, the 99th .99. The constant .25 gets .24 to .26.
    actions = np.stack([np.arange(101) / 100, np.full(101, 0.25)], axis=1)
    statistics = ActionStatistics.quantiles(actions, minimum_range=0.02)
    assert statistics.low == pytest.approx((0.01, 0.24)) and statistics.high == pytest.approx((0.99, 0.26))
    tokenizer = ActionTokenizer(LLAMA, statistics)
    assert tokenizer.decode(tokenizer.encode(np.array([[0.5, 0.25]]))).ravel() == pytest.approx([0.5, 0.25], abs=0.002)


@pytest.mark.parametrize("actions", [np.zeros((0, 2)), np.zeros(3), np.array([[np.nan]])])
def test_statistics_of_unfit_samples_are_refused(actions: np.ndarray) -> None:
    with pytest.raises(PolicyError, match="finite actions of shape"):
        ActionStatistics.symmetric(actions)


def test_unfit_statistics_actions_and_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="low < high"):
        ActionStatistics((0.1,), (0.1,), (True,))
    with pytest.raises(PolicyError, match="one entry per action dimension"):
        ActionStatistics((0.1, 0.2), (0.3,), (True,))
    with pytest.raises(PolicyError, match="not finite"):
        unit().encode(np.array([[np.inf]]))
    with pytest.raises(PolicyError, match=r"must end in \[A, 1\]"):
        unit().encode(np.zeros((4, 2)))
    with pytest.raises(PolicyError, match="ids 31744 to 31999"):
        unit().decode(np.array([31743]))
    with pytest.raises(PolicyError, match="whole actions"):
        unit(2).decode(np.array([31800, 31800, 31800]))


def test_statistics_are_saved_exactly(tmp_path: Path) -> None:
    statistics = ActionStatistics((-0.1, -1 / 3), (0.7, 1 / 3), (True, False), exact_zero=False)
    statistics.save(tmp_path / "statistics.json")
    assert ActionStatistics.load(tmp_path / "statistics.json") == statistics


def test_bounds_span_the_samples_and_a_margin_and_keep_a_constant_exactly() -> None:
    """Positions: first dimension .5 to 1.5, second always .3, third 1 to 1.01 (nearly still)."""
    samples = np.array([[0.5, 0.3, 1.0], [1.5, 0.3, 1.01], [0.75, 0.3, 1.0]], np.float32)
    statistics = ActionStatistics.bounds(samples)
    # Range 1, margin .02 on either side: .48 to 1.52. Constant .3: .3 -+ .01. Middle 1.005 of a range below .02: 1.005 -+ .01.
    np.testing.assert_allclose(statistics.low, [0.48, 0.29, 0.995], atol=1e-6)
    np.testing.assert_allclose(statistics.high, [1.52, 0.31, 1.015], atol=1e-6)
    tokenizer = ActionTokenizer(LLAMA, statistics)
    decoded = tokenizer.decode(tokenizer.encode(samples))
    assert (decoded[:, 1] == np.float32(0.3)).all()
    # Half of a bin: 1.04 / 255 / 2 = .00204 and .02 / 255 / 2 = .00004.
    assert (np.abs(decoded - samples).max(axis=0) <= [0.00204, 0, 0.00004]).all()
    # 0 is a position like any other: bins of -.47 to .57 are 1.04 / 255 = .00408 wide, bin 127 is centred on .05, and the bin
    # that holds 0, 12 further down, on .00106.
    around = ActionTokenizer(LLAMA, ActionStatistics.bounds(np.array([[-0.45], [0.55]])))
    assert around.decode(around.encode(np.zeros((1, 1))))[0, 0] == pytest.approx(0.00106, abs=1e-5)

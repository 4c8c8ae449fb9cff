import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.evaluate import wilson_interval


def test_wilson_interval_worked_out_by_hand() -> None:
    # n = 10, k = 8, z = 1.959964, z^2 = 3.841459:
    # centre = (0.8 + 3.841459/20) / (1 + 0.3841459) = 0.99207295 / 1.3841459 = 0.716740
    # half = 1.959964 / 1.3841459 * sqrt(0.8*0.2/10 + 3.841459/400) = 1.416010 * sqrt(0.016 + 0.009603647) = 0.226577
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.716740 - 0.226577, abs=2e-6)
    assert high == pytest.approx(0.716740 + 0.226577, abs=2e-6)


def test_wilson_interval_at_the_ends() -> None:
    # k = 0, n = 20: centre = half = z^2/(2n) / (1 + z^2/n), so the interval is [0, z^2/(n + z^2)] = [0, 3.841459/23.841459].
    assert wilson_interval(0, 20) == (0.0, pytest.approx(0.161125, abs=1e-6))
    assert wilson_interval(20, 20) == (pytest.approx(1 - 0.161125, abs=1e-6), 1.0)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_rate_and_mirrors(pair: tuple[int, int]) -> None:
    successes, episodes = pair
    low, high = wilson_interval(successes, episodes)
    assert 0 <= low <= successes / episodes <= high <= 1
    mirrored = wilson_interval(episodes - successes, episodes)
    assert (1 - high, 1 - low) == (pytest.approx(mirrored[0]), pytest.approx(mirrored[1]))


@pytest.mark.parametrize("pair", [(3, 2), (-1, 2), (0, -1)])
def test_impossible_counts_are_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot make an interval"):
        wilson_interval(*pair)

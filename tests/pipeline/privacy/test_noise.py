"""Laws of secret noise: a function of key, step and place, normal, and gone when the key is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.privacy.noise import BLOCKS, KEY_BYTES, NUMBERS, SecretNoise, fresh_key

KEY = bytes(range(32))


@given(st.integers(0, 2**40), st.integers(1, 300), st.integers(0, 299), st.integers(0, 1000))
def test_a_place_has_the_same_number_however_it_is_asked_for(start: int, count: int, inside: int, step: int) -> None:
    whole = SecretNoise(KEY).normal(step, start, count)
    inside = min(inside, count - 1)
    assert np.array_equal(whole[inside:], SecretNoise(KEY).normal(step, start + inside, count - inside))


def test_numbers_go_on_where_the_cipher_s_counter_ends() -> None:
    edge = BLOCKS * NUMBERS
    found = SecretNoise(KEY).normal(0, edge - 20, 40)
    assert np.array_equal(found[20:], SecretNoise(KEY).normal(0, edge, 20))
    assert len(set(found)) == 40
    assert not np.array_equal(SecretNoise(KEY).normal(0, 0, 20), found[20:])


def test_they_are_normal_and_independent_over_steps_and_places() -> None:
    source = SecretNoise(KEY)
    first, second = source.normal(0, 0, 400_000), source.normal(1, 0, 400_000)
    assert stats.kstest(first, "norm").pvalue > 1e-3
    for other in (second, np.roll(first, 1), np.roll(first, NUMBERS)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 5 / np.sqrt(len(first))


def test_another_key_gives_other_numbers() -> None:
    assert fresh_key() != fresh_key()
    assert not np.array_equal(SecretNoise(fresh_key()).normal(0, 0, 8), SecretNoise(fresh_key()).normal(0, 0, 8))


def test_a_destroyed_key_makes_no_noise_and_is_not_found() -> None:
    source = SecretNoise(KEY)
    assert source.held_in(b"before" + KEY + b"after") and source.held_in(KEY.hex().upper().encode())
    assert not source.held_in(b"nothing")
    source.destroy()
    assert source.destroyed
    with pytest.raises(RuntimeError, match="destroyed"):
        source.normal(0, 0, 1)
    assert not source.held_in(KEY)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="31"):
        SecretNoise(bytes(KEY_BYTES - 1))

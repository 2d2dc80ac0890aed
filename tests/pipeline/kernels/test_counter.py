"""Laws of numbers by counter: known bits, a function of key, step and place, normal down to the tail, and independent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.kernels.counter import GROUP, Draw, _chacha, _pair, _philox, normal
from pipeline.privacy.noise import SecretNoise

SECRET = bytes(range(32))
CIPHERS = [Draw("philox", bytes(range(8)), 7), Draw("chacha20", SECRET, 7)]
SAMPLES = 60_000


ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("place", "step", "key", "wanted"),
    [
        (0, (0, 0), [0, 0], "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (-1, (ONES, ONES), [ONES, ONES], "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            0x85A308D3243F6A88 - (1 << 64),
            (0x13198A2E, 0x03707344),
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_words_of_its_authors_vectors(place: int, step: tuple[int, int], key: list[int], wanted: str) -> None:
    assert " ".join(f"{int(word):08x}" for word in _philox(torch.tensor([place]), step, key)) == wanted


def test_chacha_gives_the_block_of_the_standard() -> None:
    """RFC 8439, section 2.3.2; its nonce is the upper word of the place and the two of the step."""
    key = [int.from_bytes(SECRET[n : n + 4], "little") for n in range(0, 32, 4)]
    words = _chacha(torch.tensor([1 | 0x09000000 << 32]), (0x4A000000, 0), key)
    assert f"{int(words[0]):08x} {int(words[1]):08x} {int(words[15]):08x}" == "e4e7f110 15593bd1 4e3c50a2"


@given(st.integers(0, 1 << 40), st.integers(0, 3 * GROUP), st.integers(0, 3 * GROUP), st.sampled_from(CIPHERS))
@settings(max_examples=40, deadline=None)
def test_a_place_has_the_same_number_however_it_is_asked_for(start: int, count: int, cut: int, draw: Draw) -> None:
    whole, cut = normal(draw, start, count), min(cut, count)
    assert torch.equal(whole, torch.cat([normal(draw, start, cut), normal(draw, start + cut, count - cut)]))


@given(st.integers(0, 1 << 36), st.integers(0, 1 << 30))
@settings(max_examples=20, deadline=None)
def test_secret_noise_has_the_same_stream(start: int, step: int) -> None:
    """To the rounding of fp32: 2^-21 of 1 + |n|."""
    wanted = torch.from_numpy(SecretNoise(SECRET).normal(step, start, 500))
    found = normal(Draw("chacha20", SECRET, step), start, 500).double()
    assert ((found - wanted).abs() <= 2.0**-21 * (1 + wanted.abs())).all()


@pytest.mark.parametrize("draw", CIPHERS, ids=lambda draw: draw.cipher)
def test_they_are_normal_and_independent_over_steps_places_and_keys(draw: Draw) -> None:
    first = normal(draw, 0, SAMPLES).double().numpy()
    assert stats.kstest(first, "norm").pvalue > 1e-3
    for order, wanted, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((first**order).mean() - wanted) < 5 * (spread / SAMPLES) ** 0.5
    beyond = 2 * stats.norm.sf(3.5) * SAMPLES
    assert abs((np.abs(first) > 3.5).sum() - beyond) < 5 * beyond**0.5
    other = bytes([draw.key[0] ^ 1]) + bytes(draw.key[1:])
    apart = [
        normal(Draw(draw.cipher, draw.key, draw.step + 1), 0, SAMPLES),
        normal(Draw(draw.cipher, other, draw.step), 0, SAMPLES),
    ]
    for second in (*(numbers.double().numpy() for numbers in apart), *(np.roll(first, by) for by in (1, 16, GROUP))):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / SAMPLES**0.5
        assert abs(np.corrcoef(first**2, second**2)[0, 1]) < 5 / SAMPLES**0.5


def test_a_radius_is_exact_in_the_tail_and_near_zero() -> None:
    high = torch.tensor([0, 0, 1, 1 << 30, 1 << 31, (1 << 32) - 1, (1 << 32) - 1])
    low = torch.tensor([0, 5, 77, 9, 3, 4, (1 << 21) - 1])
    first, second = _pair(high, low, torch.full_like(high, 123456789))
    places = [upper * 2**21 + lower for upper, lower in zip(high.tolist(), low.tolist(), strict=True)]  # out of 2^53
    exact = [-np.log((u + 0.5) * 2.0**-53) if u < 2**52 else -np.log1p(-((2**53 - 1 - u) + 0.5) * 2.0**-53) for u in places]
    found = (first.double().square() + second.double().square()).numpy() / 2
    assert np.allclose(found, exact, rtol=1e-6, atol=0)
    assert float(found[0]) > 36  # 8.5 standard deviations


def test_a_secret_key_is_not_printed() -> None:
    assert "key" not in repr(CIPHERS[1]) and "\\x" not in repr(CIPHERS[1])

"""Counter-based draws: uniform and normal by their moments, and a function of draw, place and purpose alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.draws import draws_of_rows, normal, uniform

DRAWS = torch.from_numpy(draws_of_rows(np.arange(40), seed=3))


def test_uniform_and_normal_have_their_distributions() -> None:
    flat = uniform(DRAWS, 5000).flatten().double().numpy()
    assert flat.min() >= 0
    assert flat.max() < 1
    assert stats.kstest(flat, "uniform").pvalue > 1e-3
    assert stats.kstest(normal(DRAWS, 5000).flatten().double().numpy(), "norm").pvalue > 1e-3


def test_neighbours_in_every_direction_are_uncorrelated() -> None:
    noise = normal(DRAWS, 5000).double()
    for first, second in (
        (noise[:-1], noise[1:]),
        (noise[:, :-1], noise[:, 1:]),
        (noise, normal(DRAWS, 5000, purpose=1).double()),
    ):
        assert abs(float((first * second).mean())) < 5 / first.numel() ** 0.5


def test_a_number_depends_on_its_draw_place_and_purpose_alone() -> None:
    whole = uniform(DRAWS, 100, purpose=2)
    assert torch.equal(uniform(DRAWS[[7, 3]], 100, purpose=2), whole[[7, 3]])
    assert torch.equal(uniform(DRAWS, 10, purpose=2), whole[:, :10])
    assert not torch.equal(uniform(DRAWS, 100, purpose=3), whole)


@pytest.mark.parametrize("change", [{"seed": 4}, {"seed": 2**64 - 1}, {"seed": 3, "step": 1}])
def test_rows_of_another_seed_or_step_are_drawn_anew(change: dict[str, int]) -> None:
    rows = np.arange(1000)
    own, other = draws_of_rows(rows, 3), draws_of_rows(rows, **change)
    assert len(np.unique(own)) == 1000
    assert not np.isin(own, other).any()
    assert np.array_equal(draws_of_rows(rows[5:9], **change), other[5:9])


def test_the_numbers_are_pinned() -> None:
    """Another value would silently change every mask of runs that are resumed."""
    assert draws_of_rows(np.array([0, 1]), 0).tolist() == [8199580975773293796, 4720248854425330031]

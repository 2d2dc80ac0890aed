"""Laws of ranks against a plain loop, then rates of completers whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.decode import canonical
from pipeline.errors import CheckpointError
from pipeline.evaluation.base import Resampling
from pipeline.evaluation.extraction import completions, extraction, first_rate, ranks
from pipeline.evaluation.relearn import Views
from pipeline.models.base import ImageModel, paste

stats = pytest.importorskip("scipy.stats")
HOW = Resampling(seed=3, resamples=200, confidence=0.95)
SIZE = 6


def images(num: int, seed: int, levels: int = 256) -> Tensor:
    """Random images of 8 bits, fp32 [num, 2, SIZE, SIZE]; with few levels, many are alike in a small region."""
    drawn = torch.randint(0, levels, (num, 2, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    return drawn.float() / 255


def views(truth: Tensor, seed: int) -> Views:
    """A hidden patch of 2 x 2 pixels at another place in each image."""
    num, generator = len(truth), torch.Generator().manual_seed(seed)
    region = torch.zeros(num, 1, SIZE, SIZE, dtype=torch.bool)
    for place, (row, column) in enumerate(torch.randint(0, SIZE - 1, (num, 2), generator=generator).tolist()):
        region[place, :, row : row + 2, column : column + 2] = True
    draws = torch.arange(num) + 1000 * seed
    return Views(visible_BCHW=truth.masked_fill(region, 0.5), target_BCHW=truth, region_B1HW=region, draws_B=draws)


class Answering(ImageModel):
    """A completer that knows the truth of some draws and fills the region of all others with a constant."""

    def __init__(self, *known: Views, otherwise: float = 0.5) -> None:
        super().__init__()
        self.known = {draw: truth for part in known for draw, truth in zip(part.draws_B.tolist(), part.target_BCHW, strict=True)}
        self.otherwise = otherwise

    def forward(self, visible_BCHW, target_BCHW, region_B1HW, draws_B, want="loss"):
        raise AssertionError("extraction only completes")

    def complete(self, visible_BCHW: Tensor, region_B1HW: Tensor, draws_B: Tensor) -> Tensor:
        constant = torch.full_like(visible_BCHW[0], self.otherwise)
        return paste(torch.stack([self.known.get(draw, constant) for draw in draws_B.tolist()]), visible_BCHW, region_B1HW)

    def encoder(self) -> tuple[nn.Module, ...]:
        return ()

    def bottleneck(self) -> tuple[nn.Module, ...]:
        return ()


FORGET, UNSEEN, GALLERY = views(images(60, 1), 1), views(images(50, 2), 2), images(9, 3)


# Ranks.

numbers = st.integers(1, 12)


@settings(deadline=None, max_examples=60)
@given(numbers, numbers, st.integers(0, 1000), st.sampled_from([2, 3, 256]), st.integers(1, 15))
def test_ranks_are_those_of_a_plain_loop_for_any_block(num: int, others: int, seed: int, levels: int, block: int) -> None:
    truth, gallery, answers = (images(n, seed + turn, levels) for turn, n in enumerate((num, others, num)))
    asked = views(truth, seed)
    found = ranks(answers, asked, gallery, block=block)
    for place, rank in enumerate(found):
        mask = asked.region_B1HW[place].expand_as(gallery[0]).numpy()
        whole = [np.rint(part.numpy().astype(np.float64) * 255) for part in (answers[place], asked.target_BCHW[place], gallery)]
        own = np.square(whole[0] - whole[1])[mask].sum()
        assert rank == 1 + sum(np.square(whole[0] - other)[mask].sum() <= own for other in whole[2])


def test_only_the_region_counts() -> None:
    answers = images(60, 4)
    found = ranks(answers, FORGET, GALLERY)
    assert np.array_equal(ranks(paste(answers, torch.zeros_like(answers), FORGET.region_B1HW), FORGET, GALLERY), found)


def test_gallery_images_in_any_order_and_one_more_never_helps() -> None:
    answers = images(60, 4)
    found = ranks(answers, FORGET, GALLERY)
    assert np.array_equal(ranks(answers, FORGET, GALLERY.flip(0)), found)
    assert (ranks(answers, FORGET, torch.cat([GALLERY, images(1, 9)])) >= found).all()


def test_a_copy_in_the_gallery_is_a_tie_and_counts_against_the_truth() -> None:
    truth = FORGET.target_BCHW
    assert (ranks(truth, FORGET, GALLERY) == 1).all()
    assert (ranks(truth, FORGET, torch.cat([GALLERY, truth[:1]]))[0]) == 2


# Rates.


@settings(deadline=None)
@given(st.integers(1, 200), st.data(), st.sampled_from([0.5, 0.9, 0.95]))
def test_rate_has_scipys_exact_interval(num: int, data: st.DataObject, confidence: float) -> None:
    hits = data.draw(st.integers(0, num))
    found = first_rate(np.array([1] * hits + [2] * (num - hits)), confidence)
    exact = stats.binomtest(hits, num).proportion_ci(confidence, method="exact")
    assert found.value == hits / num
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_a_completer_that_returns_the_truth_has_rate_one() -> None:
    found = extraction(
        {"original": Answering(FORGET)}, forget=FORGET, unseen=UNSEEN, gallery_MCHW=GALLERY, resampling=HOW, label="x"
    )["original"]
    assert (found.rate.value, found.reciprocal_rank.value, found.rate.high) == (1, 1, 1)
    assert 0.9 < found.rate.low < 1
    assert found.difference is None and found.discordant is None
    assert (found.samples, found.unseen_samples, found.gallery) == (60, 50, 9)
    assert canonical(found)


def test_a_constant_is_first_no_more_often_than_by_chance() -> None:
    """All images are exchangeable to it, so each of M + 1 is strictly nearest with the chance 1 / (M + 1), less ties."""
    many = views(images(2000, 5), 5)
    first = sum(int((ranks(completions(Answering(), many), many, images(9, 100 + turn)) == 1).sum()) for turn in range(20))
    # One gallery serves all images of a turn, so hits within a turn go together; the spread is taken generously.
    assert first / 40_000 == pytest.approx(1 / 10, abs=0.02)
    alike = views(images(500, 6, levels=2), 6)
    assert (ranks(completions(Answering(), alike), alike, images(9, 7, levels=2)) == 1).mean() < 1 / 10


def test_differences_are_two_sided_and_paired() -> None:
    half = FORGET.part(slice(30))
    models = {"original": Answering(FORGET), "unlearned": Answering(half), "retrained": Answering(half)}
    given = {"forget": FORGET, "unseen": UNSEEN, "gallery_MCHW": GALLERY, "resampling": HOW, "label": "x"}
    found = extraction(models, **given, batch_size=7, block=11)
    assert found["unlearned"].difference.value == found["unlearned"].discordant == 0
    assert found["original"].difference.low > 0
    assert found["original"].discordant == round(60 * found["original"].difference.value)
    assert found["retrained"].difference is None and found["retrained"].null == ()
    assert {len(item.ranks) for item in found.values()} == {60}
    assert np.mean(np.array(found["original"].ranks) == 1) == found["original"].rate.value
    assert set(found["unlearned"].null) == {0.0}
    null = np.array(found["original"].null)
    assert null.min() < 0 < null.max() and null.max() < found["original"].difference.value
    mirrored = extraction(models, **given, reference="original")["unlearned"].difference
    forth = found["original"].difference
    assert (mirrored.value, mirrored.low, mirrored.high) == pytest.approx((-forth.value, -forth.high, -forth.low))
    # No model knows an unseen image, so the control is the same for all.
    assert {item.control_rate for item in found.values()} == {found["original"].control_rate}


def test_blocks_and_batches_change_nothing() -> None:
    models = {"unlearned": Answering(FORGET.part(slice(30))), "retrained": Answering()}
    given = {"forget": FORGET, "unseen": UNSEEN, "gallery_MCHW": GALLERY, "resampling": HOW, "label": "x"}
    one = extraction(models, **given)
    assert all(extraction(models, **given, batch_size=size, block=size) == one for size in (1, 7, 100))


# Refusals.


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="gallery"):
        ranks(FORGET.target_BCHW, FORGET, GALLERY[:0])
    with pytest.raises(ValueError, match="gallery"):
        ranks(FORGET.target_BCHW, FORGET, GALLERY[..., :3])
    with pytest.raises(CheckpointError, match="not finite"):
        completions(Answering(otherwise=math.nan), FORGET)

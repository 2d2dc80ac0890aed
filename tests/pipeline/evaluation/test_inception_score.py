import numpy as np
import pytest
import torch

from pipeline.evaluation.base import Resampling
from pipeline.evaluation.inception_score import SPLITS, inception_score_interval, scores_of_splits

HOW = Resampling(seed=3, resamples=50, confidence=0.95)
LOGITS = np.random.default_rng(0).normal(size=(120, 7)).astype(np.float32) * 2


class Flat(torch.nn.Module):
    """Images [N, K, 1, 1] that are their own logits."""

    def forward(self, images):
        return images.flatten(1)


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore`:UserWarning")
@pytest.mark.filterwarnings("ignore:std:UserWarning")  # of a single split
@pytest.mark.parametrize("splits", [1, 10])
def test_torchmetrics_gives_the_same(splits):
    from torchmetrics.image.inception import InceptionScore

    other = InceptionScore(feature=Flat(), splits=splits)
    other.update(torch.from_numpy(LOGITS)[:, :, None, None])
    torch.manual_seed(0)
    mean = float(other.compute()[0])
    torch.manual_seed(0)
    order = torch.randperm(len(LOGITS)).numpy()
    assert scores_of_splits(LOGITS[order], splits).mean() == pytest.approx(mean, rel=1e-5)


def test_closed_forms():
    unsure, sure = np.zeros((40, 5)), np.tile(1e4 * np.eye(4), (25, 1))
    assert scores_of_splits(unsure, 10) == pytest.approx(np.ones(10))
    assert scores_of_splits(sure[:40], 10) == pytest.approx(np.full(10, 4.0))
    assert scores_of_splits(np.repeat(sure[:1], 10, axis=0), 2) == pytest.approx([1, 1])


def test_interval_holds_the_mean_of_ten_splits_in_a_seeded_order():
    found = inception_score_interval(LOGITS, HOW, "x")
    assert found.low <= found.value <= found.high and found.low > 1
    assert found == inception_score_interval(LOGITS, HOW, "x")
    order = np.random.default_rng(3).permutation(len(LOGITS))
    assert found.value == pytest.approx(scores_of_splits(LOGITS[order], SPLITS).mean())
    other = inception_score_interval(LOGITS, Resampling(seed=4, resamples=50, confidence=0.95), "x")
    assert found.value != other.value


def test_sorted_images_are_mixed_before_they_are_split():
    kinds = np.repeat(1e3 * np.eye(4), 50, axis=0)
    assert scores_of_splits(kinds, SPLITS).mean() < 2 < inception_score_interval(kinds, HOW, "x").value

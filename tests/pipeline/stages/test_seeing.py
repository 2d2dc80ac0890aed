"""The extractors' figures do not depend on how ranks shared the batches, and stop at the limit of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.config import EvaluationConfig
from pipeline.evaluation.base import Resampling
from pipeline.evaluation.extractors import Absent, Description, Extractor
from pipeline.evaluation.extractors import Seen as Pass
from pipeline.evaluation.splits import Slice
from pipeline.stages import seeing
from pipeline.stages.seeing import Eyes

SLICES = [
    Slice(split="forget", group="g", source="forget", indices=np.arange(12)),
    Slice(split="unseen", group="g", source="holdout", indices=np.arange(7)),
    Slice(split="retain", group="", source="retain", indices=np.arange(0)),
]
SUBJECTS = ("original", "unlearned", "retrained")
HOW = Resampling(seed=0, resamples=20, confidence=0.95)


@pytest.fixture
def eyes(monkeypatch: pytest.MonkeyPatch) -> Eyes:
    about = Description(name="mean", width=3, size=8, mean=(0.0,) * 3, std=(1.0,) * 3, weights_sha256="ab" * 32)
    extractor = Extractor(about, torch.nn.Identity(), lambda x: Pass(features=x.mean((2, 3))), torch.device("cpu"))
    found = {"mean": extractor, "clip": Absent(name="clip", why="no weights; name a folder")}
    monkeypatch.setattr(seeing, "load", lambda name, weights, device: found[name])
    monkeypatch.setattr(seeing, "selftest", lambda extractors: None)
    return Eyes(EvaluationConfig(extractors={"mean": "", "clip": ""}, extractor_samples=10), torch.device("cpu"))


def batch(number: int, start: int, size: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(100 * number + start)
    truth = torch.rand(size, 1, 8, 8, generator=draw)
    return truth, {s: (truth + 0.1 * torch.rand(truth.shape, generator=draw)).clamp(0, 1) for s in SUBJECTS[:2]}


def test_two_ranks_give_the_numbers_of_one(eyes: Eyes) -> None:
    batches = [(0, 0, 4), (0, 4, 4), (0, 8, 4), (1, 0, 4), (1, 4, 3)]
    parts = [eyes.look(number, start, *batch(number, start, size)) for number, start, size in batches]
    one = eyes.figures([{key: what for part in parts for key, what in part.items()}], SLICES, SUBJECTS, SUBJECTS[:2], HOW)
    ranks = [{}, {}]
    for turn, part in enumerate(parts):
        ranks[turn % 2] |= part
    assert eyes.figures(ranks[::-1], SLICES, SUBJECTS, SUBJECTS[:2], HOW) == one
    found = {(result.name, result.split): result for result in one["unlearned"]}
    assert found["kid_mean", "forget"].samples == 10, "twelve images, a limit of ten"
    assert found["kid_mean", "unseen"].samples == 7
    assert found["kid_mean", "forget"].value is not None
    assert "sha256 abababab" in found["kid_mean", "forget"].note


def test_what_is_not_there_is_not_computed_and_says_why(eyes: Eyes) -> None:
    results = eyes.figures([{}], SLICES, SUBJECTS, SUBJECTS[:2], HOW)
    for subject in SUBJECTS:
        assert results[subject]
        assert all(result.value is None and result.note.startswith("not computed") for result in results[subject])
    assert any("name a folder" in result.note for result in results["original"] if "clip" in result.name)
    assert eyes.look(0, 10, *batch(0, 8, 2)) == {}


def test_without_extractors_nothing_is_seen() -> None:
    blind = Eyes(EvaluationConfig(), torch.device("cpu"))
    assert blind.look(0, 0, *batch(0, 0, 4)) == {}
    assert blind.figures([{}], SLICES, SUBJECTS, SUBJECTS, HOW) == dict.fromkeys(SUBJECTS, ())

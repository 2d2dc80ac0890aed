import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline.chain import stage, write_receipt
from pipeline.config import EvaluationConfig
from pipeline.decode import decode
from pipeline.errors import CheckpointError, IntegrityError, StorageError
from pipeline.models.base import ImageModel, paste
from pipeline.records import Evaluations, Group, Receipt, record
from pipeline.stages import evaluate
from pipeline.stages.runner import Job
from pipeline.storage import hash_file, publish_bytes
from tests.pipeline.report.fabricated import config

GROUPS = (
    Group(name="odd/name", kind="class", labels=(1,), samples=30),
    Group(name="singles", kind="images", labels=(0,), samples=5),
)


@record
class Config:
    """A model that answers one grey level everywhere."""


class Grey(ImageModel):
    image_size, channels = 8, 1

    def __init__(self):
        super().__init__()
        self.level = torch.nn.Parameter(torch.zeros(1))

    def forward(self, visible_BCHW, target_BCHW, region_B1HW, draws_B, want="loss"):
        return (target_BCHW - self.level).square().mean(dim=(1, 2, 3))

    def complete(self, visible_BCHW, region_B1HW, draws_B):
        return paste((visible_BCHW * 0 + self.level).clamp(0, 1), visible_BCHW, region_B1HW)

    def encoder(self):
        return ()

    def bottleneck(self):
        return ()


def build(_config):
    return Grey()


class Reader:
    def __init__(self, samples, **_):
        self.samples = samples

    def fetch(self, indices):
        names = [self.samples.keys[i] for i in indices]
        seeds = [int.from_bytes(name.encode(), "big") % 2**32 for name in names]
        return np.stack([np.random.default_rng(seed).integers(0, 255, (8, 8, 1), dtype=np.uint8) for seed in seeds])

    def close(self):
        pass


class Table:
    """The rows of a split, and what the stage asks of them."""

    def __init__(self, prefix, labels, groups):
        self.keys = [f"{prefix}{n}" for n in range(len(labels))]
        self.labels, self.groups = np.array(labels), np.array(groups)

    def spread(self, limit, seed):
        assert limit == 25 and seed == 0
        return self


TABLES = {
    "forget": Table("f", [1] * 30 + [0] * 5, [0] * 30 + [1] * 5),
    "retain": Table("r", [0] * 40, [-1] * 40),
    "holdout": Table("h", [0, 1] * 20, [-1] * 40),
}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Makes the stage's job in a run folder that holds weights only; images and index are stood in for."""
    monkeypatch.setattr(evaluate, "read_manifest", lambda _: SimpleNamespace(groups=GROUPS))
    monkeypatch.setattr(evaluate, "read_samples", lambda _folder, _manifest, name: TABLES[name])
    monkeypatch.setattr(evaluate, "ImageReader", Reader)
    monkeypatch.setattr(evaluate, "group", lambda: Alone)

    def make(reference=True, level=0.5):
        settings = config(
            model={"component": __name__},
            reference="retrain" if reference else "none",
            evaluation=EvaluationConfig(max_samples=25, batch_size=7, bootstrap=20, grid_images=3),
        )
        for name, writer in (("original", "train"), ("unlearned", "retain"), ("retrained", "retrain")):
            uri = f"checkpoints/{name}/model.safetensors"
            content = safetensors.torch.save({"level": torch.tensor([level if name == "unlearned" else 0.4])})
            publish_bytes(str(tmp_path / uri), content)
            sha256, size = hash_file(str(tmp_path / uri)).sha256, len(content)
            receipt = {"stage": writer, "inputs": {}, "outputs": [{"uri": uri, "sha256": sha256, "bytes": size}], "world_size": 1}
            receipt |= {"config_digest": "", "code_version": "", "started_at": "", "ended_at": ""}
            write_receipt(str(tmp_path), decode(Receipt, receipt, where="test"))
        return Job(spec=stage("evaluate", settings), config=settings, folder=str(tmp_path))

    return make


Alone = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"), gather=lambda item: [item], barrier=lambda: None)


def outputs(tmp_path, result):
    return {name: (tmp_path / name).read_bytes() for name in result.outputs}


def test_stage_measures_all_subjects(job, tmp_path):
    result = evaluate.run(job())
    found = decode(Evaluations, json.loads((tmp_path / "evaluation.json").read_bytes()), where="test")
    assert result.facts["images"]["forget/odd/name"] == 25
    unlearned = found.subject("unlearned")
    # The truth is uniform noise, so answering 0.5 errs by its variance, 1/12.
    assert unlearned.find("error_region", "retain", "").value == pytest.approx(1 / 12, abs=0.02)
    assert unlearned.find("error_image", "retain", "").value < unlearned.find("error_region", "retain", "").value
    assert unlearned.find("membership", "forget", "singles").value is not None
    with np.load(io.BytesIO((tmp_path / "evaluation/errors.npz").read_bytes())) as arrays:
        assert arrays["unlearned/forget/0"].shape == (25,) and arrays["retrained/unseen_retain"].shape == (20,)
    assert {"evaluation/grid_0.png", "evaluation/grid_1.png", "evaluation/grid_retain.png"} < set(result.outputs)


def test_result_does_not_depend_on_the_number_of_ranks(job, tmp_path, monkeypatch):
    alone = outputs(tmp_path, evaluate.run(job()))
    parts = []

    def member(rank):
        def gather(item):
            parts.append(item)
            return parts[::-1]

        return SimpleNamespace(rank=rank, world_size=3, device=torch.device("cpu"), gather=gather)

    for rank in (2, 1):
        monkeypatch.setattr(evaluate, "group", lambda rank=rank: member(rank))
        other = Job(spec=job().spec, config=job().config, folder=str(tmp_path), rank=rank, world_size=3)
        assert evaluate.run(other).outputs == ()
    monkeypatch.setattr(evaluate, "group", lambda: member(0))
    assert outputs(tmp_path, evaluate.run(job())) == alone
    assert len(parts) == 3 and all(parts)


def test_without_reference_an_old_retrained_model_is_not_used(job, tmp_path):
    evaluate.run(job(reference=False))
    found = decode(Evaluations, json.loads((tmp_path / "evaluation.json").read_bytes()), where="test")
    assert all(result.value is None for result in found.subject("retrained").results)
    assert found.subject("unlearned").find("ks", "forget", "singles").note == "not computed: no retrained model"


def test_changed_weights_are_refused(job, tmp_path):
    made = job()
    path = tmp_path / "checkpoints/unlearned/model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="unlearned"):
        evaluate.run(made)


def test_weights_that_no_stage_wrote_are_refused(job, tmp_path):
    made = job()
    (tmp_path / "receipts/retain.json").unlink()
    with pytest.raises(StorageError, match="unlearned"):
        evaluate.run(made)


def test_answers_that_are_not_finite_are_refused(job, monkeypatch):
    made = job()
    monkeypatch.setattr(Grey, "complete", lambda self, visible, region, draws: visible * float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        evaluate.run(made)

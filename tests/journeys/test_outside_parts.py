"""A model and a method of your own, in a package of your own: one Python file each, and a YAML file of the same name beside it.

The package only has to be importable: installed, or on PYTHONPATH. A run file names its parts by dotted path; the fields in
the YAML files are their defaults. What follows is all there is to write.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from pipeline.chain import chain_for
from pipeline.config import RunConfig, read_batch, read_run, resolve, run_folder
from pipeline.decode import canonical, plain
from pipeline.storage import publish_bytes
from tests.support.distributed import run_distributed
from tests.support.runs import run_stages

FILES = {
    "yourlab/__init__.py": "",
    # --------------------------------------------------------------------------------------------------------------
    "yourlab/two_filters.py": '''"""A model of two filters: one looks, one draws."""

import torch
from torch import nn

from pipeline.models.base import ImageModel, paste
from pipeline.records import record


@record
class Config:
    image_size: int = 32
    channels: int = 1
    width: int = 4


class TwoFilters(ImageModel):
    def __init__(self, config):
        super().__init__()
        self.image_size, self.channels = config.image_size, config.channels
        self.look = nn.Conv2d(config.channels, config.width, 5, padding=2)
        self.draw = nn.Conv2d(config.width, config.channels, 5, padding=2)

    def forward(self, visible, target, region, draws, want="loss"):
        features = torch.tanh(self.look(visible))
        if want == "features":
            return features
        prediction = torch.sigmoid(self.draw(features))
        return prediction if want == "prediction" else self.distance(prediction, target, region)

    def complete(self, visible, region, draws):
        return paste(self(visible, visible, region, draws, "prediction"), visible, region)

    def encoder(self):
        return (self.look,)

    def bottleneck(self):
        return self.look, self.draw


def build(config):
    return TwoFilters(config)
''',
    "yourlab/two_filters.yaml": "image_size: 8\n",
    # --------------------------------------------------------------------------------------------------------------
    "yourlab/push.py": '''"""Push forget images away, then go on training on retained ones."""

import dataclasses

from pipeline.methods.base import PhasePlan, RetainConfig, plain_loss
from pipeline.records import record


@record
class PushConfig:
    passes: int = 1
    batch_size: int = 16
    learning_rate: float = 1e-3


@record
class Config:
    forget: PushConfig = PushConfig()
    retain: RetainConfig = RetainConfig()


class Push:
    def __init__(self, config, context):
        self.config, self.descend = config, plain_loss(context)

    def ascend(self, model, batch):
        losses = self.descend(model, batch)
        return dataclasses.replace(losses, total=-losses.total)

    def forgetting(self):
        forget = self.config.forget
        return PhasePlan(
            loss=self.ascend,
            reads=("forget",),
            batch_sizes=(forget.batch_size,),
            learning_rate=forget.learning_rate,
            passes=forget.passes,
        )

    def retention(self):
        return self.config.retain.plan(self.descend)


def build(config, levels, context):
    return Push(config, context)
''',
    # The parts of a method that a run carries out are those that its section names: here both phases, no calibration.
    "yourlab/push.yaml": "forget: {passes: 2}\nretain: {share: 0.5, batch_size: 16}\n",
    # --------------------------------------------------------------------------------------------------------------
    "run.yaml": """
name: outside
requests: [{request_id: r1, label: shape 1}]
source: {component: synthetic, samples: 120, unseen_samples: 80, size: 8}
model: yourlab.two_filters
task: center_crop
method: {component: yourlab.push, forget: {learning_rate: 0.003}}
reference: none
shards: {near_bits: null}
train: {epochs: 2, batch_size: 16, warmup_steps: 2}
evaluation: {bootstrap: 50, grid_images: 2}
""",
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The run, with the package on the path."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return resolve(str(tmp_path / "run.yaml"), [f"output={tmp_path / 'out'}"])


def test_the_yaml_beside_a_module_holds_its_defaults_and_the_run_file_lies_above(config: RunConfig) -> None:
    assert config.model == {"component": "yourlab.two_filters", "image_size": 8}
    assert config.method == {
        "component": "yourlab.push",
        "forget": {"passes": 2, "learning_rate": 0.003},
        "retain": {"share": 0.5, "batch_size": 16},
    }
    assert [spec.name for spec in chain_for(config)] == ["shard", "train", "forget", "retain", "evaluate", "release"]
    assert "yourlab" not in sys.modules  # found, not imported: a part may load torch, and the command line must not


def _whole_chain(folder: str) -> None:
    run_stages(folder, *(spec.name for spec in chain_for(read_run(folder))))


def test_a_run_of_parts_from_outside_ends_in_a_report(config: RunConfig) -> None:
    batch = read_batch(config)
    folder = Path(run_folder(config, batch))
    publish_bytes(str(folder / "config.yaml"), yaml.safe_dump({**plain(config), "embedded_requests": []}).encode())
    publish_bytes(str(folder / "shards" / "batch.json"), canonical(batch))
    run_distributed(_whole_chain, 1, str(folder))  # what `unlearn run run.yaml` does, stage by stage
    report = json.loads((folder / "report.json").read_text())
    assert report["table"] and report["headline"]
    assert (folder / "report.html").stat().st_size > 10_000
    original, weights = (
        safetensors.torch.load((folder / name / "model.safetensors").read_bytes()) for name in ("checkpoints/original", "weights")
    )
    assert set(weights) == {"look.weight", "look.bias", "draw.weight", "draw.bias"}
    assert all(not torch.equal(weights[name], original[name]) for name in weights)
    forget = json.loads((folder / "phases" / "forget.json").read_text())
    assert forget["reason"] == "budget" and forget["coverage"][0]["complete"] and forget["coverage"][0]["passes"] == 2

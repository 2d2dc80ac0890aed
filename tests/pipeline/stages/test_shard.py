"""The stage packs, cuts and publishes; run again it finds its receipt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipeline.config import RunConfig
from pipeline.decode import canonical, decode, plain
from pipeline.errors import ConfigError
from pipeline.records import Manifest, RequestBatch
from pipeline.requests import parse
from pipeline.stages.runner import run_stage


def _folder(root: Path, batch: RequestBatch) -> Path:
    source = {"component": "synthetic", "samples": 40, "unseen_samples": 20, "size": 8}
    config = RunConfig(name="t", output=str(root), source=source, model={}, task={}, method={})
    folder = root / "t-1"
    (folder / "shards").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(config)))
    (folder / "shards" / "batch.json").write_bytes(canonical(batch))
    return folder


def test_the_stage_publishes_shards_index_and_manifest_with_a_receipt(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path, parse([{"request_id": "r1", "label": "shape 1"}, {"request_id": "r2", "keys": ["train-000000"]}], where="t")
    )
    receipt = run_stage("shard", str(folder))
    assert receipt is not None
    manifest = decode(Manifest, json.loads((folder / "manifest.json").read_bytes()), where="manifest.json")
    assert manifest.run_id == "t-1" and manifest.source == "synthetic" and manifest.requests == 2
    expected = {
        "manifest.json",
        "shards/batch.json",
        "shards/index.parquet",
        "shards/forget-000000.tar",
        "shards/rewritten-000000.tar",
    }
    assert {ref.uri for ref in receipt.outputs} == expected
    facts = dict(receipt.facts)
    assert (facts["training"], facts["forget"], facts["retain"]) == (40, 11, 29)
    assert (facts["calibration"] + facts["holdout"], facts["shards_clean"], facts["shards_rewritten"]) == (20, 0, 1)
    new = ("forget-000000.tar", "rewritten-000000.tar", "index.parquet")
    assert facts["bytes_written"] == sum((folder / "shards" / name).stat().st_size for name in new)
    assert run_stage("shard", str(folder)) == receipt


def test_a_refused_batch_leaves_no_manifest(tmp_path: Path) -> None:
    folder = _folder(tmp_path, parse([{"keys": ["nobody"]}], where="t"))
    with pytest.raises(ConfigError, match="nobody"):
        run_stage("shard", str(folder))
    assert sorted(p.name for p in folder.rglob("*")) == ["batch.json", "config.yaml", "shards"]

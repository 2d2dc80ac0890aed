"""The stage packs, cuts and publishes; run again it finds its receipt."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import RunConfig, ShardsConfig
from pipeline.data.samples import read_samples
from pipeline.decode import canonical, decode, plain
from pipeline.errors import ConfigError, DataError
from pipeline.records import Manifest, RequestBatch
from pipeline.requests import parse
from pipeline.stages.runner import run_stage
from tests.pipeline.data.tars import sample, write_tar

SYNTHETIC = {"component": "synthetic", "samples": 40, "unseen_samples": 20, "size": 8}


def _folder(root: Path, batch: RequestBatch, *, source: dict[str, Any] | None = None, **shards: Any) -> Path:
    settings = ShardsConfig(**{"near_bits": None, **shards})
    config = RunConfig(name="t", output=str(root), source=source or SYNTHETIC, model={}, task={}, method={}, shards=settings)
    folder = root / "t-1"
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(config)))
    (folder / "shards" / "batch.json").write_bytes(canonical(batch))
    return folder


def _manifest(folder: Path) -> Manifest:
    return decode(Manifest, json.loads((folder / "manifest.json").read_bytes()), where="manifest.json")


def _keys(*keys: str, **more: str) -> RequestBatch:
    return parse([{"request_id": "r1", "keys": list(keys), **more}], where="t")


def test_the_stage_publishes_shards_index_and_manifest_with_a_receipt(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path, parse([{"request_id": "r1", "label": "shape 1"}, {"request_id": "r2", "keys": ["train-000000"]}], where="t")
    )
    receipt = run_stage("shard", str(folder))
    assert receipt is not None
    manifest = _manifest(folder)
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
    assert facts["quarantined"] == 0 and manifest.near_copies is None
    new = ("forget-000000.tar", "rewritten-000000.tar", "index.parquet")
    assert facts["bytes_written"] == sum((folder / "shards" / name).stat().st_size for name in new)
    assert read_samples(str(folder), manifest, "retain").groups.tolist() == [-1] * 29
    assert run_stage("shard", str(folder)) == receipt


def test_a_refused_batch_leaves_no_manifest_and_a_packed_source_for_the_next(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _keys("nobody"))
    with pytest.raises(ConfigError, match="nobody"):
        run_stage("shard", str(folder))
    assert sorted(p.name for p in folder.rglob("*")) == ["batch.json", "config.yaml", "shards"]
    (source,) = (tmp_path / "sources").iterdir()
    packed = {path: path.stat().st_mtime_ns for path in source.rglob("*.tar")}
    assert packed
    assert run_stage("shard", str(_folder(tmp_path, _keys("train-000000")))) is not None
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*.tar")} == packed


def test_faults_are_set_aside_by_policy_counted_and_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [m for n in range(6) for m in sample(f"k{n}", n % 2, n)]
    write_tar(tmp_path / "t" / "a.tar", [*members, ("bad.cls", b"0")])
    write_tar(tmp_path / "u" / "u.tar", [m for n in range(12) for m in sample(f"u{n}", 0, 100 + n)])
    source = {"component": "webdataset", "training": [f"{tmp_path}/t"], "unseen": [f"{tmp_path}/u"]}
    with pytest.raises(DataError, match=r"a\.tar: key 'bad': no image"):
        run_stage("shard", str(_folder(tmp_path / "out", _keys("k1"), source=source)))
    folder = _folder(tmp_path / "out", _keys("k1"), source=source, on_error="quarantine")
    with caplog.at_level(logging.WARNING, logger="unlearn"):
        receipt = run_stage("shard", str(folder))
    assert receipt is not None and receipt.facts["quarantined"] == 1 == _manifest(folder).quarantined
    assert receipt.facts["training"] == 6
    assert ["bad" in record.getMessage() and "a.tar" in record.getMessage() for record in caplog.records].count(True) == 1


def test_copies_are_listed_and_belong_to_the_outputs_where_the_request_lets_them_be(tmp_path: Path) -> None:
    members = [m for key, n in (("k0", 1), ("k1", 2), ("k1-again", 2), ("k3", 4)) for m in sample(key, 0, n)]
    write_tar(tmp_path / "t" / "a.tar", members)
    write_tar(tmp_path / "u" / "u.tar", [m for n in range(12) for m in sample(f"u{n}", 0, 100 + n)])
    source = {"component": "webdataset", "training": [f"{tmp_path}/t"], "unseen": [f"{tmp_path}/u"]}
    folder = _folder(tmp_path / "out", _keys("k1"), source=source)
    with pytest.raises(ConfigError, match=r"1 retained images are copies .*\(1 exact, 0 near\)"):
        run_stage("shard", str(folder))
    assert not (folder / "manifest.json").exists()
    receipt = run_stage("shard", str(_folder(tmp_path / "out", _keys("k1", copies="ignore"), source=source)))
    assert receipt is not None and "shards/copies.csv" in {ref.uri for ref in receipt.outputs}
    assert (_manifest(folder).exact_copies, receipt.facts["forget"]) == (1, 1)
    receipt = run_stage("shard", str(_folder(tmp_path / "out", _keys("k1", copies="include"), source=source)))
    assert receipt is not None
    assert (_manifest(folder).exact_copies, receipt.facts["forget"]) == (0, 2)


def test_no_key_is_in_the_manifest_or_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="unlearn"):
        folder = _folder(tmp_path, _keys("train-000007"))
        assert run_stage("shard", str(folder)) is not None
    assert "train-000007" not in (folder / "manifest.json").read_text() + caplog.text

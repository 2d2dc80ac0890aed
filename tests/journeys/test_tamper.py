"""One changed byte in any kind of file makes `unlearn verify` fail and name it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.shards import read_shard
from pipeline.errors import IntegrityError
from tests.support.command import unlearn
from tests.support.distributed import run_distributed
from tests.support.runs import run_stages

pytestmark = pytest.mark.distributed

KINDS = {
    "forget shard": "shards/forget-000000.tar",
    "rewritten shard": "shards/rewritten-*.tar",
    "index": "shards/index.parquet",
    "source shard": "../sources/*/train-000000.tar",
    "original weights": "checkpoints/original/model.safetensors",
    "unlearned weights": "checkpoints/unlearned/model.safetensors",
    "released weights": "weights/model.safetensors",
    "receipt": "receipts/forget.json",
    "last receipt": "receipts/release.json",
    "manifest": "manifest.json",
    "calibration": "calibration.json",
    "evaluation": "evaluation.json",
    "page": "report.html",
    "facts": "report.json",
    "configuration": "config.yaml",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_byte_is_found_and_named(copy: Path, kind: str) -> None:
    targets = sorted(copy.glob(KINDS[kind]))
    if kind == "source shard":
        # The forgotten class is in the only training shard, so that one was rewritten; unseen images are referenced.
        targets = sorted(copy.glob("../sources/*/unseen-000000.tar"))
    assert targets, kind
    content = bytearray(targets[0].read_bytes())
    content[len(content) // 2] ^= 1
    targets[0].write_bytes(content)
    done = unlearn("verify", str(copy))
    assert done.returncode == 3, done.stdout
    assert targets[0].name in done.stderr or targets[0].stem in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_files_are_named(copy: Path) -> None:
    (copy / "checkpoints" / "forgotten" / "model.safetensors").unlink()
    (copy / "receipts" / "release.json").unlink()
    done = unlearn("verify", str(copy))
    assert done.returncode == 3
    assert "forgotten" in done.stderr
    assert "release" in done.stderr


def _retain(run: str) -> str:
    with pytest.raises(IntegrityError) as caught:
        run_stages(run, "retain")
    return caught.value.message


def test_a_changed_shard_stops_the_stage_that_reads_it(copy: Path) -> None:
    (copy / "receipts" / "retain.json").unlink()
    shard = sorted((copy / "shards").glob("rewritten-*.tar"))[0]
    row = read_shard(str(shard))[0][5]
    content = bytearray(shard.read_bytes())
    content[row.offset + row.size // 2] ^= 1
    shard.write_bytes(content)
    (message,) = run_distributed(_retain, 1, str(copy))
    assert f"{shard.name}: {row.key}.{row.ext}: bytes differ from the index" in message

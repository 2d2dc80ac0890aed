"""Any changed or missing byte of a finished run is found and named with its stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.verify import verify
from pipeline.decode import canonical, digest
from pipeline.errors import StorageError
from pipeline.storage import hash_file


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_an_untouched_run_is_intact(finished: Path) -> None:
    found = verify(str(finished))
    assert found.faults == ()
    assert (found.receipts, found.shards, found.remote) == (8, 2, 0)


@pytest.mark.parametrize(
    ("name", "said_by"),
    [
        ("manifest.json", "stage shard"),
        ("shards/forget-0.tar", "stage shard"),
        ("shards/index.parquet", "stage shard"),
        ("shards/batch.json", "stage shard"),
        ("../packed/000.tar", "manifest"),
        ("weights/train.bin", "stage train"),
        ("weights/retain.bin", "stage retain"),
        ("report.html", "stage release"),
        ("report.json", "stage release"),
        ("receipts/forget.json", "stage forget"),
        ("config.yaml", "config.yaml"),
    ],
)
def test_one_changed_byte_or_a_missing_file_is_named(finished: Path, name: str, said_by: str) -> None:
    flip(finished / name)
    faults = verify(str(finished)).faults
    assert any(said_by in fault and Path(name).name in fault for fault in faults), faults
    (finished / name).unlink()
    faults = verify(str(finished)).faults
    if name != "shards/batch.json":  # A run folder may be handed on without the raw requests.
        assert any(said_by in fault for fault in faults), faults


def test_all_faults_are_listed(finished: Path) -> None:
    flip(finished / "weights/train.bin")
    flip(finished / "report.html")
    assert len(verify(str(finished)).faults) == 2


def test_missing_stages_are_named(finished: Path) -> None:
    (finished / "receipts/release.json").unlink()
    (finished / "receipts/evaluate.json").unlink()
    assert [fault.split(":")[0] for fault in verify(str(finished)).faults] == ["stage evaluate", "stage release"]


def test_an_unknown_receipt_is_named(finished: Path) -> None:
    (finished / "receipts/certificate.json").write_text("{}")
    (fault,) = verify(str(finished)).faults
    assert "certificate.json: not a receipt of any stage" in fault


def test_a_resealed_receipt_does_not_fit_its_successors(finished: Path) -> None:
    """Someone who changes an output and seals its receipt anew is found by the stages that read it."""
    flip(finished / "weights/train.bin")
    receipt = json.loads((finished / "receipts/train.json").read_text())["receipt"]
    receipt["outputs"][0]["sha256"] = hash_file(str(finished / "weights/train.bin")).sha256
    (finished / "receipts/train.json").write_bytes(canonical({"receipt": receipt, "sha256": digest(receipt)}))
    faults = verify(str(finished)).faults
    assert "stage calibrate: was made from other outputs of stage train" in faults


@pytest.mark.parametrize("provenance", [{}, {"receipts": [{"stage": "train", "digest": "0" * 64}]}])
def test_the_reports_own_digests_are_compared(finished: Path, provenance: dict[str, Any]) -> None:
    (finished / "report.json").write_text(json.dumps({"provenance": provenance}))
    faults = verify(str(finished)).faults
    words = "another receipt of stage train" if provenance else "names no receipts"
    assert any(words in fault for fault in faults), faults


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no run lies here"):
        verify(str(tmp_path))

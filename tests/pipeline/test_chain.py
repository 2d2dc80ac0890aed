"""Receipts are sealed, and say when a stage need not run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipeline.chain import CHAIN, chain_for, config_digest, current_receipt, inputs_of, read_receipt, stage, write_receipt
from pipeline.config import RunConfig, resolve
from pipeline.errors import IntegrityError
from pipeline.records import FileRef, Receipt
from pipeline.storage import hash_file, publish_bytes
from tests.support.runs import write_run_file


def finish(config: RunConfig, folder: str, name: str, content: bytes = b"x") -> Receipt:
    publish_bytes(f"{folder}/{name}.out", content)
    spec = stage(name, config)
    receipt = Receipt(
        stage=name,
        inputs=inputs_of(folder, spec) or {},
        outputs=(dataclasses.replace(hash_file(f"{folder}/{name}.out"), uri=f"{name}.out"),),
        config_digest=config_digest(config, spec),
        code_version="test",
        world_size=1,
        started_at="",
        ended_at="",
    )
    write_receipt(folder, receipt)
    return receipt


def test_a_stage_runs_again_only_when_input_configuration_or_output_changed(tmp_path: Path) -> None:
    file, folder = str(write_run_file(tmp_path)), str(tmp_path / "run")
    config = resolve(file)
    assert inputs_of(folder, stage("train", config)) is None
    first = finish(config, folder, "shard")
    finish(config, folder, "train")
    assert current_receipt(config, folder, stage("shard", config)) == first
    assert current_receipt(config, folder, stage("train", config)) is not None
    assert current_receipt(resolve(file, ["evaluation.bootstrap=9"]), folder, stage("train", config)) is not None
    assert current_receipt(resolve(file, ["train.epochs=9"]), folder, stage("train", config)) is None
    assert current_receipt(resolve(file, ["train.epochs=9"]), folder, stage("shard", config)) is not None
    finish(config, folder, "shard", b"other output")
    assert current_receipt(config, folder, stage("train", config)) is None
    finish(config, folder, "train")
    Path(folder, "train.out").unlink()
    assert current_receipt(config, folder, stage("train", config)) is None


def test_every_changed_byte_of_a_receipt_is_found(tmp_path: Path) -> None:
    config, folder = resolve(str(write_run_file(tmp_path))), str(tmp_path / "run")
    finish(config, folder, "shard")
    file = Path(folder, "receipts", "shard.json")
    good = file.read_bytes()
    for place in range(len(good)):
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(IntegrityError, match=r"shard\.json"):
            read_receipt(folder, "shard")
    file.write_bytes(good + b"\n")
    with pytest.raises(IntegrityError):
        read_receipt(folder, "shard")
    file.write_bytes(good)
    sha256 = hash_file(f"{folder}/shard.out").sha256
    assert read_receipt(folder, "shard").outputs == (FileRef(uri="shard.out", sha256=sha256, bytes=1),)


def test_the_chain_reads_only_what_comes_before_it(tmp_path: Path) -> None:
    for number, spec in enumerate(CHAIN):
        assert set(spec.needs) <= {earlier.name for earlier in CHAIN[:number]}
    without = chain_for(resolve(str(write_run_file(tmp_path, reference="none"))))
    assert "retrain" not in {spec.name for spec in without} | {need for spec in without for need in spec.needs}
    # What forgets must not see what judges it.
    for spec in CHAIN:
        if spec.name in ("calibrate", "forget", "retain"):
            assert "retrain" not in spec.needs

"""A stand-in for `python -m pipeline`: writes real receipts without torch, and fails on demand.

The environment variable FAKE_<STAGE> chooses what goes wrong: data-error, diverged, crash, kill, sleep, no-receipt.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

from pipeline.chain import CHAIN, config_digest, inputs_of, read_receipt, stage, write_receipt
from pipeline.config import RunConfig
from pipeline.decode import canonical, decode, digest
from pipeline.orders import CompareAnswer
from pipeline.records import FileRef, Group, Manifest, Receipt, RequestBatch, ShardRef, Split
from pipeline.requests import batch_digest
from pipeline.storage import hash_file, publish_bytes

FIGURE = {"error": 0.03125, "low": 0.03, "high": 0.0325}
ROW = {"split": "forget", "group": "class", "n": 40, "original": FIGURE, "unlearned": FIGURE, "retrained": None}


def misbehave(how: str, name: str) -> None:
    """Fail in the way that is asked for."""
    if how == "data-error":
        entry = {"kind": "DataError", "message": f"{name}: label 'Trouzers': unknown", "cure": "say Trouser", "exit_code": 3}
        Path(os.environ["UNLEARN_ERROR_FILE"]).write_text(json.dumps(entry) + "\n")
        sys.exit(3)
    if how.startswith("diverged"):
        entry = {"kind": "CheckpointError", "message": f"{how.partition(' ')[2]}answers with NaN", "cure": "x", "exit_code": 3}
        Path(os.environ["UNLEARN_ERROR_FILE"]).write_text(json.dumps(entry) + "\n")
        sys.exit(3)
    if how == "crash":
        raise RuntimeError("a bug")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "sleep":
        print("sleeping", os.getpid(), flush=True)
        time.sleep(60)
    if how == "no-receipt":
        sys.exit(0)


def _files(name: str, folder: Path) -> list[str]:
    if name == "shard":
        shard = dataclasses.replace(hash_file(_write(folder, "shards/forget-0.tar", b"forget")), uri="shards/forget-0.tar")
        clean = dataclasses.replace(hash_file(_write(folder.parent, "packed/000.tar", b"clean")), uri="../packed/000.tar")
        index = dataclasses.replace(hash_file(_write(folder, "shards/index.parquet", b"index")), uri="shards/index.parquet")
        _write(folder, "manifest.json", canonical(_manifest(folder, shard, clean, index)))
        return ["manifest.json", "shards/forget-0.tar", "shards/index.parquet"]
    if name == "release":
        receipts = [read_receipt(str(folder), spec.name) for spec in CHAIN]
        drawn_from = [{"stage": item.stage, "digest": digest(item)} for item in receipts if item]
        report = {"table": [ROW], "headline": ["forgotten: yes"], "provenance": {"receipts": drawn_from}}
        _write(folder, "report.json", json.dumps(report).encode())
        _write(folder, "report.html", b"<html></html>")
        return ["report.html", "report.json"]
    _write(folder, f"weights/{name}.bin", name.encode())
    return [f"weights/{name}.bin"]


def _compare(file: Path) -> None:
    order = json.loads(file.read_text())
    rows = [[f"{item['seed']} {name}", text] for item in order["runs"] for name, text in item["failed"].items()]
    table = {"columns": ["method", "why"], "rows": rows, "note": f"of {len(order['runs'])} seeds"}
    facts = {"made_from": order["made_from"], "table": table, "summary": f"methods: {', '.join(order['methods'])}"}
    _write(Path(order["folder"]), "compare.html", b"<html></html>")
    _write(Path(order["folder"]), "compare.json", json.dumps(facts).encode())
    _write(file.parent, "answer.json", canonical(CompareAnswer(folder=order["folder"], files=())))


def _write(folder: Path, name: str, content: bytes) -> str:
    publish_bytes(str(folder / name), content)
    return str(folder / name)


def _manifest(folder: Path, shard: FileRef, clean: FileRef, index: FileRef) -> Manifest:
    batch = decode(RequestBatch, json.loads((folder / "shards/batch.json").read_text()), where="batch")
    forget = ShardRef(uri=shard.uri, sha256=shard.sha256, bytes=shard.bytes, samples=40, origin="forget")
    kept = ShardRef(uri=clean.uri, sha256=clean.sha256, bytes=clean.bytes, samples=60, origin="original")
    splits = (
        Split(name="original", shards=(kept, forget), samples=100, keys_digest="0"),
        Split(name="forget", shards=(forget,), samples=40, keys_digest="0"),
        Split(name="retain", shards=(kept,), samples=60, keys_digest="0"),
    )
    return Manifest(
        run_id=folder.name,
        batch_digest=batch_digest(batch),
        requests=1,
        source="synthetic",
        source_digest="0",
        source_folder="../packed",
        classes=("Trouser",),
        seed=0,
        groups=(Group(name="Trouser", kind="class", labels=(0,), samples=40),),
        splits=splits,
        index=(index,),
        shards_clean=1,
        shards_rewritten=0,
    )


def main(name: str, where: str) -> None:
    """Act one stage, or the check of a configuration file."""
    how = os.environ.get(f"FAKE_{name.upper()}", "")
    blamed = how.split()[1] if how.startswith("diverged ") else ""
    if not blamed or f"{blamed}:" in (Path(where) / "config.yaml").read_text():
        misbehave(how, name)
    if name == "check":
        decode(RunConfig, yaml.safe_load(Path(where).read_text()), where=where)
        return
    if name == "compare":
        _compare(Path(where))
        return
    folder = Path(where)
    config = decode(RunConfig, yaml.safe_load((folder / "config.yaml").read_text()), where=where)
    spec = stage(name, config)
    inputs = inputs_of(where, spec)
    assert inputs is not None, name
    outputs = tuple(dataclasses.replace(hash_file(str(folder / uri)), uri=uri) for uri in _files(name, folder))
    write_receipt(
        where,
        Receipt(
            stage=name,
            inputs=inputs,
            outputs=outputs,
            config_digest=config_digest(config, spec),
            code_version="test",
            world_size=1,
            started_at="",
            ended_at="",
            facts={"sample_gradients": 7} if name == "forget" else {},
        ),
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

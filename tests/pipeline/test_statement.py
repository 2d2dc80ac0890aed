"""A statement copies the report, names files, and contradicts neither report nor receipts unseen."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pipeline.decode import digest
from pipeline.records import FileRef, Receipt
from pipeline.statement import PREDICATE, STATEMENT, Lineage, build, contradictions, subjects

REPORT: dict[str, Any] = {
    "run_id": "demo-1",
    "name": "demo",
    "asked": {"batch_digest": "ab" * 32, "requests": 3, "images": 40},
    "claims": {"tier": "", "words": "measured; no certificate"},
    "headline": ["one", "two"],
    "verdict": {"outcome": "passed", "words": "passed: 1 rules kept", "rules": []},
    "certificate": None,
    "provenance": {"weights": {"sha256": "cd" * 32, "bytes": 7}, "manifest_digest": "ef" * 32, "source_digest": "00"},
}
TIMES = {"started_at": "a", "ended_at": "b"}


def receipt(stage: str, **inputs: str) -> Receipt:
    ref = FileRef(uri=f"{stage}.json", sha256="11" * 32, bytes=1)
    return Receipt(stage=stage, inputs=inputs, outputs=(ref,), config_digest="x", code_version="i2i 1", world_size=1, **TIMES)


RECEIPTS = {"shard": receipt("shard"), "release": receipt("release", shard="22")}
FILES = [FileRef(uri="model.safetensors", sha256="cd" * 32, bytes=7), FileRef(uri="README.md", sha256="12" * 32, bytes=1)]
LINEAGE = Lineage(line="demo", version="demo-1-0", parent=None, batches=("ab" * 32,))


def made(**over: Any) -> dict[str, Any]:
    settled = {"lineage": LINEAGE, "released_at": "2026", "forgotten": {"note": "not computed"}}
    return build(FILES, REPORT, RECEIPTS, **{**settled, **over})


def test_it_is_an_in_toto_statement_of_files_in_order() -> None:
    statement = made()
    assert (statement["_type"], statement["predicateType"]) == (STATEMENT, PREDICATE)
    assert subjects(statement) == {"README.md": "12" * 32, "model.safetensors": "cd" * 32}
    assert [item["name"] for item in statement["subject"]] == ["README.md", "model.safetensors"]


def test_what_it_says_is_the_reports() -> None:
    predicate = made(ledger={"seq": 3, "hash": "h"}, approval={"approver": "Ada"})["predicate"]
    assert predicate["claim"] == {"tier": "", "words": "measured; no certificate", "headline": ["one", "two"]}
    assert predicate["codeVersion"] == "i2i 1" and predicate["ledger"]["seq"] == 3
    assert predicate["receipts"][1]["sha256"] == digest(RECEIPTS["shard"])
    assert predicate["approval"] == {"approver": "Ada"} and predicate["lineage"]["batches"] == ["ab" * 32]


def test_a_report_or_receipts_that_differ_are_named_by_field() -> None:
    statement = made()
    assert contradictions(statement, REPORT, RECEIPTS) == []
    other = copy.deepcopy(REPORT)
    other["claims"]["words"] = "certified"
    other["verdict"]["outcome"] = "failed"
    assert contradictions(statement, other, RECEIPTS) == ["claim", "verdict"]
    assert contradictions(statement, REPORT, {"release": RECEIPTS["release"]}) == ["receipts"]
    assert contradictions(statement, REPORT, {"shard": RECEIPTS["shard"]}) == ["receipts", "codeVersion"]


@pytest.mark.parametrize("report", [{}, {"asked": 1}, {"asked": {}, "claims": {}, "provenance": {}}])
def test_a_report_without_what_is_copied_contradicts(report: dict[str, Any]) -> None:
    assert contradictions(made(), report, RECEIPTS) == ["report"]


NAMED = {"_type": STATEMENT, "predicateType": PREDICATE}


@pytest.mark.parametrize("statement", [{}, {"_type": STATEMENT}, NAMED, {**NAMED, "predicate": 7}])
def test_what_is_no_statement_of_ours_names_nothing(statement: dict[str, Any]) -> None:
    assert contradictions(statement, REPORT, RECEIPTS) == ["predicateType"]
    assert subjects(statement) == {}
    assert subjects({"subject": [{"name": "a"}]}) == {}

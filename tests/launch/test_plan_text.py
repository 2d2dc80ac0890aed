"""How estimates are told: units for people, what is missing by name, the reason beside every advice."""

from __future__ import annotations

import dataclasses

import pytest

from launch.advice import Advice, Bound
from launch.estimate import Basis, estimate
from launch.outlook import Outlook
from launch.plan_text import advice_lines, estimate_rows, outlook_lines, print_outlook, time_text
from launch.work import StageWork
from pipeline.chain import CHAIN
from pipeline.config import resolve
from tests.support.planning import ANSWER, FACTS, MACHINE, RATES

SHARD, TRAIN = (next(spec for spec in CHAIN if spec.name == name) for name in ("shard", "train"))
BASIS = Basis(config=resolve("demo", []), answer=ANSWER, rates=RATES)
WORK = StageWork(facts=FACTS, steps=12_000, samples=4096, splits={"original": (409_600, 4096)}, at_most=True)
STAGES = (
    estimate(SHARD, StageWork(), BASIS, nodes=1, per_node=8),
    estimate(TRAIN, WORK, BASIS, nodes=2, per_node=8),
)
ADVICE = Advice(stage="train", nodes=4, gain=1.25, known=True, bound=Bound(ranks=4096, by="the batch"), cheapest=1, least=2)
OUTLOOK = Outlook(
    nodes=2,
    per_node=8,
    device="h100",
    price=30.0,
    machine=None,
    answer=ANSWER,
    stages=STAGES,
    advice=(ADVICE,),
    seconds=3600.0,
    node_hours=2.0,
    missing=("saving",),
)


def test_seconds_for_people() -> None:
    texts = [time_text(value) for value in (None, 0.0, 0.0123, 1.5, 90.0, 600.0, 7200.0, 4e5)]
    assert texts == ["not computed", "0 s", "12.3 ms", "1.5 s", "90 s", "10.0 min", "2.0 h", "4.6 d"]


def test_rows_tell_what_is_not_computed() -> None:
    columns, rows = estimate_rows(STAGES, 30.0)
    shard, train = (dict(zip(columns, row, strict=True)) for row in rows)
    assert (shard["time"], shard["node-hours"], shard["cost"], shard["a step"]) == ("not computed",) * 3 + ("-",)
    assert (train["nodes"], train["ranks"], train["steps"], train["longest"]) == ("2", "16", "12,000", "compute")
    assert train["time"].startswith("<= ")
    assert "cost" not in estimate_rows(STAGES, 0.0)[0]


def test_advice_has_its_reason() -> None:
    (line,) = advice_lines([ADVICE])
    assert line.startswith("train: up to 4 (twice as many make it 1.25 times as fast, less than 1.3)")
    assert line.endswith("fits in memory from 2 nodes on")


def test_what_was_measured_is_told_with_its_load(capsys: pytest.CaptureFixture[str]) -> None:
    facts = dict(outlook_lines(OUTLOOK))
    assert "device table" in facts["computed with"]
    assert facts["in no time"] == "saving (how fast its storage is, is not known)"
    assert facts["all stages"] == "60.0 min one after the other, 2 node-hours, 60.00 in money"

    measured = dict(outlook_lines(dataclasses.replace(OUTLOOK, machine=MACHINE)))
    assert "2 ranks of 1 threads, 0.2 processes" in measured["computed with"]
    print_outlook(OUTLOOK)
    assert "nodes:" in capsys.readouterr().out

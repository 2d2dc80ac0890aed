"""The attack with shadow runs on a small run and four shadows: what it finds, what it keeps, and which folders it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.acts import shadows
from pipeline.audit_orders import ShadowsOrder
from pipeline.chain import read_receipt
from pipeline.decode import decode
from pipeline.errors import ConfigError, StorageError
from pipeline.evaluation.summary import REFERENCE
from pipeline.findings import Finding, Found
from pipeline.stages.runner import run_stage
from tests.support.distributed import run_distributed
from tests.support.runs import prepare, run_stages

STAGES = ("shard", "train", "retrain", "calibrate", "forget", "retain")
RUNS = 5


def run_all(runs: list[str]) -> None:
    for run in runs:
        run_stages(run, *STAGES)


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> ShadowsOrder:
    folder = tmp_path_factory.mktemp("shadowed")
    runs = [prepare(folder, name=f"tiny-s{seed}", seed=seed, train={"epochs": 1}) for seed in range(RUNS)]
    run_distributed(run_all, 1, runs)
    return ShadowsOrder(folder=runs[0], shadows=tuple(runs[1:]), samples=40)


@pytest.fixture(scope="module")
def found(order: ShadowsOrder) -> Found:
    return shadows.run(order)


def of(found: Found, subject: str) -> list[Finding]:
    return [item for item in found.findings if item.subject == subject]


def test_every_group_is_judged_with_its_control_over_all_runs(order: ShadowsOrder, found: Found) -> None:
    own, control = of(found, "unlearned"), of(found, "original")
    assert [item.group for item in own] == [item.group for item in control] and len(own) == 2
    assert sorted(item.samples for item in own) == [3, 30]
    for item in found.findings:
        assert item.value is not None and item.low is not None and item.high is not None and item.low < item.value < item.high
        assert item.kept_low is not None and item.epsilon_low == 0
        assert f"over {RUNS} runs" in item.note and "4 shadows can show no epsilon, it takes 6" in item.note
    for line in found.series:
        assert len(line.own) == len(line.other) == RUNS * next(item.samples for item in own if item.group == line.group)


def test_what_is_found_lies_beside_the_weights_it_was_found_in(order: ShadowsOrder, found: Found) -> None:
    content = json.loads(Path(order.folder, "audit/shadows.json").read_text())
    receipt = read_receipt(order.folder, "retain")
    assert receipt is not None and content["weights_sha256"] in {ref.sha256 for ref in receipt.outputs}
    assert decode(Found, content["found"], where="found") == found


def test_the_same_models_are_not_asked_again(order: ShadowsOrder, found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadows, "_measure_all", lambda *given: pytest.fail("measured again"))
    assert shadows.run(order) == found
    for other in (dataclasses.replace(order, samples=39), dataclasses.replace(order, shadows=order.shadows[:3])):
        with pytest.raises(pytest.fail.Exception):
            shadows.run(other)


def test_models_that_equal_the_retrained_ones_show_nothing(
    order: ShadowsOrder, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shadows.load_subjects

    def swapped(*given: Any) -> Any:
        models, marks = real(*given)
        return {**models, "unlearned": models[REFERENCE]}, marks

    monkeypatch.setattr(shadows, "load_subjects", swapped)
    again = shadows.run(dataclasses.replace(order, samples=30))  # another number, so that nothing is taken from before
    for item in of(again, "unlearned"):
        assert (item.value, item.epsilon_low) == (0.0, 0.0) and item.says in ("no power", "not told apart")
    for item, before in zip(of(again, "original"), of(found, "original"), strict=True):
        assert item.value == pytest.approx(before.value)  # no group has more images than were asked for


def test_other_runs_are_no_shadows(order: ShadowsOrder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the seed is the same"):
        shadows.run(dataclasses.replace(order, shadows=(order.folder, *order.shadows[1:])))
    with pytest.raises(ConfigError, match="at least 2"):
        shadows.run(dataclasses.replace(order, shadows=order.shadows[:1]))
    other = prepare(tmp_path, seed=9, train={"epochs": 3}, task="outpaint")
    with pytest.raises(StorageError):
        shadows.run(dataclasses.replace(order, shadows=(*order.shadows, other)))
    run_stage("shard", other)
    with pytest.raises(ConfigError, match="not a shadow of this run: task, train"):
        shadows.run(dataclasses.replace(order, shadows=(*order.shadows, other)))

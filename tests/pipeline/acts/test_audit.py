"""The battery on a small finished run: controls, what equals the retrained model, what is kept, and the verdict's words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.acts import audit
from pipeline.acts.battery import ATTACKS, Battery
from pipeline.config import read_run
from pipeline.errors import ConfigError, StorageError
from pipeline.evaluation.summary import REFERENCE
from pipeline.findings import OVER, Audit, Finding, Says
from pipeline.orders import AuditOrder
from tests.support.distributed import run_distributed
from tests.support.runs import TINY, prepare, run_stages

STAGES = ("shard", "train", "retrain", "calibrate", "forget", "retain", "evaluate", "release")


def order(run: str, samples: int = 60) -> AuditOrder:
    return AuditOrder(config=read_run(run), folder=run, samples=samples)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    source = {**TINY["source"], "samples": 400, "unseen_samples": 400}
    train = {**TINY["train"], "epochs": 6}
    run = prepare(tmp_path_factory.mktemp("audited"), source=source, train=train)
    run_distributed(run_stages, 1, run, *STAGES)
    return run


@pytest.fixture(scope="module")
def found(finished: str) -> Audit:
    return audit.run(order(finished))


def of(found: Audit, subject: str) -> dict[str, Finding]:
    return {item.attack: item for item in found.findings if item.subject == subject and item.says != "not computed"}


def test_every_attack_looks_at_the_model_and_its_controls(finished: str, found: Audit) -> None:
    for subject in ("original", "unlearned", OVER):
        assert set(of(found, subject)) == set(ATTACKS)
    for item in of(found, "unlearned").values():
        assert item.low is not None and item.value is not None and item.high is not None
        assert item.low <= item.value <= item.high and item.samples > 0
    assert json.loads(Path(finished, "audit.json").read_text())["words"] == found.words


def test_a_model_that_was_driven_too_far_is_found_from_the_other_side(found: Audit) -> None:
    assert of(found, OVER)["relearn"].says == "over-forgotten"


def test_a_group_of_few_images_is_not_judged(found: Audit) -> None:
    few = [item for item in found.findings if item.says == "not computed"]
    assert {item.attack for item in few} == set(ATTACKS) and all("it takes 16 of each" in item.note for item in few)
    assert all(item.value is None for item in few)


def test_an_audit_of_the_same_weights_does_nothing_again(finished: str, found: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Battery, "attack", lambda *given: pytest.fail("attacked again"))
    assert audit.run(order(finished)) == found


@pytest.mark.parametrize("stand_in", [REFERENCE, "original"])
def test_a_model_is_judged_as_the_one_that_it_equals(
    finished: str, found: Audit, monkeypatch: pytest.MonkeyPatch, stand_in: str
) -> None:
    real = audit.load_subjects

    def swapped(*given: Any) -> Any:
        models, marks = real(*given)
        return {**models, "unlearned": models[stand_in]}, {**marks, "unlearned": marks[stand_in]}

    monkeypatch.setattr(audit, "load_subjects", swapped)
    again = audit.run(order(finished))
    for attack, item in of(again, "unlearned").items():
        if stand_in == REFERENCE:
            assert item.value == 0.0 and item.says in ("not told apart", "no power")
        else:
            twin = of(found, "original")[attack]
            assert (item.value, item.samples) == (twin.value, twin.samples)


def test_a_run_without_a_retrained_model_or_without_an_end_is_refused(tmp_path: Path) -> None:
    run = prepare(tmp_path, reference="none")
    with pytest.raises(StorageError, match="has not ended"):
        audit.run(order(run))
    run_distributed(run_stages, 1, run, *(name for name in STAGES if name != "retrain"))
    with pytest.raises(ConfigError, match="no retrained model"):
        audit.run(order(run))


LINE = Finding(attack="relearn", group="g", subject="unlearned", measure="m", says="no power")


@pytest.mark.parametrize(
    ("says", "passed", "words"),
    [
        (["no power", "not computed"], None, "no attack had the power"),
        (["not told apart", "no power"], True, "by 1 attacks; 1 more had no power"),
        (["not told apart", "still there"], False, "found by 1 of 2 attacks: relearn (g): still there"),
        (["over-forgotten"], False, "over-forgotten"),
    ],
)
def test_the_verdict_needs_power_and_is_two_sided(says: list[Says], passed: bool | None, words: str) -> None:
    made = audit._verdict([dataclasses.replace(LINE, says=one) for one in says])
    assert made[0] is passed and words in made[1]

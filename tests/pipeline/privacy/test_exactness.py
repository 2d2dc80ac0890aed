"""Each condition broken alone: the words are not granted, and that condition is named."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pipeline.config import resolve
from pipeline.findings import TrainedSlice, TrainingOrder
from pipeline.privacy.exactness import CONDITIONS, WORDS, Found, judge, named_inputs
from pipeline.records import Coverage, FileRef, PhaseOutcome
from tests.pipeline.privacy.test_certificate import MANIFEST

SETS = ((3, "aa"), (5, "bb"))
COVERAGE = Coverage(
    split="retain", passes=1, samples_expected=3, samples_seen=3, keys_digest="k", expected_digest="k", complete=True
)


def trained(sets: tuple[tuple[int, str], ...] = SETS, **outcome: Any) -> tuple[TrainedSlice, ...]:
    fields = {"phase": "retain", "reason": "budget", "steps": 1, "samples": 3, "sample_gradients": 3, "seconds": 1.0}
    ended = PhaseOutcome(**{**fields, "parameters": 9, "coverage": (COVERAGE,), **outcome})
    return tuple(
        TrainedSlice(
            samples=count, set_digest=found, seed=1, outcome=ended, weights=FileRef(uri=f"w{n}", sha256=f"weights {n}", bytes=1)
        )
        for n, (count, found) in enumerate(sets, start=1)
    )


ORDER = TrainingOrder(
    weights="unlearned",
    split="retain",
    slices=2,
    seed=1,
    settings="settings",
    inputs=(),
    kept=1,
    trained=trained(),
    mark="mark",
)
ORIGINAL = dataclasses.replace(ORDER, weights="original", split="original", kept=0, trained=trained((SETS[0], (6, "cc"))))
FOUND = Found(
    order=ORDER,
    original=ORIGINAL,
    sets=SETS,
    settings="settings",
    given=False,
    inputs=(),
    declared={},
    share=1.0,
    reads_forget=False,
    phases=("retain",),
    manifest=dataclasses.replace(MANIFEST, near_copies=None),
    released="weights 2",
)


def order(**fields: Any) -> dict[str, Any]:
    return {"order": dataclasses.replace(ORDER, **fields)}


def test_all_that_holds_is_granted() -> None:
    found = judge("rewind", FOUND)
    assert found.granted and found.words == WORDS and found.route == "rewind" and found.failed == ()
    assert [item.name for item in found.conditions] == list(CONDITIONS)
    assert {item.state for item in found.conditions} == {"checked"}
    assert "after slice 1 of 2" in found.conditions[1].text and "of this run" in found.conditions[1].text
    given = judge("rewind", dataclasses.replace(FOUND, given=True))
    assert given.granted and "beside the given weights" in given.conditions[1].text
    random = judge("retrain", dataclasses.replace(FOUND, **order(kept=0)))
    assert random.granted and random.conditions[1].text.endswith("random weights")


BROKEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "another set": ("E1", {"sets": ((3, "aa"), (5, "xx"))}, "stage 2 of 2 was trained on another set"),
    "as many samples, not the same": ("E1", {"sets": ((3, "xx"), (5, "bb"))}, "stage 1 of 2 was trained on another set"),
    "parts of a pass": ("E1", order(trained=trained(coverage=())), "whole passes"),
    "a pass that missed some": (
        "E1",
        order(trained=trained(coverage=(dataclasses.replace(COVERAGE, complete=False),))),
        "whole passes",
    ),
    "a stage is missing": ("E1", order(trained=trained()[:1]), "1 of 2 stages"),
    "no ledger": ("E1", {"order": None}, "no order ledger"),
    "other weights were gone on from": (
        "E2",
        {"original": dataclasses.replace(ORIGINAL, trained=trained(((3, "xx"), (6, "cc"))))},
        "not those of the original's ledger",
    ),
    "no ledger of the original": ("E2", {"original": None}, "not those of the original's ledger"),
    "a phase before": ("E3", {"phases": ("forget", "retain")}, "phase forget ran"),
    "forget images read": ("E3", {"reads_forget": True}, "read forgotten samples"),
    "another split": ("E3", order(split="original"), "read the split original"),
    "no phase": ("E3", {"phases": ()}, "no training was recorded"),
    "weights made elsewhere": ("E4", {"inputs": ("model.folder",)}, "model.folder may hold some"),
    "weights that only the ledger names": ("E4", order(inputs=("model.folder",)), "method.declared.inputs"),
    "weights behind what is kept": ("E4", {"original": dataclasses.replace(ORIGINAL, inputs=("task.file",))}, "task.file"),
    "a shorter training": ("E5", {"share": 0.5}, "0.5 of training's"),
    "settings of the original": ("E5", {"original": dataclasses.replace(ORIGINAL, settings="x")}, "trained with others"),
    "settings of the ledger": ("E5", order(settings="x"), "other settings than the run's"),
    "copies": ("E6", {"manifest": dataclasses.replace(MANIFEST, exact_copies=2)}, "2 retained images do"),
    "other weights": ("E7", {"released": "weights 1"}, "ends at other weights"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_condition_is_named_and_nothing_is_granted(fault: str) -> None:
    name, fields, said = BROKEN[fault]
    found = judge("rewind", dataclasses.replace(FOUND, **fields))
    assert not found.granted and found.words == ""
    assert name in {item.name for item in found.failed}
    assert said in next(item.text for item in found.failed if item.name == name)
    assert fault in ("no ledger", "no ledger of the original", "a stage is missing") or len(found.failed) == 1


def test_each_condition_is_broken_by_some_test() -> None:
    assert {name for name, _, _ in BROKEN.values()} == set(CONDITIONS)


def test_somebody_may_answer_for_inputs_and_settings_by_name() -> None:
    declared = {"inputs": "data team", "settings": "J. Doe"}
    outside = dataclasses.replace(FOUND, inputs=("model.folder",), share=0.5, declared=declared)
    found = judge("retrain", outside)
    assert found.granted
    states = {item.name: (item.state, item.text) for item in found.conditions}
    assert states["E4"][0] == states["E5"][0] == "declared"
    assert "data team" in states["E4"][1] and "J. Doe" in states["E5"][1] and "0.5" in states["E5"][1]
    one = judge("retrain", dataclasses.replace(outside, declared={"settings": "J. Doe"}))
    assert [item.name for item in one.failed] == ["E4"]


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        ([], ()),
        (["model=vqgan_small"], ()),
        (["model=vqgan_small", "model.folder=tokenizer"], ("model.folder",)),
        (["model=mae", "model.folder=s3://bucket/mae", "task=outpaint"], ("model.folder",)),
        (["model={component: their.model, base: ./x.pt}"], ("model.base", "model.component")),
    ],
)
def test_weights_made_elsewhere_are_found_in_the_configuration(overrides: list[str], found: tuple[str, ...]) -> None:
    assert named_inputs(resolve("demo", overrides)) == found

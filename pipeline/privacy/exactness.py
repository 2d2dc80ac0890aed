"""The checker of the exact routes: weights were trained without the forgotten samples where every condition was seen to hold.

Exact unlearning is that of Bourtoule et al. 2021 (arXiv 1912.03817): the weights are those of a training that never read the
samples. Every stage of training must have read a set of samples whose digest is that of retained samples alone; whatever else
goes into weights must be free of the forgotten ones, by measurement or by somebody's word. All inputs are records that stages
wrote, and digests of the retained samples that are made again from the index.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipeline.config import RunConfig
from pipeline.findings import Exactness, TrainingOrder
from pipeline.records import Assumption, Manifest

__all__ = ["CONDITIONS", "ROUTES", "WORDS", "Declarable", "Found", "judge", "named_inputs"]

WORDS = "trained without these samples"
ROUTES: Mapping[str, Literal["retrain", "rewind"]] = {"retrain": "retrain", "rewind": "rewind"}
"""Methods that can be exact, and the route that they take."""
Declarable = Literal["inputs", "settings"]
"""Conditions that nothing measures and somebody may answer for."""

CONDITIONS = {
    "E1": "every stage of training read retained samples alone",
    "E2": "training began at random weights, or at weights that are proved to have seen none of the samples",
    "E3": "no phase of the method read a forgotten sample",
    "E4": "nothing else that the weights are made of holds a forgotten sample",
    "E5": "no setting was chosen anew with the forgotten samples at hand",
    "E6": "no retained sample has the bytes of a forgotten one",
    "E7": "the released weights are those at the end of this training",
}

FIELD = re.compile(r"folder|weights|checkpoint|pretrained|path|file|uri|url", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What the checker looks at.

    order: ledger of the released weights, or None · original: that of the original · sets: number and digest of the retained
    samples in slices 1 to r, for each r of `order`, made from the index · settings: digest of the run's training settings ·
    given: the original's weights were made elsewhere · inputs: see `named_inputs` · declared: who answers for what · share: of
    retraining's length · reads_forget: what the last phase's receipt says · phases: of the method, that ran · released: sha256 of
    the released weights.
    """

    order: TrainingOrder | None
    original: TrainingOrder | None
    sets: Sequence[tuple[int, str]]
    settings: str
    given: bool
    inputs: Sequence[str]
    declared: Mapping[str, str]
    share: float
    reads_forget: bool
    phases: Sequence[str]
    manifest: Manifest
    released: str


def named_inputs(config: RunConfig) -> tuple[str, ...]:
    """Fields of model and task that name weights made elsewhere, or code that may bring some along, sorted.

    A field counts by its name, or by a value that is an address; so a part from outside is not overlooked.
    """
    found: list[str] = []
    for section in ("model", "task"):
        _collect(getattr(config, section), section, found)
    return tuple(sorted(found))


def _collect(value: Any, where: str, found: list[str]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _collect(item, f"{where}.{key}", found)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _collect(item, f"{where}.{number}", found)
    elif isinstance(value, str) and value:
        field = where.partition(".")[2]
        outside = "." in value if field == "component" else bool(FIELD.search(field)) or "/" in value or "\\" in value
        if outside:
            found.append(where)


def judge(route: Literal["retrain", "rewind"], found: Found) -> Exactness:
    """Check all conditions; the words are granted where none fails."""
    conditions = (_sets(found), _start(found), _reading(found), _inputs(found), _settings(found), _copies(found), _end(found))
    granted = all(item.state != "failed" for item in conditions)
    return Exactness(granted=granted, words=WORDS if granted else "", route=route, conditions=conditions)


def _made(name: str, faults: Sequence[str], seen: str, state: Literal["checked", "declared"] = "checked") -> Assumption:
    text = f"{CONDITIONS[name]}: {'; '.join(faults) if faults else seen}"
    return Assumption(name=name, state="failed" if faults else state, text=text)


def _sets(found: Found) -> Assumption:
    order = found.order
    if order is None:
        return _made("E1", ["there is no order ledger of the released weights"], "")
    faults = []
    if len(order.trained) != order.slices or len(found.sets) != order.slices:
        faults.append(f"the ledger has {len(order.trained)} of {order.slices} stages")
    for number, (item, wanted) in enumerate(zip(order.trained, found.sets, strict=False), start=1):
        stage = f"stage {number} of {order.slices}"
        if (item.samples, item.set_digest) != tuple(wanted):
            faults.append(f"{stage} was trained on another set than the retained samples of its slices")
        if not item.outcome.coverage or not all(coverage.complete for coverage in item.outcome.coverage):
            faults.append(f"{stage} did not read its samples in whole passes")
    samples = order.trained[-1].samples if order.trained else 0
    return _made("E1", faults, f"{samples} samples, by the digest of keys and contents of each of {order.slices} stages")


def _start(found: Found) -> Assumption:
    order, original = found.order, found.original
    if order is None:
        return _made("E2", ["there is no order ledger of the released weights"], "")
    if not order.kept:
        return _made("E2", [], "random weights")
    theirs = original.trained[: order.kept] if original else ()
    same = [(item.samples, item.set_digest, item.weights.sha256) for item in order.trained[: order.kept]]
    faults = []
    if [(item.samples, item.set_digest, item.weights.sha256) for item in theirs] != same:
        faults.append("the slices that were kept are not those of the original's ledger")
    said = "by the ledger that lies beside the given weights" if found.given else "by the ledger of this run"
    seen = f"the original's weights after slice {order.kept} of {order.slices}, whose set is that of retained samples {said}"
    return _made("E2", faults, seen)


def _reading(found: Found) -> Assumption:
    faults = [f"phase {name} ran, which is none of an exact method's" for name in found.phases if name != "retain"]
    if "retain" not in found.phases:
        faults.append("no training was recorded")
    if found.reads_forget:
        faults.append("the method's training read forgotten samples")
    if found.order is not None and found.order.split != "retain":
        faults.append(f"it read the split {found.order.split}")
    return _made("E3", faults, "it read the split of retained samples alone")


def _inputs(found: Found) -> Assumption:
    ledgers = found.order.inputs if found.order else ()
    theirs = found.original.inputs if found.original and found.order and found.order.kept else ()
    names, who = sorted({*found.inputs, *ledgers, *theirs}), found.declared.get("inputs", "")
    if not names:
        return _made("E4", [], "no weights made elsewhere, no teacher, no tokenizer of its own")
    if not who:
        listed = ", ".join(names)
        return _made("E4", [f"{listed} may hold some, and nobody declared otherwise (method.declared.inputs)"], "")
    return _made("E4", [], f"{', '.join(names)} declared free of them by {who}", "declared")


def _settings(found: Found) -> Assumption:
    faults = []
    if found.share != 1.0:
        faults.append(f"its length is {found.share:g} of training's (method.retain.share)")
    if found.order is None or found.order.settings != found.settings:
        faults.append("the ledger names other settings than the run's")
    if found.original is None:
        faults.append("the original's settings are not known: it has no order ledger")
    elif found.original.settings != found.settings:
        faults.append("the original was trained with others")
    who = found.declared.get("settings", "")
    if faults and who:
        return _made("E5", [], f"{'; '.join(faults)}; declared by {who}", "declared")
    return _made("E5", faults, "they are those of the original's training; how that came by them is not looked at")


def _copies(found: Found) -> Assumption:
    copies, near = found.manifest.exact_copies, found.manifest.near_copies
    faults = [f"{copies} retained images do, by the requests' leave"] if copies else []
    looked = "were not looked for" if near is None else f"are {near}"
    return _made("E6", faults, f"compared by digest; other samples that only look like one {looked}")


def _end(found: Found) -> Assumption:
    trained = found.order.trained if found.order else ()
    good = bool(trained) and trained[-1].weights.sha256 == found.released
    return _made("E7", [] if good else ["the ledger ends at other weights"], "by their digest")

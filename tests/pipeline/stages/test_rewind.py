"""Training in slices, interrupted at will, and the way back: bit for bit the weights of a training without the samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.chain import chain_for, read_receipt, stage
from pipeline.config import read_run
from pipeline.data.slices import slice_of
from pipeline.decode import sha256_text
from pipeline.engine.distributed import group
from pipeline.errors import ConfigError, IntegrityError, Preempted
from pipeline.findings import TrainingOrder
from pipeline.stages import sliced
from pipeline.stages.ledger import order_file, read_order
from pipeline.stages.runner import Job
from pipeline.stages.train import train
from tests.pipeline.stages.test_phases import uneven_shards
from tests.support.distributed import run_distributed
from tests.support.runs import prepare, run_stages

pytestmark = pytest.mark.distributed

SEED = int(sha256_text("0|train")[:8], 16)
KEYS = [f"train-{number:06d}" for number in range(120)]
LATE = [key for key in KEYS if slice_of(key, seed=SEED, slices=3) == 3]
FORGOTTEN = [LATE[0], LATE[-1]]
"""Two samples of the last slice, in shards of their own."""
FIELDS: dict[str, Any] = {
    "requests": [{"request_id": "r1", "keys": FORGOTTEN}],
    "train": {"slices": 3},
    "method": {"component": "rewind", "retain": {"latest": None}},
    "reference": "none",
    "evaluation": {"bootstrap": 20, "max_samples": 20, "extractor_samples": 20, "grid_images": 1},
}
ALONE = "alone.safetensors"
"""The original without its run folder."""
WEIGHTS = ("slice-1/model.safetensors", "slice-2/model.safetensors", "model.safetensors")


class _Killed(Exception):
    """Stands for the end of the process."""


def _train(run: str, split: str) -> None:
    config = read_run(run)
    train(Job(spec=stage("train", config), config=config, folder=run), weights="original", split=split, given="train")


def _interrupted(run: str) -> dict[str, int]:
    """Train, asked to leave in the second stage, and killed in the third when its weights are written; the steps of each fit."""
    real, steps = sliced.TrainedSlice, {}

    def ended(**fields: Any) -> Any:
        steps[fields["outcome"].phase] = steps.get(fields["outcome"].phase, 0) + 1
        if fields["outcome"].phase.endswith("1"):
            group().leaving = True
        if fields["outcome"].phase.endswith("3") and steps[fields["outcome"].phase] == 1:
            raise _Killed
        return real(**fields)

    sliced.TrainedSlice = ended  # type: ignore[assignment, misc]
    try:
        with pytest.raises(Preempted):
            _train(run, "original")
        group().leaving = False
        with pytest.raises(_Killed):
            _train(run, "original")
        _train(run, "original")
    finally:
        sliced.TrainedSlice = real  # type: ignore[misc]
    return steps


def _refused(run: str, file: str, old: bytes, new: bytes) -> str:
    """What retention says to a file of the run in which something was changed; the file is restored."""
    path = Path(run, file)
    content = path.read_bytes()
    path.write_bytes(content.replace(old, new, 1) if old else content[:-1] + bytes([content[-1] ^ 1]))
    try:
        run_stages(run, "retain")
    except IntegrityError as fault:
        return fault.message
    finally:
        path.write_bytes(content)
    return ""


def _body(places: dict[str, str]) -> dict[str, Any]:
    found, run = {}, places["run"]
    run_stages(run, "shard")
    for copy in ("twin", "scratch"):
        shutil.copytree(run, places[copy])
    run_stages(run, *(spec.name for spec in chain_for(read_run(run))[1:]))
    found["steps"] = _interrupted(places["twin"])
    _train(places["scratch"], "retain")
    for other in ("given", "early"):
        run_stages(places[other], "shard", "train", "retain")
    shutil.copy(f"{run}/checkpoints/original/model.safetensors", Path(run).parent / ALONE)
    try:
        run_stages(places["alone"], "shard", "train")
    except ConfigError as fault:
        found["refusal"] = fault.message
    Path(places["given"], "receipts/retain.json").unlink()
    Path(places["given"], order_file("unlearned")).unlink()
    found["changed ledger"] = _refused(places["given"], "order/original.json", b'"slices":3', b'"slices":4')
    found["changed weights"] = _refused(places["given"], f"../{Path(run).name}/checkpoints/original/{WEIGHTS[1]}", b"", b"")
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A finished run; a twin that was interrupted; its training without the samples; runs that were given its original."""
    place = tmp_path_factory.mktemp("rewind")
    source = uneven_shards(place)
    run = prepare(place, source=source, **FIELDS)
    original, out = f"{run}/checkpoints/original/model.safetensors", Path(run).parent
    found: dict[str, Any] = {"run": run, "twin": str(out / "twin"), "scratch": str(out / "scratch")}
    found["given"] = prepare(place, source=source, **FIELDS, name="given", original=original)
    found["alone"] = prepare(place, source=source, **FIELDS, name="alone", original=str(out / ALONE))
    early = [key for key in KEYS if slice_of(key, seed=SEED, slices=3) == 1][:1]
    fields = {**FIELDS, "requests": [{"request_id": "r2", "keys": early}]}
    found["early"] = prepare(place, source=source, **fields, name="early", original=original)
    return found | run_distributed(_body, 1, found)[0]


def _weights(run: str, name: str = "original", file: str = "model.safetensors") -> bytes:
    return Path(run, "checkpoints", name, file).read_bytes()


def _order(run: str, name: str = "unlearned") -> TrainingOrder:
    return read_order(f"{run}/{order_file(name)}")


def _phase(run: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "phases", f"{name}.json").read_text())
    return found


def test_training_in_slices_reads_what_it_says_and_keeps_every_stage(runs: dict[str, Any]) -> None:
    order = _order(runs["run"], "original")
    outcome = _phase(runs["run"], "train")
    assert [item.outcome.coverage[0].passes for item in order.trained] == [1, 1, 1]
    assert all(coverage["complete"] for coverage in outcome["coverage"]) and len(outcome["coverage"]) == 3
    assert outcome["sample_gradients"] == sum(item.samples for item in order.trained)
    assert abs(outcome["sample_gradients"] - 2 * len(KEYS)) < 0.15 * 2 * len(KEYS), "epochs times samples, but for unequal slices"
    published = {ref.uri for ref in read_receipt(runs["run"], "train").outputs}
    assert published >= {f"checkpoints/original/{file}" for file in WEIGHTS} | {"order/original.json", "metrics/train.jsonl"}
    lines = [json.loads(line) for line in Path(runs["run"], "metrics/train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, outcome["steps"] + 1))
    text = Path(runs["run"], "order/original.json").read_text()
    assert not any(key in text for key in KEYS)


def test_rewound_weights_are_those_of_the_same_training_without_the_samples(runs: dict[str, Any]) -> None:
    for file in WEIGHTS[:2]:
        assert _weights(runs["scratch"], file=file) == _weights(runs["run"], file=file), "the samples come later"
    assert _weights(runs["run"], "unlearned") == _weights(runs["scratch"])
    assert _weights(runs["run"], "unlearned") != _weights(runs["run"])
    outcome = _phase(runs["run"], "retain")
    assert outcome["reason"] == "rewound to the end of slice 2 of 3"
    assert 0 < outcome["sample_gradients"] == len(KEYS) - 2 < _phase(runs["scratch"], "train")["sample_gradients"]
    order = _order(runs["run"])
    assert order.kept == 2 and order.trained[:2] == _order(runs["run"], "original").trained[:2]
    assert [item.set_digest for item in order.trained] == [
        item.set_digest for item in _order(runs["scratch"], "original").trained
    ]


def test_interrupted_training_ends_at_the_same_weights_and_repeats_no_finished_stage(runs: dict[str, Any]) -> None:
    for file in WEIGHTS:
        assert _weights(runs["twin"], file=file) == _weights(runs["run"], file=file)
    assert runs["steps"] == {"train.slice-1": 1, "train.slice-2": 1, "train.slice-3": 2}
    assert not [path for path in Path(runs["twin"], "checkpoints").glob("train.slice-*/**/*") if path.is_file()]


def test_the_report_says_that_it_was_trained_without_them(runs: dict[str, Any]) -> None:
    facts = json.loads(Path(runs["run"], "report.json").read_text())
    assert (facts["claims"]["tier"], facts["claims"]["words"]) == ("E", "trained without these samples")
    assert facts["claims"]["reasons"] == [] and facts["exactness"]["route"] == "rewind"
    assert {item["state"] for item in facts["exactness"]["conditions"]} == {"checked"}
    assert not any(key in Path(runs["run"], "report.json").read_text() for key in FORGOTTEN)


def test_given_weights_are_rewound_by_the_ledger_beside_them(runs: dict[str, Any]) -> None:
    assert _weights(runs["given"], "unlearned") == _weights(runs["run"], "unlearned")
    order = _order(runs["given"], "original")
    assert order.trained[0].weights.uri == f"../{Path(runs['run']).name}/checkpoints/original/slice-1/model.safetensors"


def test_without_a_ledger_it_is_refused_before_anything_is_trained(runs: dict[str, Any]) -> None:
    assert "no order ledger beside" in runs["refusal"] and "rewinding cannot be proved" in runs["refusal"]


def test_a_forgotten_sample_in_the_first_slice_leaves_random_weights(runs: dict[str, Any]) -> None:
    order, outcome = _order(runs["early"]), _phase(runs["early"], "retain")
    assert order.kept == 0 and len(outcome["coverage"]) == 3
    assert outcome["reason"] == "slice 1 of 3 already holds forgotten images: retrained from random weights"
    assert _weights(runs["early"], "unlearned", WEIGHTS[0]) != _weights(runs["run"], file=WEIGHTS[0])


def test_a_changed_ledger_and_changed_weights_are_refused(runs: dict[str, Any]) -> None:
    assert "order/original.json" in runs["changed ledger"]
    assert "slice-2/model.safetensors" in runs["changed weights"]

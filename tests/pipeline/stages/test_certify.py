"""Stage certify on a tiny run: what is published, what resumes, what is found out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import component
from pipeline.chain import read_receipt
from pipeline.decode import decode
from pipeline.engine.distributed import group
from pipeline.errors import ConfigError, Preempted
from pipeline.models.autoencoder import Config, build
from pipeline.privacy.certificate import noise_bounds
from pipeline.records import NoisyMeasures
from pipeline.stages import certify
from tests.support.distributed import run_distributed
from tests.support.runs import TINY, prepare, run_stages

CERTIFY: dict[str, Any] = {
    "epsilon": 1000.0,
    "steps": 6,
    "learning_rate": 0.1,
    "step_norm": 0.05,
    "batch_size": 16,
    "price_limit": 1e6,
    "declared": {"A6": "J. Doe", "A9": "J. Doe", "A10": "J. Doe"},
}
METHOD = {**TINY["method"], "retention": "plain", "certify": CERTIFY}
BEFORE = ("shard", "train", "calibrate", "forget")
AFTER = ("certify", "retain", "evaluate", "release")


def run_with(folder: Path, **fields: Any) -> str:
    return prepare(folder, method={**METHOD, "certify": {**CERTIFY, **fields}}, reference="none")


def measures(run: str) -> NoisyMeasures:
    found: NoisyMeasures = decode(NoisyMeasures, json.loads(Path(run, "certify.json").read_text()), where="certify.json")
    return found


def report(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "report.json").read_text())
    return found


def body(runs: dict[str, tuple[str, ...]], key: bytes) -> None:
    if key:
        certify.fresh_key = lambda: key
    for run, names in runs.items():
        run_stages(run, *names)


def carry_out(runs: dict[str, tuple[str, ...]], *, ranks: int = 1, key: bytes = b"") -> None:
    """Run stages of each run in a group of their own."""
    run_distributed(body, ranks, runs, key)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = run_with(tmp_path_factory.mktemp("certified"))
    carry_out({run: (*BEFORE, *AFTER)}, ranks=2)
    return run


def test_what_it_did_is_measured(finished: str) -> None:
    found = measures(finished)
    model = build(Config(image_size=8, width=8, latent=16))
    assert found.dimension == sum(parameter.numel() for parameter in model.parameters())
    assert (found.steps, found.planned, found.reads) == (6, 6, ("retain",))
    assert 0.99 < found.start_norm <= 1.0 and 0 < found.step_norm <= 0.05
    low, high = noise_bounds(found.dimension)
    assert low < found.noise_low <= found.noise_high < high
    assert (found.buffers, found.outside, found.held_in, found.left, found.other_settings) == ((), (), (), (), "")
    assert found.destroyed


def test_all_that_holds_earns_a_certificate_and_the_report_says_so(finished: str) -> None:
    facts, page = report(finished), Path(finished, "report.html").read_text()
    assert facts["certificate"]["granted"] and facts["claims"]["tier"] == "C"
    assert facts["certificate"]["epsilon"] == pytest.approx(1000, rel=3e-3)
    assert facts["claims"]["words"].startswith("certified at (ε = 99")
    assert "An (ε, δ) guarantee of any kind." not in facts["claims"]["not_claimed"]
    assert any("anything but the last weights" in line for line in facts["claims"]["not_claimed"])
    assert "Assumptions of the certificate" in page and "Why there is no certificate" not in page
    assert "certified at" in Path(finished, "weights", "README.md").read_text()


def test_retention_goes_on_from_the_certified_weights(finished: str) -> None:
    receipt = read_receipt(finished, "retain")
    assert receipt is not None and "certify" in receipt.inputs and receipt.facts["reads_forget"] is False


def test_losses_of_the_phase_are_in_no_log(finished: str) -> None:
    lines = [json.loads(line) for line in Path(finished, "metrics", "certify.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert not any("loss" in key for line in lines for key in line)
    assert json.loads(Path(finished, "phases", "certify.json").read_text())["losses"] == {}
    assert not [path for path in Path(finished, "checkpoints", "certify").rglob("*") if path.is_file()]


@pytest.mark.distributed
def test_one_assumption_that_fails_leaves_no_epsilon_anywhere(tmp_path: Path) -> None:
    run = run_with(tmp_path, declared={"A6": "J. Doe", "A9": "J. Doe"}, epsilon=731.25)
    carry_out({run: (*BEFORE, *AFTER)})
    facts = report(run)
    assert facts["claims"]["tier"] == "" and facts["claims"]["words"] == "measured; no certificate"
    assert [reason for reason in facts["claims"]["reasons"] if "A10" in reason and "withheld" in reason]
    assert "An (ε, δ) guarantee of any kind." in facts["claims"]["not_claimed"]
    for name in ("report.json", "report.html", "weights/README.md", "weights/config.json", "certify.json"):
        text = Path(run, name).read_text()
        assert "731.25" not in text and "ε =" not in text, name


def interrupted(run: str) -> list[bytes]:
    keys: list[bytes] = []
    real = certify.fresh_key

    def noted() -> bytes:
        keys.append(real())
        return keys[-1]

    certify.fresh_key = noted
    run_stages(run, *BEFORE)
    group().leaving = True
    with pytest.raises(Preempted):
        run_stages(run, "certify")
    group().leaving = False
    state = json.loads(Path(run, "checkpoints", "certify", "last", "state.json").read_text())["state"]
    assert state["step"] == 1 and state["tally"]["steps"] == 1
    run_stages(run, "certify")
    return keys


@pytest.mark.distributed
def test_an_interrupted_phase_goes_on_with_fresh_noise(tmp_path: Path) -> None:
    run = run_with(tmp_path)
    (keys,) = run_distributed(interrupted, 1, run)
    found = measures(run)
    assert found.steps == 6 and 0.99 < found.start_norm <= 1.0
    assert len(keys) == 2 and keys[0] != keys[1]


@pytest.mark.distributed
def test_a_key_that_was_written_down_and_other_settings_are_found(tmp_path: Path) -> None:
    key = bytes(range(32))
    first = run_with(tmp_path)
    second = prepare(tmp_path, name="again", method={**METHOD, "certify": {**CERTIFY, "epsilon": 900.0}}, reference="none")
    Path(first, "notes.txt").write_text(f"seed: {key.hex()}\n")
    carry_out({first: (*BEFORE, "certify"), second: (*BEFORE, "certify")}, key=key)
    assert measures(first).held_in == ("notes.txt",) and measures(second).held_in == ()
    assert measures(first).other_settings == ""
    assert measures(second).other_settings == Path(first).name


@pytest.mark.distributed
def test_a_bottleneck_gets_noise_and_all_else_is_the_base(tmp_path: Path) -> None:
    plain = prepare(tmp_path, name="base", reference="none")
    base = f"{plain}/checkpoints/original/model.safetensors"
    declared = {**CERTIFY["declared"], "base": "data team"}
    run = run_with(tmp_path, trains="bottleneck", base=base, anchor="base", declared=declared)
    carry_out({plain: ("shard", "train"), run: (*BEFORE, "certify")})
    theirs, found = load_file(base), load_file(f"{run}/checkpoints/certified/model.safetensors")
    model = build(Config(image_size=8, width=8, latent=16))
    inside = {id(p) for module in model.bottleneck() for p in module.parameters()}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in inside]
    assert 0 < measures(run).dimension == sum(theirs[name].numel() for name in names) < sum(t.numel() for t in theirs.values())
    for name, tensor in theirs.items():
        assert torch.equal(found[name], tensor) == (name not in names), name
    assert measures(run).outside == () and len(measures(run).base_sha256) == 64


def test_a_guard_after_the_phase_is_refused() -> None:
    with pytest.raises(ConfigError, match="retention: guarded, which reads forget images"):
        component.decode_config("method", {**METHOD, "retention": "guarded"})

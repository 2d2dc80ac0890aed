"""Ten claims that a report must not make, each tried with the facts and settings that would tempt it."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RuleConfig, resolve
from pipeline.decode import decode
from pipeline.errors import ConfigError
from pipeline.findings import Audit, Finding
from pipeline.privacy.certificate import judge as judge_certificate
from pipeline.privacy.mechanism import certify_config
from pipeline.report.claims import claims
from pipeline.report.headline import headline
from pipeline.report.verdict import report_figures
from pipeline.stages.release import run
from tests.pipeline.privacy.test_certificate import CONFIG, MANIFEST, MEASURES
from tests.pipeline.report.fabricated import build as fabricate

EPSILON = re.compile(r"ε\s*=|epsilon\s*[=:]?\s*\d", re.IGNORECASE)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("dishonest")
    run(fabricate(str(folder), num=40))
    return json.loads((folder / "report.json").read_text())


def texts(value: Any) -> Iterator[str]:
    """All that a reader is told."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


def again(report: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The claims of other facts."""
    return claims(copy.deepcopy(report) | changes)


def test_1_closeness_to_the_original_is_not_called_unlearning(report: dict[str, Any]) -> None:
    made = again(report, closeness={"moved": 0.1, "noise": 0.5, "delta": 1e-5, "epsilon": 0.9})
    assert made["tier"] == "" and made["words"] == "measured; no certificate"
    assert "not unlearning" in made["closeness"]["label"]
    rest = {name: value for name, value in made.items() if name != "closeness"}
    assert not any(EPSILON.search(text) for text in texts(rest))


@pytest.mark.parametrize("constant", ["lipschitz", "strong_convexity", "smoothness", "gradient_bound", "sensitivity"])
def test_2_no_constant_can_be_typed_in(constant: str) -> None:
    with pytest.raises(ConfigError, match=constant):
        certify_config({"mechanism": "noisy_retain", "epsilon": 8, constant: 1.0})


def test_3_a_small_distance_to_one_retrained_model_certifies_nothing(report: dict[str, Any]) -> None:
    near = copy.deepcopy(report["distance"])
    for row in near:
        row["unlearned"] = {"value": 0.0, "low": 0.0, "high": 0.0, "note": ""}
    made = again(report, distance=near)
    assert made["tier"] == "" and "no certificate" in made["words"]


def test_4_a_lower_bound_is_no_guarantee() -> None:
    fields = {field.name for field in dataclasses.fields(Finding)} | {field.name for field in dataclasses.fields(Audit)}
    assert "epsilon_low" in fields and "epsilon" not in fields
    # A tier comes from the run or from attacks that found nothing; no field of a run types it in.
    with pytest.raises(ConfigError, match="tier"):
        resolve("demo", ["tier=C"])


@pytest.mark.parametrize("field", ["sample_rate", "noise_multiplier", "max_grad_norm", "accountant"])
def test_5_the_accounting_of_another_mechanism_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        certify_config({"mechanism": "noisy_retain", "epsilon": 8, field: 1.0})


def test_6_a_membership_score_near_0_is_no_success(report: dict[str, Any]) -> None:
    rows = copy.deepcopy(report["membership"])
    for row in rows:
        row["unlearned"] |= {"value": 0.0, "low": 0.0, "high": 0.0}
        row["retrained"] |= {"value": 0.5, "low": 0.45, "high": 0.55}
    assert report_figures(report | {"membership": rows})["membership"].value == 0.45


def test_7_a_forget_loss_that_rose_is_no_claim(report: dict[str, Any]) -> None:
    worse = copy.deepcopy(report["distance"])
    for row in worse:
        row["unlearned"] = dict(row["original"])
    told = headline(copy.deepcopy(report) | {"distance": worse})
    assert "still errs differently" in told["summary"]
    assert not any("rose" in text or "therefore" in text for text in texts(report["claims"]))


BROKEN = {
    "outside": ("decoder.weight",),  # 8: weights without noise
    "held_in": ("logs/certify.log",),  # 9: the key lay about
    "left": ("checkpoints/step-3",),  # 9: more than the last weights
    "reads": ("retain", "forget"),  # 9: something was chosen by forget images
    "other_settings": "cd" * 32,  # 9: settings tried on this batch before
    "destroyed": False,
}


@pytest.mark.parametrize("field", BROKEN)
def test_8_and_9_no_certificate_for_part_of_a_model_or_with_a_choice_by_forget_images(field: str) -> None:
    sound = judge_certificate(CONFIG, MEASURES, MANIFEST, retention_reads=("retain",))
    assert sound.granted
    broken = judge_certificate(
        CONFIG, dataclasses.replace(MEASURES, **{field: BROKEN[field]}), MANIFEST, retention_reads=("retain",)
    )
    assert not broken.granted and broken.epsilon is None and broken.formula is None
    made = claims({"certificate": {"granted": False, "assumptions": []}, **EMPTY})
    assert not any(EPSILON.search(text) for text in texts(made))


EMPTY: dict[str, Any] = {
    "distance": [],
    "membership": [],
    "utility": {"unlearned": {"value": None}},
    "levels": [],
    "done": {"retention": {"mode": "plain", "excludes": ""}, "phases": [{"phase": "retain"}]},
}


def test_10_no_report_says_that_a_law_is_kept(report: dict[str, Any]) -> None:
    said = [text.lower() for text in texts(report)]
    for word in ("gdpr", "compliant", "complies", "guaranteed", "proves that", "proof that"):
        assert not any(word in text for text in said), word
    assert any(text.startswith("Legal compliance:") for text in report["claims"]["not_claimed"])
    templates = Path(__file__).parents[3] / "pipeline/report"
    assert not any("compliant" in file.read_text().lower() for file in templates.glob("*.j2"))


def test_a_rule_has_a_reason_and_names_what_is_measured() -> None:
    for override, told in {
        "verdict={gdpr: {at_most: 1, reason: x}}": "verdict.gdpr",
        "verdict={cost: {at_most: 1, reason: ''}}": "reason: empty",
        "verdict={cost: {reason: x}}": "without a bound",
        "verdict={tier: {at_least: 1, reason: x}}": "not a bound",
        "verdict={cost: {at_least: A, reason: x}}": "not a bound",
        "verdict=strict": "no set of rules",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(told)):
            resolve("demo", [override])
    changed = resolve("demo", ["verdict.kept.at_most=1.5"]).verdict
    assert changed["kept"].at_most == 1.5 and changed["utility"] == resolve("demo").verdict["utility"]
    assert not resolve("demo", ["verdict=none"]).verdict
    assert decode(RuleConfig, {"at_most": 1.0, "reason": "x"}, where="x").by == "value"

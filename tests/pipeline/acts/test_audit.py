"""The battery on a small finished run: controls, what equals the retrained model, what is kept, and the verdict's words."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.acts import audit
from pipeline.acts.battery import ATTACKS, Battery
from pipeline.decode import canonical
from pipeline.errors import ConfigError, StorageError
from pipeline.evaluation.summary import REFERENCE
from pipeline.findings import OVER, Audit, Finding, Found, Says
from tests.pipeline.acts.conftest import STAGES, audit_order
from tests.support.distributed import run_distributed
from tests.support.runs import prepare, run_stages

LINE = Finding(attack="relearn", group="g", subject="unlearned", measure="m", says="no power")


def of(found: Audit, subject: str) -> dict[str, Finding]:
    return {item.attack: item for item in found.findings if item.subject == subject and item.says != "not computed"}


def test_every_attack_looks_at_the_model_and_its_controls(audited_run: str, audited: Audit) -> None:
    for subject in ("original", "unlearned", OVER):
        assert set(of(audited, subject)) == set(ATTACKS)
    for item in of(audited, "unlearned").values():
        assert item.low is not None and item.value is not None and item.high is not None
        assert item.low <= item.value <= item.high and item.samples > 0
    assert json.loads(Path(audited_run, "audit.json").read_text())["words"] == audited.words


def test_a_model_that_was_driven_too_far_is_found_from_the_other_side(audited: Audit) -> None:
    assert of(audited, OVER)["relearn"].says == "over-forgotten"


def test_a_group_of_few_images_is_not_judged(audited: Audit) -> None:
    few = [item for item in audited.findings if item.says == "not computed"]
    assert {item.attack for item in few} == set(ATTACKS) and all("it takes 16 of each" in item.note for item in few)
    assert all(item.value is None for item in few)


def test_an_audit_of_the_same_weights_does_nothing_again(
    audited_run: str, audited: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(audited_run, "audit.html").read_bytes()
    for name in ("attack", "picture"):
        monkeypatch.setattr(Battery, name, lambda *given: pytest.fail("made again"))
    assert audit.run(audit_order(audited_run)) == audited
    assert Path(audited_run, "audit.html").read_bytes() == page


def test_further_parts_are_shown_and_judged_as_long_as_they_attacked_these_weights(
    audited_run: str, audited: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[Any] = []
    monkeypatch.setattr(audit, "publish_page", lambda job, answer, series, **more: pages.append((len(series), more)))
    planted, line = Path(audited_run, "audit", "planted.json"), dataclasses.replace(LINE, attack="canary", says="still there")
    try:
        for weights in (audited.weights_sha256, "0" * 64):
            planted.write_bytes(canonical({"weights_sha256": weights, "found": Found(findings=(line,))}))
            again = audit.run(audit_order(audited_run))
            current = weights == audited.weights_sha256
            assert again.findings == (*audited.findings, *([line] if current else []))
            assert ("canary (g): still there" in again.words) == current
    finally:
        planted.unlink()
    assert [more["planted"] for _, more in pages] == [True, False] and pages[0][0] == 9


def test_the_page_names_groups_and_attacks_and_no_image(audited_run: str, audited: Audit) -> None:
    page = Path(audited_run, "audit.html").read_text()
    for item in audited.findings:
        assert html.escape(item.group) in page
    assert page.count("Histogram of") == page.count("ROC curves on") == len(ATTACKS), "of the one group that was attacked"
    assert audited.weights_sha256 in page and "train-00" not in page
    assert base64.b64encode(Path(audited_run, "audit", "images-0.png").read_bytes()).decode() in page
    assert not Path(audited_run, "audit", "images-1.png").exists(), "too few images"


@pytest.mark.parametrize("stand_in", [REFERENCE, "original"])
def test_a_model_is_judged_as_the_one_that_it_equals(
    audited_run: str, audited: Audit, monkeypatch: pytest.MonkeyPatch, stand_in: str
) -> None:
    real = audit.load_subjects

    def swapped(*given: Any) -> Any:
        models, marks = real(*given)
        return {**models, "unlearned": models[stand_in]}, {**marks, "unlearned": marks[stand_in]}

    monkeypatch.setattr(audit, "load_subjects", swapped)
    for name in ("publish_page", "kept_picture"):  # seconds of drawing
        monkeypatch.setattr(audit, name, lambda *given, **more: None)
    again = audit.run(audit_order(audited_run))
    for attack, item in of(again, "unlearned").items():
        if stand_in == REFERENCE:
            assert item.value == 0.0 and item.says in ("not told apart", "no power")
        else:
            twin = of(audited, "original")[attack]
            assert (item.value, item.samples) == (twin.value, twin.samples)


def test_shadow_runs_lend_their_retrained_models_as_long_as_they_are_there(
    audited_run: str, audited: Audit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("publish_page", "kept_picture"):  # seconds of drawing
        monkeypatch.setattr(audit, name, lambda *given, **more: None)
    run, shadows = Path(audited_run), Path(audited_run, "audit", "shadows.json")
    names = [f"{run.name}-like-{number}" for number in range(2)]
    content = {"weights_sha256": audited.weights_sha256, "shadows": names, "found": Found(findings=())}
    try:
        for name in names:
            shutil.copytree(run, run.parent / name)
        shadows.write_bytes(canonical(content))
        beside = of(audit.run(audit_order(audited_run)), "unlearned")
        for attack, item in of(audited, "unlearned").items():
            assert beside[attack].value == pytest.approx(item.value, abs=1e-6)
            assert beside[attack].trainings == (1 if attack == "extraction" else 3)
        assert beside["relearn"].low == pytest.approx(beside["relearn"].high, abs=1e-9), "they are copies of each other"
        shutil.rmtree(run.parent / names[0])
        assert of(audit.run(audit_order(audited_run)), "unlearned") == of(audited, "unlearned")
        assert "left out a shadow run's retrained model" in caplog.text
    finally:
        shadows.unlink()
        for name in names:
            shutil.rmtree(run.parent / name, ignore_errors=True)


def test_a_run_without_a_retrained_model_or_without_an_end_is_refused(tmp_path: Path) -> None:
    run = prepare(tmp_path, reference="none")
    with pytest.raises(StorageError, match="has not ended"):
        audit.run(audit_order(run))
    run_distributed(run_stages, 1, run, *(name for name in STAGES if name != "retrain"))
    with pytest.raises(ConfigError, match="no retrained model"):
        audit.run(audit_order(run))


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

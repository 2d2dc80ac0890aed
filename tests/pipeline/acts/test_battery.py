"""Figures behind findings, checked against the findings themselves, and the picture, which shows no image to forget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.acts import battery
from pipeline.acts.battery import ATTACKS, Battery
from pipeline.chain import stage
from pipeline.data.samples import read_samples
from pipeline.decode import decode
from pipeline.evaluation.summary import REFERENCE
from pipeline.findings import OVER, Audit, Found
from pipeline.stages.evaluate import load_subjects
from pipeline.stages.phase import Phase
from pipeline.stages.runner import Job
from tests.pipeline.acts.conftest import audit_order


@pytest.fixture
def armed(audited_run: str) -> Iterator[tuple[Battery, Phase]]:
    config = audit_order(audited_run).config
    job = Job(spec=stage("evaluate", config), config=config, folder=audited_run)
    phase = Phase(job, "audit")
    made = Battery(phase, load_subjects(job, phase.group.device)[0], 60)
    yield made, phase
    made.close()


def kept(run: str, attack: str) -> Found:
    return decode(Found, json.loads(Path(run, "audit", f"{attack}-0.json").read_bytes())["found"], where=attack)


@pytest.mark.parametrize("attack", ATTACKS)
def test_scores_of_images_give_the_finding_and_are_short(audited_run: str, audited: Audit, attack: str) -> None:
    found = kept(audited_run, attack)
    assert set(found.findings) < set(audited.findings)
    lines = {item.subject: item for item in found.findings}
    assert [item.subject for item in found.series] == list(lines) and set(lines) == {"original", "unlearned", OVER}
    for item in found.series:
        line, own, other = lines[item.subject], np.array(item.own), np.array(item.other)
        judged = line.samples - line.samples // 2 if attack == "relearn" else line.samples
        assert len(own) == len(other) == judged and item.other == found.series[0].other
        value = float((other == 1).mean() - (own == 1).mean() if attack == "extraction" else np.log(own.mean() / other.mean()))
        assert (item.observed, value) == (pytest.approx(line.value, rel=1e-5), pytest.approx(line.value, rel=1e-3, abs=1e-5))
        assert len(item.null) == 400 and abs(np.mean(item.null)) <= abs(value) + np.std(item.null)
        assert all(float(f"{number:.6g}") == number for number in (*item.own, *item.other, *item.null))


def test_a_model_equal_to_the_retrained_one_has_its_scores_and_a_null_of_nothing(armed: tuple[Battery, Phase]) -> None:
    made, _ = armed
    made._models = {**made._models, "unlearned": made._models[REFERENCE]}
    made._over = (0, made._models[REFERENCE])
    for item in made.attack("extraction", 0).series:
        if item.subject != "original":
            assert item.own == item.other and item.observed == 0 and set(item.null) == {0.0}


def test_the_picture_shows_unseen_images_and_none_to_forget(
    armed: tuple[Battery, Phase], audited_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, phase = armed
    drawn: list[Any] = []
    monkeypatch.setattr(battery, "draw", lambda rows: drawn.extend(rows) or b"picture")
    made._over = (0, made._models["original"])
    assert made.picture(0) == b"picture" and made.picture(1) is None, "the second group has too few images"
    rows = dict(drawn)
    assert list(rows) == [
        *("truth", "hidden input", "original", OVER, "unlearned", REFERENCE),
        *("decoder, original", "decoder, unlearned", "decoder, retrained"),
    ]
    pixels = {}
    for name in ("forget", "holdout"):
        table = read_samples(audited_run, phase.manifest, name)
        with_images = phase.reader(table, made._models["original"])
        pixels[name] = {image.tobytes() for image in with_images.fetch(np.arange(len(table.keys)))}
        with_images.close()
    shown = {image.tobytes() for image in rows["truth"]}
    assert len(shown) == 2 and shown <= pixels["holdout"] and not shown & pixels["forget"]
    known = (rows["hidden input"] == rows["truth"]).all(axis=(0, 3))
    for images in rows.values():
        assert np.array_equal(images[:, known], rows["truth"][:, known]), "nobody changes what is known"

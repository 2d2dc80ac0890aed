import json

import pytest

from pipeline.decode import canonical
from pipeline.errors import IntegrityError
from pipeline.stages.release import run
from tests.pipeline.report.fabricated import build


@pytest.fixture
def made(tmp_path):
    def make(**options):
        run(build(str(tmp_path), **options))
        return json.loads((tmp_path / "report.json").read_bytes())

    return make


def test_facts_of_a_whole_run(made):
    facts = made()
    assert [(row["split"], row["group"]) for row in facts["table"]] == [
        ("forget", "Trouser"),
        ("unseen", "Trouser"),
        ("forget", "single images"),
        ("unseen", "single images"),
        ("retain", ""),
        ("unseen_retain", ""),
    ]
    for row in facts["table"]:
        assert row["n"] == 200
        for subject in ("original", "unlearned", "retrained"):
            assert row[subject]["low"] <= row[subject]["error"] <= row[subject]["high"]
    assert facts["cost"]["share"] == pytest.approx(18_400 / 108_000)
    assert facts["cost"]["sample_gradients"] == 18_400
    assert facts["done"]["retention"]["mode"] == "guarded"
    assert any("certified route" in reason for reason in facts["claims"]["reasons"])
    assert facts["claims"]["words"] == "measured; no certificate"
    assert len(facts["key_figures"]) == 3 and facts["headline"][-1].endswith("measured; no certificate")
    assert facts["membership"][1]["power"] is True


def test_missing_reference_is_none_everywhere(made):
    facts = made(reference=False)
    assert all(row["retrained"]["error"] is None for row in facts["table"])
    assert all(row["unlearned"]["value"] is None and row["detectable"] is None for row in facts["distance"])
    assert facts["utility"]["unlearned"]["value"] is None and facts["cost"]["share"] is None
    assert [figure["value"] for figure in facts["key_figures"]] == ["not computed"] * 3
    assert "not known" in facts["summary"]


def test_plain_retention_and_groups_that_looked_unseen(made):
    facts = made(guarded=False, already_unseen=True)
    assert facts["done"]["retention"] == {"mode": "plain", "excludes": ""}
    assert not any("certified route" in reason for reason in facts["claims"]["reasons"])
    assert sum("already looked unseen" in line for line in facts["claims"]["limits"]) == 2


def test_facts_hold_no_key_and_no_subject(made):
    names = set()

    def walk(value):
        if isinstance(value, dict):
            names.update(value)
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(made())
    assert not names & {"keys", "key", "subject_name", "selector", "values", "basis", "note_text", "requests_text"}


def test_facts_are_canonical(made, tmp_path):
    facts = made()
    assert (tmp_path / "report.json").read_bytes() == canonical(facts)


@pytest.mark.parametrize("name", ["evaluation/errors.npz", "evaluation/grid_0.png", "checkpoints/unlearned/model.safetensors"])
def test_a_changed_input_is_named_and_nothing_is_published(tmp_path, name):
    job = build(str(tmp_path))
    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(IntegrityError, match=name):
        run(job)
    assert not (tmp_path / "report.json").exists() and not (tmp_path / "report.html").exists()

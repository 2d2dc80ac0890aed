"""What is kept of an audit: made once for a mark, and further parts only for the weights that they attacked."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.acts.audit_store import further_parts, kept_part, kept_picture
from pipeline.decode import canonical
from pipeline.errors import IntegrityError
from pipeline.findings import Finding, Found, Series

LINE = Finding(attack="canary", group="g", subject="unlearned", measure="m", says="not told apart", value=0.1, epsilon_low=0.5)
FIGURES = Series(
    attack="canary", group="g", subject="unlearned", score="s", own=(1.0, 2.5), other=(0.5,), null=(0.0,), observed=0.1
)
FOUND = Found(findings=(LINE,), series=(FIGURES,))


@pytest.fixture
def job(tmp_path: Path) -> Any:
    return SimpleNamespace(path=lambda *parts: "/".join([str(tmp_path), *parts]))


def never() -> Any:
    pytest.fail("made again")


def test_a_part_is_made_once_for_a_mark(job: Any) -> None:
    assert kept_part(job, "relearn", 0, "a", lambda: FOUND) == FOUND
    assert kept_part(job, "relearn", 0, "a", never) == FOUND
    other = Found(findings=(LINE, LINE))
    assert kept_part(job, "relearn", 1, "a", lambda: other) == other
    assert kept_part(job, "relearn", 0, "b", lambda: other) == other
    assert kept_part(job, "relearn", 0, "b", never) == other


@pytest.mark.parametrize("content", [b'{"mark":"a","findings":[]}', b'{"mark":"a","found":{"findings":[{}]}}'])
def test_a_part_of_another_form_is_refused_by_name(job: Any, content: bytes) -> None:
    file = Path(job.path("audit/relearn-0.json"))
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=str(file)):
        kept_part(job, "relearn", 0, "a", never)
    assert kept_part(job, "relearn", 0, "b", lambda: FOUND) == FOUND


def test_a_picture_is_drawn_once_for_a_mark_and_goes_with_its_group(job: Any) -> None:
    file = Path(job.path("audit/images-0.png"))
    kept_picture(job, 0, "a", lambda: b"one")
    kept_picture(job, 0, "a", never)
    assert file.read_bytes() == b"one"
    file.unlink()
    kept_picture(job, 0, "a", lambda: b"again")
    assert file.read_bytes() == b"again"
    kept_picture(job, 0, "b", lambda: None)
    kept_picture(job, 0, "b", never)
    assert not file.exists()


def test_further_parts_are_those_of_the_same_weights(job: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert further_parts(job, "w") == {}
    Path(job.path("audit")).mkdir()
    for name, weights in (("planted", "w"), ("shadows", "old")):
        Path(job.path(f"audit/{name}.json")).write_bytes(canonical({"weights_sha256": weights, "found": FOUND, "mark": "own"}))
    with caplog.at_level(logging.WARNING, logger="unlearn"):
        assert further_parts(job, "w") == {"planted": FOUND}
    assert [("shadows.json is outdated" in entry.message) for entry in caplog.records] == [True]
    assert further_parts(job, "old") == {"shadows": FOUND}


@pytest.mark.parametrize("content", ["{", json.dumps({"weights_sha256": "w"}), json.dumps({"weights_sha256": "w", "found": []})])
def test_a_further_part_that_is_none_is_refused_by_name(job: Any, content: str) -> None:
    file = Path(job.path("audit/shadows.json"))
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(IntegrityError, match=str(file)):
        further_parts(job, "w")

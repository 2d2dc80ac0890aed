import dataclasses
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from launch import acts, shadows
from launch.cli import app
from launch.cli_audit import audit, finding_rows
from pipeline.findings import Audit, Finding, Found
from tests.support.command import unlearn
from tests.support.runs import prepare, write_run_file

KNOWN = Finding(
    attack="relearn", group="g", subject="unlearned", measure="m", says="still there", value=-0.5, low=-0.6, high=-0.4, samples=30
)
UNKNOWN = Finding(attack="relearn", group="h", subject="unlearned", measure="", says="not computed", note="3 images")


def test_rows_tell_figures_and_what_is_not_computed() -> None:
    made = Audit(run_id="r", weights_sha256="0", findings=(KNOWN, UNKNOWN), passed=False, words="", confidence=0.95)
    columns, rows = finding_rows(made)
    assert len(columns) == len(rows[0]) == len(rows[1])
    assert rows[0][3] == "-0.500 (-0.600 to -0.400)" and rows[0][6] == "still there"
    assert rows[1][3] == "not computed" and rows[1][7] == "3 images"


def test_a_row_tells_the_epsilon_that_is_refuted() -> None:
    line = dataclasses.replace(KNOWN, epsilon_low=1.5, note="12 of 13")
    made = Audit(run_id="r", weights_sha256="0", findings=(line,), passed=False, words="", confidence=0.95)
    assert finding_rows(made)[1][0][7] == "epsilon is at least 1.50; 12 of 13"


def test_a_run_that_has_not_ended_is_refused_with_the_cure(tmp_path: Path) -> None:
    done = unlearn("audit", str(write_run_file(tmp_path)))
    assert done.returncode == 3 and "the run has not ended" in done.stderr and "Traceback" not in done.stderr


def test_the_answer_ends_with_where_the_page_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    passed = Audit(run_id="r", weights_sha256="0", findings=(KNOWN,), passed=None, words="no power", confidence=0.95)
    monkeypatch.setattr("launch.acts.carry_out", lambda *given, **more: passed)
    audit(str(write_run_file(tmp_path)))
    last, page = capsys.readouterr().out.splitlines()[-2:]
    assert last.startswith("audit: ") and last.endswith("/audit.json")
    assert page.startswith(f"page: {tmp_path}") and page.endswith("/audit.html")


def test_a_planted_audit_of_given_weights_is_refused_with_the_cure(tmp_path: Path) -> None:
    run = prepare(tmp_path, original="/weights.safetensors")
    Path(run, "receipts").mkdir()
    Path(run, "receipts", "release.json").write_text("{}")
    done = unlearn("audit", str(write_run_file(tmp_path, original="/weights.safetensors")), "--planted")
    assert done.returncode == 2 and "planting needs a training" in done.stderr
    assert "cure: audit a run with original=train" in done.stderr


@pytest.mark.parametrize(("words", "expected"), [([], []), (["--shadows", "3"], [(3, 50)])])
def test_shadows_are_attacked_with_before_the_audit_that_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: list[tuple[int, int]]
) -> None:
    told: list[Any] = []
    made = Audit(run_id="r", weights_sha256="0", findings=(UNKNOWN,), passed=None, words="nothing", confidence=0.95)

    def attack(config: Any, batch: Any, count: int, *, samples: int, **_: Any) -> Found:
        told.append((count, samples))
        return Found(findings=())

    def carry_out(*given: Any, **_: Any) -> Audit:
        told.append(given[0])
        return made

    monkeypatch.setattr(shadows, "attack_with_shadows", attack)
    monkeypatch.setattr(acts, "carry_out", carry_out)
    done = typer.testing.CliRunner().invoke(app, ["audit", str(write_run_file(tmp_path)), "--samples", "50", *words])
    assert done.exit_code == 0 and told == [*expected, "audit"], done.output

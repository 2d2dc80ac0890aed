from pathlib import Path
from typing import Any

import pytest
import typer.testing

from launch import acts, shadows
from launch.cli import app
from launch.cli_audit import finding_rows
from pipeline.findings import Audit, Finding, Found
from tests.support.command import unlearn
from tests.support.runs import write_run_file

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


def test_a_run_that_has_not_ended_is_refused_with_the_cure(tmp_path: Path) -> None:
    done = unlearn("audit", str(write_run_file(tmp_path)))
    assert done.returncode == 3 and "the run has not ended" in done.stderr and "Traceback" not in done.stderr


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

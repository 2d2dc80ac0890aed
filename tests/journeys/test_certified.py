"""A certificate from its price to the report, as a user does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import unlearn
from tests.support.runs import TINY, write_run_file

CERTIFY: dict[str, Any] = {
    "epsilon": 8.0,
    "steps": 4,
    "batch_size": 16,
    "declared": {"A6": "J. Doe", "A9": "J. Doe", "A10": "J. Doe"},
}
METHOD = {**TINY["method"], "retention": "plain"}


def run_file(folder: Path, **fields: Any) -> str:
    method = {**METHOD, "certify": {**CERTIFY, **fields}}
    return str(write_run_file(folder, method=method, reference="none", launch={"ranks": 1}))


@pytest.mark.services  # most of a minute: the default suite has stage and price apart
def test_a_price_is_told_refused_confirmed_and_paid(tmp_path: Path) -> None:
    refused = unlearn("run", run_file(tmp_path))
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "times as long as what they may keep of the model" in refused.stderr and "price_limit=" in refused.stderr
    assert not list((tmp_path / "out").glob("tiny-*"))

    file = run_file(tmp_path, price_limit=1e5)
    done = unlearn("run", file, "--json")
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout.strip().splitlines()[-1])["folder"])
    facts = json.loads((folder / "report.json").read_text())
    assert facts["claims"]["tier"] == "C" and facts["certificate"]["epsilon"] == pytest.approx(8, rel=3e-3)
    assert json.loads((folder / "certify.json").read_text())["steps"] == 4
    assert unlearn("verify", str(folder)).returncode == 0

    price = json.loads(unlearn("plan", file, "--json").stdout)["price"]
    assert price["loss_after"] > 0 and price["loss_before"] > 0
    assert price["noise_norm"] == pytest.approx(price["ratio"] * price["radius"])


def test_before_a_run_its_loss_is_not_computed(tmp_path: Path) -> None:
    told = unlearn("plan", run_file(tmp_path))
    assert told.returncode == 0, told.stderr
    line = next(line for line in told.stdout.splitlines() if line.startswith("its noise:"))
    assert "times what they may keep of the model (radius 1)" in line
    assert "not computed: no original is trained yet" in told.stdout


def test_a_guard_after_the_phase_is_refused_by_name(tmp_path: Path) -> None:
    file = write_run_file(tmp_path, method={**TINY["method"], "certify": CERTIFY})
    done = unlearn("check", str(file))
    assert done.returncode == 2 and "retention: guarded, which reads forget images" in done.stderr

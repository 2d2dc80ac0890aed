"""The wheel, installed beside nothing of the clone, gives a working command with its YAML files inside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.services
def test_an_installed_wheel_finds_its_configurations(tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(target), str(ROOT)], check=True, timeout=240)
    environment = {**os.environ, "PYTHONPATH": str(target), "PYTHONSAFEPATH": "1"}
    script = target / "bin" / "unlearn"
    for arguments in (["list"], ["check", "demo"], ["plan", "demo"]):
        done = subprocess.run(
            [sys.executable, str(script), *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    code = "import pipeline.config as c; print(c.CONFIGS)"
    where = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True).strip()
    assert Path(where) == target / "configs"
    assert (target / "configs" / "requests" / "demo.csv").exists()

"""The demo itself, at full size: what it promises about forgetting, and its page in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.command import unlearn

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `unlearn run demo`, on Fashion-MNIST from Debian's package or its cache."""
    done = unlearn("run", "demo", f"output={tmp_path_factory.mktemp('demo')}", "--json", timeout=1500)
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["folder"])


@pytest.mark.timeout(1600)
def test_it_forgets_keeps_and_costs_what_it_promises(demo: Path) -> None:
    evaluations = {e["subject"]: e["results"] for e in json.loads((demo / "evaluation.json").read_text())["evaluations"]}

    def value(subject: str, name: str, split: str, group: str = "") -> float:
        return next(r["value"] for r in evaluations[subject] if (r["name"], r["split"], r["group"]) == (name, split, group))

    assert value("original", "ks", "forget", "class Trouser") > 0.7
    assert value("unlearned", "ks", "forget", "class Trouser") <= 0.20
    assert value("unlearned", "error_ratio", "unseen_retain") <= 1.03
    phases = {n: json.loads((demo / "phases" / f"{n}.json").read_text()) for n in ("calibrate", "forget", "retain", "retrain")}
    spent = sum(phases[name]["sample_gradients"] for name in ("calibrate", "forget", "retain"))
    assert spent <= 0.20 * phases["retrain"]["sample_gradients"]
    assert phases["forget"]["coverage"][0]["complete"]


def test_a_second_demo_does_nothing_and_verify_finds_nothing(demo: Path) -> None:
    again = unlearn("run", "demo", f"output={demo.parent}")
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    assert unlearn("verify", str(demo)).returncode == 0


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_page_in_chromium(demo: Path, tmp_path: Path, width: int, dark: bool) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command = [chromium, "--headless", "--no-sandbox", *quiet, "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--v=0", f"--window-size={width},2400", *(["--force-dark-mode"] if dark else [])]
    shot = tmp_path / "page.png"
    page = (demo / "report.html").as_uri()
    done = subprocess.run([*command, f"--screenshot={shot}", page], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    assert shot.stat().st_size > 50_000
    dom = subprocess.run([*command, "--dump-dom", page], capture_output=True, text=True, timeout=120, check=True).stdout
    assert "no certificate" in dom
    assert dom.count("<img") + dom.count("<svg") >= 5

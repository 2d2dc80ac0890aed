"""The texts for cron, systemd, scrontab and Kubernetes are valid by the programs' own rules, and call the command as it is."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from launch.cli import app
from launch.schedule_install import KINDS, Filling, install_text
from pipeline.errors import ConfigError

FILLING = Filling(
    ledger="sqlite:////srv/unlearn/ledger.sqlite",
    pseudonym_key="/srv/unlearn/ledger.key",
    policy="/srv/unlearn/policy.yaml",
    folder="/srv/unlearn",
    program="/usr/bin/true",
    log="/srv/unlearn/schedule.log",
)


def command_line(text: str) -> list[str]:
    (line,) = re.findall(r"/usr/bin/true (schedule tick[^>\n]*)", text)
    return str(line).split()


@pytest.mark.parametrize("kind", ["cron", "systemd", "slurm"])
def test_the_command_exists_and_takes_the_options(kind: str) -> None:
    words = command_line(install_text(kind, FILLING))
    group = typer.main.get_command(app)
    tick = group.commands["schedule"].commands["tick"]  # type: ignore[attr-defined]
    known = {option for parameter in tick.params for option in parameter.opts}
    assert words[:2] == ["schedule", "tick"] and {word for word in words if word.startswith("--")} <= known
    assert words[-1] == FILLING.policy


def units(text: str) -> dict[str, str]:
    parts = re.split(r"^# (unlearn-schedule\.\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_both_units(tmp_path: Path) -> None:
    for name, text in units(install_text("systemd", FILLING)).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "broken.service").write_text("[Service]\nType=onceshot\nExecStart=/usr/bin/true\n")
    said = {}
    for name in ("unlearn-schedule.service", "unlearn-schedule.timer", "broken.service"):
        words = ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        said[name] = "\n".join(line for line in done.stderr.splitlines() if str(tmp_path) in line or "unlearn" in line)
    assert said.pop("broken.service")
    assert set(said.values()) == {""}


def test_cron_and_scrontab_have_five_fields_and_no_percent_sign() -> None:
    for kind in ("cron", "slurm"):
        (entry,) = [line for line in install_text(kind, FILLING).splitlines() if line.startswith("*")]
        assert entry.split()[:5] == ["*/5", "*", "*", "*", "*"] and "%" not in entry


def cron_job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(install_text("kubernetes", dataclasses.replace(FILLING, minutes=7)))
    return found


def test_kubernetes_takes_it_and_would_see_a_mistake() -> None:
    job = cron_job()
    kubernetes_validate.validate(job, "1.31", strict=True)
    assert job["spec"]["schedule"] == "*/7 * * * *"
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["schedule", "tick", f"--policy={FILLING.policy}"]
    job["spec"]["concurrencyPolice"] = job["spec"].pop("concurrencyPolicy")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.31", strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_no_password_and_no_mark_is_left(kind: str) -> None:
    text = install_text(kind, dataclasses.replace(FILLING, ledger="postgresql://me:hunter2@db/unlearn"))
    assert "hunter2" not in text and "$" not in text.replace("/usr/bin/true", "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"folder": "/srv/my folder"}, "folder: characters that would need quotes"),
        ({"policy": "/srv/$(reboot).yaml"}, "policy: characters"),
        ({"log": "/srv/100%.log"}, "log: characters"),
        ({"minutes": 0}, "--minutes 0"),
        ({"ledger": "nothing"}, "--ledger: not an address"),
    ],
)
def test_what_would_need_quotes_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        install_text("cron", dataclasses.replace(FILLING, **change))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match="--print cronn"):
        install_text("cronn", FILLING)

"""Processes that a server forks for us are as those that we start: their streams, environment, parent, end."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from launch.forkserver import ForkServer, serving
from launch.local import check_parts
from launch.torchrun import JobSpec, Resources, loading_environment
from launch.worker import _adopting
from pipeline.chain import CHAIN
from pipeline.config import resolve
from pipeline.decode import plain
from pipeline.errors import ConfigError
from tests.support.runs import write_run_file

MACHINE = Resources(ranks=1, threads=1, gpus=0, cores=1)
PART = '''"""A model that tells of the process that loads it."""
import json, os, sys, time
print(json.dumps({
    "parent": os.getppid(), "leads": os.getsid(0) == os.getpid(), "extra": os.environ.get("EXTRA"), "old": os.environ.get("OLD"),
    "title": " ".join(open("/proc/self/cmdline").read().split("\\0")).strip(), "input": os.fstat(0).st_ino,
}), flush=True)
print("warned", file=sys.stderr, flush=True)
if os.environ["TELL"] == "wait":
    time.sleep(60)
os._exit(int(os.environ["TELL"]))
'''


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "told").mkdir()
    (tmp_path / "told" / "__init__.py").touch()
    (tmp_path / "told" / "model.py").write_text(PART)
    config = resolve(str(write_run_file(tmp_path)))
    config = dataclasses.replace(config, model={"component": "told.model"}, requests="", embedded_requests=())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain(config)))
    return tmp_path


@pytest.fixture
def server(place: Path) -> Iterator[ForkServer]:
    path = os.pathsep.join([str(place), os.getcwd()])
    found = ForkServer(("json",), {**loading_environment(MACHINE, compiles=False), "OLD": "1", "PYTHONPATH": path})
    yield found
    found.close()


def job(place: Path, tell: str) -> JobSpec:
    env = {**loading_environment(MACHINE, compiles=False), "TELL": tell, "EXTRA": "of the job"}
    return JobSpec(argv=(sys.executable, "-m", "pipeline", "check", str(place / "config.yaml")), env=env)


def test_it_has_its_own_streams_environment_and_exit_code_and_is_our_child(place: Path, server: ForkServer) -> None:
    given = place / "config.yaml"
    with _adopting(), given.open("rb") as stdin, (place / "said").open("wb") as out, (place / "warned").open("wb") as err:
        child = server.start(job(place, "7"), stdin=stdin.fileno(), stdout=out.fileno(), stderr=err.fileno())
        assert child is not None
        assert child.wait() == child.wait(timeout=0.1) == 7
    told = json.loads((place / "said").read_text())
    assert (place / "warned").read_text() == "warned\n"
    assert (told["parent"], told["leads"], told["extra"], told["old"]) == (os.getpid(), True, "of the job", None)
    assert told["input"] == given.stat().st_ino
    assert told["title"].endswith(f"-m pipeline check {given}")


def test_a_signal_ends_it_as_any_child_and_waiting_has_a_limit(place: Path, server: ForkServer) -> None:
    with _adopting(), (place / "said").open("wb") as out:
        child = server.start(job(place, "wait"), stdin=out.fileno(), stdout=out.fileno(), stderr=out.fileno())
        assert child is not None
        deadline = time.monotonic() + 20
        while not (place / "said").stat().st_size and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.05)
        os.kill(child.pid, signal.SIGTERM)
        assert child.wait(timeout=10) == -signal.SIGTERM


def test_what_it_does_not_know_is_left_to_others_and_so_is_all_when_it_is_gone(place: Path, server: ForkServer) -> None:
    known = job(place, "0")
    for argv in ((sys.executable, "-c", "pipeline"), ("/bin/true", "-m", "pipeline")):
        assert server.start(dataclasses.replace(known, argv=argv), stdin=0, stdout=1, stderr=2) is None
    server._process.kill()
    server._process.wait()
    assert server.start(known, stdin=0, stdout=1, stderr=2) is None


def test_a_check_by_a_server_says_what_a_check_without_one_says(tmp_path: Path) -> None:
    config = dataclasses.replace(resolve(str(write_run_file(tmp_path))), task={"component": "center_crop", "hidden_share": 7.0})
    messages = []
    with serving(config, CHAIN, MACHINE) as forks:
        assert forks is not None
        for one in (forks, None):
            with pytest.raises(ConfigError) as caught:
                check_parts(config, forks=one)
            messages.append((caught.value.message, caught.value.cure))
    assert messages[0] == messages[1] and "hidden_share" in messages[0][0]


def test_there_is_none_where_it_would_gain_nothing(tmp_path: Path) -> None:
    config = resolve(str(write_run_file(tmp_path)))
    with serving(config, [spec for spec in CHAIN if not spec.distributed], MACHINE) as forks:
        assert forks is None

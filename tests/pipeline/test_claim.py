"""Claims on a run folder: one owner at a time, on local folders and in buckets, whatever dies and whatever clocks do."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import claim as module
from pipeline.claim import VARIABLE, Claim, Watcher, fence, owning, this_process
from pipeline.decode import canonical
from pipeline.errors import ConfigError, IntegrityError, Preempted, StorageError
from pipeline.storage import create_bytes, join, list_files, publish_bytes, read_bytes

LEASE = 1.0


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "run 1") if request.param == "local" else f"memory://claims-{uuid.uuid4().hex}/run"


def foreign(folder: str, number: int = 1, **fields: object) -> str:
    """A claim of a process on another machine."""
    uri = join(folder, "claims", f"{number:06d}.json")
    publish_bytes(uri, canonical(Claim(**{"token": "theirs", "process": "elsewhere/b/n/12/34", **fields})))  # type: ignore[arg-type]
    return uri


def test_of_many_writers_one_creates_a_file(folder: str) -> None:
    uri, wins = join(folder, "x.json"), list[int]()
    threads = [
        threading.Thread(target=lambda number=number: create_bytes(uri, str(number).encode()) and wins.append(number))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert read_bytes(uri) == str(wins[0]).encode()
    assert [name.rsplit("/", 1)[-1] for name in list_files(folder)] == ["x.json"], "no part file is left"


def test_an_owner_keeps_others_out_as_long_as_it_beats_and_then_the_folder_is_free(folder: str) -> None:
    with owning(folder, lease_seconds=LEASE) as held:
        held.note(stage="forget", endpoint="10.0.0.1:29400")
        seen = Watcher(folder, lease_seconds=LEASE).look()
        assert seen is not None
        assert dict(seen.notes) == {"stage": "forget", "endpoint": "10.0.0.1:29400"}
        with pytest.raises(StorageError, match="another run is at work"), owning(folder, lease_seconds=LEASE):
            pytest.fail("two owners")
    watcher = Watcher(folder, lease_seconds=LEASE)
    assert watcher.look() is None
    assert [uri.rsplit("/", 1)[-1] for uri in list_files(join(folder, "claims"))] == [f"{watcher.number:06d}.json"]


def test_a_dead_owner_of_another_machine_is_followed_after_its_lease_whatever_the_wall_clock_says(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(folder)
    jumps = iter(range(0, 10**9, 86_400))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    started = time.monotonic()
    with owning(folder, lease_seconds=LEASE):
        assert time.monotonic() - started >= LEASE
        assert Watcher(folder, lease_seconds=LEASE).look() is not None


def test_a_dead_owner_of_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pipeline.claim import owning\n"
        "with owning(sys.argv[1], lease_seconds=60):\n    print('mine', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"mine\n"
        child.kill()
    started = time.monotonic()
    with owning(str(tmp_path), lease_seconds=60):
        assert time.monotonic() - started < 5


def test_an_owner_that_slept_is_sent_away_and_publishes_nothing(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()
    old = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    try:
        with (
            pytest.raises(Preempted, match="another owner took this run folder over"),
            owning(folder, lease_seconds=LEASE) as held,
        ):
            monkeypatch.setenv(VARIABLE, held.mark)
            fence()
            foreign(folder, 2)
            with pytest.raises(Preempted):
                fence()
            assert asked.wait(LEASE * 3), "the owner is told"
            raise ConfigError("whatever it was at")
    finally:
        signal.signal(signal.SIGTERM, old)
    assert json.loads(read_bytes(join(folder, "claims", "000002.json")))["token"] == "theirs"


def test_why_an_owner_gave_up_is_left_for_those_who_follow_and_the_next_run_begins(folder: str) -> None:
    with pytest.raises(ConfigError), owning(folder, lease_seconds=LEASE):
        raise ConfigError("nobody follows")
    assert Watcher(folder, lease_seconds=LEASE).look() is None
    with pytest.raises(ConfigError), owning(folder, lease_seconds=LEASE, leave_word=True):
        raise ConfigError("a field is wrong", "mend it")
    seen = Watcher(folder, lease_seconds=LEASE).look()
    assert seen is not None
    assert dict(seen.ended) == {"kind": "ConfigError", "message": "a field is wrong", "cure": "mend it"}
    with owning(folder, lease_seconds=LEASE, patience=0):
        pass
    watcher = Watcher(folder, lease_seconds=LEASE)
    assert watcher.look() is None
    assert [uri.rsplit("/", 1)[-1] for uri in list_files(join(folder, "claims"))] == [f"{watcher.number:06d}.json"]


def test_fence_without_a_claim_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    fence()


def test_storage_that_is_away_for_a_while_costs_an_owner_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, away = module.publish_bytes, threading.Event()

    def publish(uri: str, content: bytes) -> object:
        if away.is_set():
            raise StorageError("the store is away")
        return real(uri, content)

    monkeypatch.setattr(module, "publish_bytes", publish)
    with owning(str(tmp_path), lease_seconds=LEASE) as held:
        away.set()
        time.sleep(LEASE / 2)
        away.clear()
        time.sleep(LEASE / 2)
        assert not held.lost
        assert Watcher(str(tmp_path), lease_seconds=LEASE).look() is not None


def test_a_file_that_is_no_claim_is_named(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "000001.json").write_text("{")
    with pytest.raises(IntegrityError, match="not a claim"):
        Watcher(str(tmp_path)).look()


def _contend(folder: str, log: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            # Nobody dies here, so no lease need end; a short one would, whenever the machine stands still for a moment.
            with owning(folder, lease_seconds=60, patience=0.05):
                with open(log, "a") as stream:
                    stream.write(f"in {os.getpid()}\n")
                    stream.flush()
                    time.sleep(0.01)
                    stream.write(f"out {os.getpid()}\n")
        except StorageError:
            continue


def test_no_two_processes_are_ever_inside_together(tmp_path: Path) -> None:
    log, context = tmp_path / "log", multiprocessing.get_context("spawn")
    workers = [context.Process(target=_contend, args=(str(tmp_path / "run"), str(log), 2.0)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = log.read_text().split("\n")[:-1]
    assert len(lines) > 10
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        assert (first.split()[0], second.split()[0]) == ("in", "out")
        assert first.split()[1] == second.split()[1]


def test_a_process_is_named_so_that_its_end_can_be_seen() -> None:
    assert not module._gone(this_process())
    machine = this_process().rsplit("/", 2)[0]
    assert module._gone(f"{machine}/{os.getpid()}/1")
    assert not module._gone(f"elsewhere/b/n/{os.getpid()}/1")

"""An alias changes one step at a time, for one host at a time, and its history does not change unseen."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import aliases as module
from pipeline.aliases import Change, change, changes, in_force, named_batches, names, point, safe_name
from pipeline.errors import ConfigError, IntegrityError, StorageError

TOLD: dict[str, Any] = {
    "act": "promoted",
    "by": "t",
    "reason": "",
    "approved": False,
    "at": "2026-01-01",
    "weights": "w",
    "statement": "s",
}


@pytest.fixture(params=["local", "memory"])
def line(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "a line") if request.param == "local" else f"memory://aliases-{uuid.uuid4().hex}/line"


def step(line: str, version: str, name: str = "live") -> Change:
    return change(line, name, before=in_force(line, name), **TOLD, version=version, batch=f"b of {version}")


def test_the_last_change_is_in_force_and_the_one_file_repeats_it(line: str) -> None:
    assert in_force(line, "live") is None and names(line) == []
    for version in ("v1", "v2", "v1"):
        step(line, version)
    assert [item.version for item in changes(line, "live")] == ["v1", "v2", "v1"]
    last = in_force(line, "live")
    assert last is not None and last.number == 3
    assert json.loads(module.read_bytes(module.join(line, "aliases", "live.json")))["number"] == 3
    step(line, "v1", "test")
    assert names(line) == ["live", "test"]
    assert named_batches(line) == {"b of v1", "b of v2"}


def test_of_many_hosts_that_change_it_at_once_one_wins(line: str) -> None:
    before, won, lost = step(line, "v0"), [], []
    barrier = threading.Barrier(6)

    def host(number: int) -> None:
        barrier.wait()
        try:
            won.append(change(line, "live", before=before, **TOLD, version=f"v{number}", batch="b"))
        except StorageError as fault:
            lost.append(fault.message)

    threads = [threading.Thread(target=host, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(lost) == 5 and all("at the same time" in text for text in lost)
    assert in_force(line, "live") == won[0]


def test_a_pointer_that_was_left_behind_is_mended(line: str) -> None:
    step(line, "v1")
    old = module.read_bytes(module.join(line, "aliases", "live.json"))
    step(line, "v2")
    module.publish_bytes(module.join(line, "aliases", "live.json"), old)
    point(line, "live")
    assert json.loads(module.read_bytes(module.join(line, "aliases", "live.json")))["version"] == "v2"


def test_a_host_that_looks_away_does_not_leave_an_old_pointer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its two looks another host makes the next change: the pointer follows."""
    line, original, done = str(tmp_path), module.publish_bytes, []

    def meanwhile(uri: str, content: bytes) -> Any:
        if uri.endswith("live.json") and not done:
            done.append(True)
            step(line, "v2")
        return original(uri, content)

    monkeypatch.setattr(module, "publish_bytes", meanwhile)
    step(line, "v1")
    assert json.loads((tmp_path / "aliases" / "live.json").read_text())["version"] == "v2"


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("act", ["change", "remove"])
def test_a_change_of_the_past_is_named(tmp_path: Path, number: int, act: str) -> None:
    for version in ("v1", "v2", "v3", "v4"):
        step(str(tmp_path), version)
    file = tmp_path / "aliases" / "live" / f"{number:06d}.json"
    if act == "remove":
        file.unlink()
    else:
        file.write_text(file.read_text().replace(f'"version":"v{number}"', '"version":"v9"'))
    with pytest.raises(IntegrityError, match=rf"/00000{number + 1}\.json: changed, or one before"):
        in_force(str(tmp_path), "live")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"number":1}', b"\xff"])
def test_what_is_no_change_is_named(tmp_path: Path, content: bytes) -> None:
    step(str(tmp_path), "v1")
    (tmp_path / "aliases" / "live" / "000001.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"000001\.json"):
        changes(str(tmp_path), "live")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "-x", "x" * 65])
def test_names_that_are_no_files_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not a name"):
        safe_name("alias", name)
    assert safe_name("alias", "production-2") == "production-2"

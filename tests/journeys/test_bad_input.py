"""A user's mistakes: exit 2 or 3, one message that names place and cure, no traceback, no file left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.images import encode_png
from pipeline.errors import ConfigError, UnlearnError
from pipeline.stages.runner import run_stage
from tests.support.command import unlearn
from tests.support.disks import small_disk
from tests.support.runs import prepare, write_run_file
from tests.support.shards import make_shard


def left_behind(folder: Path) -> list[str]:
    """Files below a folder, apart from the index of the source, which the next attempt need not build again."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in names if not name.startswith("out/sources/"))


def refused(folder: Path, code: int, *words: str, overrides: tuple[str, ...] = (), **changes: object) -> None:
    """Run, expect the refusal, and check that there is no run folder afterwards."""
    run_file = write_run_file(folder, **changes)
    before = left_behind(folder)
    done = unlearn("run", str(run_file), *overrides)
    assert done.returncode == code, (done.returncode, done.stderr, done.stdout)
    assert done.stderr.startswith("error: "), done.stderr
    assert "  cure: " in done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert left_behind(folder) == before


def test_unknown_key(tmp_path: Path) -> None:
    refused(tmp_path, 2, "engine.zero_stge: unknown field", "did you mean 'zero_stage'", engine={"zero_stge": 1})


def test_unknown_key_of_a_part(tmp_path: Path) -> None:
    refused(tmp_path, 2, "method: forget.passs: unknown field", "passes", method={"forget": {"passs": 1}})


def test_wrong_type(tmp_path: Path) -> None:
    refused(tmp_path, 2, "train.epochs", "integer", overrides=("train.epochs=many",))


def test_unknown_component(tmp_path: Path) -> None:
    refused(tmp_path, 2, "no model is called 'autoencodr'", "autoencoder", model={"component": "autoencodr"})


def test_unknown_label(tmp_path: Path) -> None:
    refused(tmp_path, 2, "shape 9", requests=[{"label": "shape 9"}])


def test_no_request(tmp_path: Path) -> None:
    refused(tmp_path, 2, "no request", requests=[])


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"keys": ["train-000001", "train-999999"]}, "train-999999"),
        ({"prefix": "nobody/"}, "nobody/"),
        ({"prefix": "train"}, "train"),
    ],
    ids=["unknown key", "unknown prefix", "everything"],
)
def test_what_the_first_stage_refuses(tmp_path: Path, request_: dict[str, object], word: str) -> None:
    """Without the command, which says every refusal alike."""
    with pytest.raises(ConfigError, match=word) as caught:
        run_stage("shard", prepare(tmp_path, requests=[request_]))
    assert caught.value.cure


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    refused(tmp_path, 2, "absent.safetensors: not found", original=str(tmp_path / "absent.safetensors"))


def sound(count: int, prefix: str) -> dict[str, bytes]:
    members = {}
    for number in range(count):
        members[f"{prefix}{number}.png"] = encode_png(np.full((8, 8, 1), number, np.uint8))
        members[f"{prefix}{number}.cls"] = str(number % 2).encode()
    return members


def truncated(path: Path) -> None:
    make_shard(path, sound(9, "b"))
    path.write_bytes(path.read_bytes()[:5000])


def without(ending: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        members = sound(9, "b")
        del members[f"b4.{ending}"]
        make_shard(path, members)

    return make


def with_bad_shard(folder: Path, fault: Callable[[Path], None]) -> dict[str, object]:
    """What a run file says of a source with a bad shard beside a good one."""
    shards = folder / "shards"
    shards.mkdir()
    make_shard(shards / "good.tar", sound(20, "a"))
    make_shard(shards / "unseen.tar", sound(20, "u"))
    fault(shards / "bad.tar")
    (folder / "place").mkdir()
    training = [str(shards / "good.tar"), str(shards / "bad.tar")]
    source = {"component": "webdataset", "training": training, "unseen": [str(shards / "unseen.tar")]}
    return {"requests": [{"keys": ["a1"]}], "source": source}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (truncated, ("bad.tar",)),
        (lambda path: path.write_bytes(b""), ("bad.tar",)),
        (lambda path: make_shard(path, {}), ("bad.tar",)),
        (without("png"), ("bad.tar", "b4")),
        (without("cls"), ("bad.tar", "b4")),
    ],
    ids=["truncated", "zero bytes", "no samples", "no image", "no label"],
)
def test_broken_shards(tmp_path: Path, fault: Callable[[Path], None], words: tuple[str, ...]) -> None:
    changes = with_bad_shard(tmp_path, fault)
    with pytest.raises(UnlearnError) as caught:
        run_stage("shard", prepare(tmp_path / "place", **changes))
    assert caught.value.exit_code == 3 and all(word in str(caught.value) for word in words), caught.value
    assert not list((tmp_path / "place").rglob("source.json")), "the source is not taken for indexed"


def test_a_broken_shard_ends_a_run_before_it_leaves_anything(tmp_path: Path) -> None:
    changes = with_bad_shard(tmp_path, without("png"))
    refused(tmp_path / "place", 3, "bad.tar", "b4", **changes)
    assert not list((tmp_path / "place").rglob("source.json")), "the source is not taken for indexed"


def test_command_urls_are_never_opened(tmp_path: Path) -> None:
    run_file = write_run_file(tmp_path, requests="pipe:touch " + str(tmp_path / "ran"))
    done = unlearn("run", str(run_file))
    assert done.returncode == 2
    assert "plain storage" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.distributed
def test_a_folder_of_another_batch_is_not_touched(copy: Path) -> None:
    """The same folder name with another batch in it: as after a collision, or a folder copied by hand."""
    other = write_run_file(copy.parents[1], requests=[{"request_id": "x", "label": "shape 2"}])
    plan = unlearn("plan", str(other), "--json")
    assert plan.returncode == 0, plan.stderr
    wanted = Path(json.loads(plan.stdout)["folder"])
    os.rename(copy, wanted)
    before = {path: path.read_bytes() for path in wanted.rglob("*") if path.is_file()}
    done = unlearn("run", str(other))
    assert done.returncode == 2
    assert "another batch" in done.stderr
    assert {path: path.read_bytes() for path in wanted.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kibibytes", [40, 260, 920])  # packing the source, and a checkpoint of the training
def test_no_space_left(tmp_path: Path, kibibytes: int) -> None:
    with small_disk(tmp_path / "disk", kibibytes):
        run_file = write_run_file(tmp_path, output=str(tmp_path / "disk" / "out"))
        done = unlearn("run", str(run_file))
        assert done.returncode == 3, (done.returncode, done.stderr)
        assert "no space left" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list((tmp_path / "disk").rglob("*.part"))

"""Orders, runs by any of their names, what is said, and a real worker that answers or is quoted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch import torchrun
from launch.acts import answer_lines, carry_out, erasure_lines, find_run, index_order, plan_lines
from launch.worker import WorkerError
from pipeline.acts import index
from pipeline.config import ShardsConfig
from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.orders import ACTS, ErasurePlan, IndexAnswer, IndexOrder
from pipeline.records import Erasure, Gone
from tests.launch.conftest import fake_job
from tests.pipeline.data.tars import sample, write_tar
from tests.support.finished import contents


def order(source: str, *fields: str, **more: Any) -> IndexOrder:
    return index_order(source, [*fields], **{"output": "out", "on_error": "stop", "max_quarantined": 100, "task": "", **more})


@pytest.mark.parametrize(
    "address",
    ["./tars", "/data/tars", "tars/train-{000..146}.tar", "train-?.tar", "s3://bucket/tars", "tars/*.tar", "x.tar", "file:///x"],
)
def test_an_address_is_a_webdataset_source(address: str) -> None:
    source = order(address).source
    assert source["component"] == "webdataset" and source["training"] == [address]


def test_a_folder_here_needs_no_slash_but_a_source_of_that_name_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "synthetic"):
        (tmp_path / name).mkdir()
    assert order("photos").source["training"] == ["photos"]
    assert order("synthetic").source["component"] == "synthetic"


def test_fields_are_yaml_and_lie_above_the_packaged_ones() -> None:
    source = order("webdataset", "training=[a.tar, b.tar]", "classes=[x, y]").source
    assert source == {**order("webdataset").source, "training": ["a.tar", "b.tar"], "classes": ["x", "y"]}
    assert order("./tars", "unseen=[u.tar]").source["unseen"] == ["u.tar"]
    assert order("imagefolder", "root=[a").source["root"] == "[a", "what is no YAML is a text, as in a run's key=value"
    assert order("imagefolder", "root=a=b").source["root"] == "a=b"


def test_the_rest_of_the_order_is_as_it_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = order("./tars", on_error="quarantine", max_quarantined=7, task="2/5")
    assert (asked.output, asked.task) == (str(tmp_path / "out"), (2, 5))
    assert asked.shards == ShardsConfig(on_error="quarantine", max_quarantined=7)
    assert order("./tars").task == (0, 1)
    assert order("./tars", output="s3://bucket/out").output == "s3://bucket/out"


@pytest.mark.parametrize("task", ["3", "0/0", "a/2", "1/b", "-1/2", "1/-2", "1/2/3", "/", "1.0/2", " 0/2"])
def test_a_task_of_another_form_is_refused(task: str) -> None:
    with pytest.raises(ConfigError, match=f"--task {task}: not of the form I/N") as fault:
        order("./tars", task=task)
    assert (fault.value.exit_code, fault.value.cure) == (2, "write e.g. --task 0/8")


@pytest.mark.parametrize(
    ("source", "fields", "more", "message"),
    [
        ("tarz", [], {}, "no source is called 'tarz'"),
        ("", [], {}, "no source is called ''"),
        ("webdataset", ["training"], {}, "'training': not of the form field=value"),
        ("webdataset", ["=x"], {}, "'=x': not of the form field=value"),
        ("./tars", ["classes=[2024-01-01]"], {}, "date is not JSON serializable"),
        ("./tars", [], {"on_error": "skip"}, "on_error: input should be 'stop' or 'quarantine'"),
        ("./tars", [], {"max_quarantined": -1}, "max_quarantined: input should be greater than or equal to 0"),
        ("./tars", [], {"output": "pipe:x"}, "not a plain storage address"),
    ],
)
def test_wrong_use_is_refused_before_any_worker(source: str, fields: list[str], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as fault:
        order(source, *fields, **more)
    assert message in fault.value.message and fault.value.cure


def test_a_run_is_found_by_its_folder_its_name_and_digits_of_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tiny-0123abcd", "other-0123ffff", "tiny-9999abcd"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    (tmp_path / "runs" / "sources").mkdir()
    monkeypatch.chdir(tmp_path)
    wanted = str(tmp_path / "runs" / "tiny-0123abcd")
    for text in (
        wanted,
        f"{wanted}/",
        "runs/tiny-0123abcd",
        "./runs/../runs/tiny-0123abcd/",
        "tiny-0123abcd",
        "0123abcd",
        "0123a",
    ):
        assert find_run(text) == wanted, text
    assert find_run("9999", str(tmp_path / "runs")).endswith("tiny-9999abcd")
    with pytest.raises(ConfigError, match="'0123': several runs are meant: other-0123ffff, tiny-0123abcd"):
        find_run("0123")
    for text in ("", "012", "tiny", "runs/sources", "abcd", "nowhere/x"):
        with pytest.raises(ConfigError, match=f"'{text}': no run folder, and no run below runs is called so"):
            find_run(text)
    with pytest.raises(ConfigError, match="no run below absent"):
        find_run("0123abcd", "absent")


def test_what_index_says(tmp_path: Path) -> None:
    assert answer_lines(IndexAnswer(folder="f", complete=False))[-1] == "run once without --task to put them together"
    faults = tuple(f"{n}.tar: k: no image" for n in range(23))
    answer = IndexAnswer(
        folder="f", complete=True, generation=4, shards=2, training=9, unseen=3, bytes=1500, classes=5, quarantine=faults
    )
    lines = answer_lines(answer)
    assert lines[:2] == ["9 training and 3 unseen images of 5 classes in 2 shards (1.5 kB)", "index: f, generation 4"]
    assert lines[2] == "set aside: 0.tar: k: no image" and lines[-1] == "set aside: 3 more, in f/source.json"
    assert len(lines) == 2 + 20 + 1


def test_what_erase_says_before_and_after() -> None:
    uris = tuple(f"{n}.tar" for n in range(22))
    told = ErasurePlan(
        replaced=uris, removed=("last.tar",), versions=30, bytes=2_500_000, images=7, locked=(), remaining=("the weights",)
    )
    lines = plan_lines(told)
    assert lines[0] == "7 images are to be erased: 30 versions of files, 2.5 MB, will be removed for good"
    assert lines[1] == "rewritten: 0.tar" and lines[21] == "rewritten: 2 more shards"
    assert lines[22:] == ["removed: last.tar", "not removed here: the weights"]
    gone = (Gone(uri="a", version="", bytes=400, sha256=""), Gone(uri="b", version="", bytes=600, sha256=""))
    proof = Erasure(
        **{"run_id": "r", "batch_digest": "d", "source": "s", "generation": 2, "images": 7, "removed": gone, "replaced": ()},
        **{"uploads_aborted": 0, "cached_ranges": 0, "swept": {}, "remaining": ("x",), "started_at": "", "ended_at": ""},
    )
    first, left, tier, last = erasure_lines(proof, "runs/r")
    assert "tier D" in tier and "removed from storage" in tier
    assert first == "erased 7 images: 2 versions of files, 1.0 kB, are gone and were looked for again"
    assert (left, last) == ("not removed here: x", "source generation 2; proof: runs/r/erasure.json")


def test_a_worker_answers_as_the_act_itself_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "tars" / "a.tar", [*sample("a/1", 0, 1), *sample("a/2", 1, 2)])
    asked = order(str(tmp_path / "tars"), output=str(tmp_path / "out"))
    answer = carry_out("index", asked, IndexAnswer, to_stderr=True)
    assert answer == index.run(asked) and (answer.training, answer.classes) == (2, 2)
    assert capfd.readouterr().out == ""


def test_a_workers_named_error_is_raised_here_by_its_kind(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    before = contents(tmp_path)
    with pytest.raises(DataError, match=r"empty': no \.tar there") as fault:
        carry_out("index", order(str(tmp_path / "empty"), output=str(tmp_path / "out")), IndexAnswer)
    assert fault.value.cure == "correct the address"
    with pytest.raises(StorageError, match=r"x\.tar: not found"):
        carry_out("index", order(str(tmp_path / "x.tar"), output=str(tmp_path / "out")), IndexAnswer)
    assert contents(tmp_path) == before


def test_a_worker_that_crashes_is_quoted_and_leaves_no_order_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[str] = []
    monkeypatch.setattr(torchrun, "worker_job", lambda act, file, machine: files.append(file) or fake_job(act, file))
    monkeypatch.setenv("FAKE_ERASE", "crash")
    with pytest.raises(WorkerError, match="erase: ended with code 1") as crash:
        carry_out("erase", order("./tars"), ErasurePlan)
    assert "RuntimeError: a bug" in crash.value.output
    assert len(files) == 1 and not Path(files[0]).parent.exists(), "orders may hold keys"


def test_every_act_is_a_module_with_run() -> None:
    for name in ACTS:
        module = __import__(f"pipeline.acts.{name}", fromlist=["run"])
        assert callable(module.run) and module.__all__[-1] == "run"

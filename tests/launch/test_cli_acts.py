"""The commands `index`, `tombstone`, `plan` and `erase` with real workers: answers, questions, exit codes, no traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.testing

from launch.cli import app
from pipeline.decode import decode
from pipeline.orders import IndexAnswer, TombstoneAnswer
from pipeline.records import Erasure
from tests.pipeline.data.tars import sample, write_tar
from tests.support.command import UNLEARN, environment
from tests.support.finished import FORGOTTEN, contents, finish, holders, tar_run_file


def unlearn(*words: str) -> typer.testing.Result:
    result = typer.testing.CliRunner().invoke(app, list(words))
    assert "Traceback" not in result.output and (result.exception is None or isinstance(result.exception, SystemExit))
    return result


def refused(code: int, *words: str) -> str:
    """The one message of a refusal."""
    result = unlearn(*words)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ") and "\n  cure: " in result.stderr and result.stdout == ""
    return result.stderr


def index(source: Path, *words: str) -> IndexAnswer:
    """What `unlearn index --json` answers."""
    result = unlearn("index", str(source), "--json", *words)
    assert result.exit_code == 0, result.output
    return decode(IndexAnswer, json.loads(result.stdout), where="answer")


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Forty shards of one image, so that their index has several parts."""
    for number in range(40):
        write_tar(tmp_path / "tars" / f"train-{number:03d}.tar", sample(f"k{number}", number % 2, number))
    return tmp_path / "tars"


def test_index_in_tasks_and_put_together_is_the_index_of_one_task(tars: Path, tmp_path: Path) -> None:
    for task in ("1/2", "0/2"):
        assert not index(tars, "--out", str(tmp_path / "tasks"), "--task", task).complete
    last = unlearn("index", str(tars), "--out", str(tmp_path / "tasks"))
    assert last.exit_code == 0
    assert last.stdout.splitlines()[0].startswith("40 training and 0 unseen images of 2 classes in 40 shards (")
    whole = index(tars, "--out", str(tmp_path / "whole"))
    assert (whole.training, whole.generation, whole.complete) == (40, 1, True)
    (one,), (other,) = ([*(tmp_path / name).glob("sources/*/source.json")] for name in ("tasks", "whole"))
    assert one.read_bytes() == other.read_bytes()
    assert f"index: {one.parent}, generation 1" in last.stdout


def test_a_bad_shard_is_named_with_exit_code_three_or_set_aside_and_listed(tars: Path, tmp_path: Path) -> None:
    (tars / "train-007.tar").write_bytes(b"no tar")
    out = ("--out", str(tmp_path / "out"))
    assert "train-007.tar" in refused(3, "index", str(tars), *out)
    result = unlearn("index", str(tars), *out, "--on-error", "quarantine")
    assert result.exit_code == 0, result.output
    assert "39 training" in result.stdout and "set aside: " in result.stdout and "train-007.tar" in result.stdout
    assert "more than 0" in refused(3, "index", str(tars), *out, "--on-error", "quarantine", "--max-quarantined", "0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "3"], "--task 3: not of the form I/N"),
        (["--task", "2/2"], "--task 2/2: tasks are numbered from 0"),
        (["--on-error", "skip"], "on_error: input should be 'stop' or 'quarantine'"),
        (["clases=[a]"], "source: clases: unknown field (did you mean 'classes'?"),
        (["training=[a"], 'source: training: input should be a valid array, got "[a"'),
        (["classes=[2024-01-01]"], "unlearn index: "),
        (["--out", "pipe:x"], "not a plain storage address"),
    ],
)
def test_wrong_use_of_index_is_one_message_and_exit_code_two(tars: Path, tmp_path: Path, words: list[str], message: str) -> None:
    before = contents(tmp_path)
    assert message in refused(2, "index", str(tars), "--out", str(tmp_path / "out"), *words)
    assert contents(tmp_path) == before


def test_a_plan_names_shards_from_the_index_only_and_a_tombstone_needs_none(tmp_path: Path) -> None:
    run_file = str(tar_run_file(tmp_path))
    before = contents(tmp_path)
    result = unlearn("plan", run_file)
    assert result.exit_code == 0, result.output
    assert "not computed: the source is not indexed yet; `unlearn index` or the run does it" in result.stdout
    assert json.loads(unlearn("plan", run_file, "--json").stdout)["data"] is None
    assert contents(tmp_path) == before, "nothing was touched"

    answer = unlearn("tombstone", run_file, "--json")
    assert answer.exit_code == 0, answer.output
    stones = decode(TombstoneAnswer, json.loads(answer.stdout), where="answer")
    assert stones.images == len(FORGOTTEN) and Path(stones.file).is_file()
    assert unlearn("tombstone", run_file).stdout == f"4 images are skipped from now on: {stones.file}\n"

    before = contents(tmp_path)
    lines = unlearn("plan", run_file).stdout.splitlines()
    facts = {line[:19].strip().rstrip(":"): line[19:] for line in lines if line[:19].endswith(" ") and line[19:20].strip()}
    assert (facts["forget"], facts["retain"]) == ("4 images", "7 images")
    shards = [tmp_path / "tars" / f"train-{number}.tar" for number in (0, 1, 2)]
    size = sum(shard.stat().st_size for shard in shards)
    assert facts["rewrite"] == f"3 shards, {size / 1000:.1f} kB" and facts["clean shards"].startswith("1, ")
    assert [line.strip() for line in lines if line.strip().endswith(".tar")] == [str(shard) for shard in shards]
    told = json.loads(unlearn("plan", run_file, "--json").stdout)
    assert told["data"]["rewrite"] == [str(shard) for shard in shards] and told["data"]["bytes_to_rewrite"] == size
    assert contents(tmp_path) == before, "nothing was touched"
    assert "key 'nobody': no such training image" in refused(2, "plan", run_file, "requests=[{keys: [nobody]}]")
    assert "key 'nobody': no such training image" in refused(2, "tombstone", run_file, "requests=[{keys: [nobody]}]")
    assert contents(tmp_path) == before


@pytest.fixture(scope="module")
def _pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Where a finished run lies, its folder, and a copy of all of it."""
    place, spare = tmp_path_factory.mktemp("place"), tmp_path_factory.mktemp("spare") / "copy"
    run = finish(place)
    shutil.copytree(place, spare)
    return place, run, spare


@pytest.fixture
def ended(_pristine: tuple[Path, Path, Path]) -> Path:
    """The run folder of a finished run, output folder above it, tars beside that: made once, and anew for each test."""
    place, run, spare = _pristine
    shutil.rmtree(place)
    shutil.copytree(spare, place)
    return run


def asked(run: Path, answer: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`unlearn erase` at a terminal where somebody types an answer."""
    ours, theirs = os.openpty()
    os.write(ours, answer.encode())
    try:
        command = [*UNLEARN, "erase", str(run), *words]
        return subprocess.run(command, stdin=theirs, env=environment(), capture_output=True, text=True, timeout=200, check=False)
    finally:
        os.close(ours)
        os.close(theirs)


def test_erase_asks_first_and_is_done_once(ended: Path) -> None:
    run, place = ended, ended.parents[1]
    before = contents(place)
    alone = unlearn("erase", str(run))
    assert alone.exit_code == 2 and "error: erase: nobody is there to ask\n  cure: add --yes" in alone.stderr
    assert "4 images are to be erased" in alone.stdout and f"removed: {place}/tars/train-1.tar" in alone.stdout
    versions = re.findall(r": (\d+ versions) of files, .* will be removed for good", alone.stdout)[0]
    no = asked(run, "n\n", "--json")
    assert (no.returncode, no.stdout.strip()) == (0, ""), no.stderr
    assert "Remove them for good?" in no.stderr and "nothing was touched" in no.stderr
    assert contents(place) == before
    yes = asked(run, "y\n")
    assert yes.returncode == 0, yes.stderr
    assert "erased 4 images" in yes.stdout and yes.stdout.endswith(f"proof: {run}/erasure.json\n")
    assert "Traceback" not in no.stderr + yes.stderr
    assert not holders(place / "out", place / "tars")
    assert "erased already" in refused(2, "erase", str(run), "--yes")
    assert "the images of this run were erased" in refused(2, "run", str(tar_run_file(place)))
    assert "the images of this run were erased" in refused(2, "plan", str(tar_run_file(place)))
    result = unlearn("verify", str(run))
    assert result.exit_code == 0 and f"{versions} of files were erased, and are gone" in result.stdout


def test_erase_answers_in_json_by_the_runs_name_and_leaves_another_shard_to_its_finder(ended: Path) -> None:
    run, place = ended, ended.parents[1]
    shard = place / "tars" / "train-0.tar"
    kept = shard.read_bytes()
    shard.write_bytes((place / "tars" / "train-3.tar").read_bytes())
    bad = unlearn("erase", run.name, "--out", str(place / "out"), "--yes")
    assert bad.exit_code == 3 and "train-0.tar: changed since this run cut it" in bad.stderr and "  cure: " in bad.stderr
    shard.write_bytes(kept)
    result = unlearn("erase", run.name.rpartition("-")[2], "--out", str(place / "out"), "--yes", "--json")
    assert result.exit_code == 0, result.output
    proof = decode(Erasure, json.loads(result.stdout), where="answer")
    assert proof.run_id == run.name and json.loads((run / "erasure.json").read_bytes())["erasure"] == json.loads(result.stdout)


def test_erase_refuses_a_run_that_has_not_ended_or_is_none(ended: Path) -> None:
    run, place = ended, ended.parents[1]
    (run / "receipts" / "release.json").unlink()
    before = contents(place)
    message = refused(2, "erase", str(run), "--yes")
    assert "the run has not ended, and needs these images to unlearn them\n  cure: run it to its end first" in message
    assert "no run folder" in refused(2, "erase", "nowhere", "--yes", "--out", str(place / "out"))
    assert contents(place) == before

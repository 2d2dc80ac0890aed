"""The commands for requests: one message and an exit code for each refusal, and nothing personal in what is said."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from launch.cli import app
from launch.cli_requests import chosen_values, line_name, request_rows
from pipeline.acts import index
from pipeline.errors import ConfigError
from pipeline.ledger.refusals import Looked
from pipeline.ledger.store import open_ledger
from pipeline.orders import IndexOrder
from pipeline.request_orders import LikenessAnswer, LookupAnswer
from tests.support.finished import tar_run_file, tar_source
from tests.support.ledgers import assert_consistent

SECRETS = ("MARKER-KEY", "MARKER-SUBJECT", "MARKER-NOTE")
PERSONAL = ["--key", SECRETS[0], "--subject", SECRETS[1], "--note", SECRETS[2]]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, with no ledger named but the one that lies there."""
    monkeypatch.chdir(tmp_path)
    for name in ("UNLEARN_LEDGER", "UNLEARN_PSEUDONYM_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[Looked | None]:
    """What the index is made to say, last in the list; no worker is started."""
    says: list[Looked | None] = [None]
    answers = {
        "lookup": lambda order: LookupAnswer(looked=says[-1]),
        "likeness": lambda order: LikenessAnswer(hashes=tuple("0f" * 8 if file.endswith(".png") else "" for file in order.files)),
    }
    monkeypatch.setattr("launch.acts.carry_out", lambda act, order, answer, to_stderr=False: answers[act](order))
    return says


def unlearn(*words: str, given: str = "") -> typer.testing.Result:
    result = typer.testing.CliRunner().invoke(app, list(words), input=given)
    assert "Traceback" not in result.output and (result.exception is None or isinstance(result.exception, SystemExit))
    return result


def said(*words: str, given: str = "") -> str:
    result = unlearn(*words, given=given)
    assert result.exit_code == 0, result.output
    return result.stdout


def told(*words: str) -> Any:
    return json.loads(said(*words, "--json"))


def refused(code: int, *words: str) -> str:
    result = unlearn(*words)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ") and "\n  cure: " in result.stderr and result.stdout == ""
    return result.stderr


def test_a_request_goes_its_way(looked: list[Looked | None], ledger_url: str) -> None:
    looked.append(Looked(images=1, training=1000))
    first = told("requests", "add", "demo", *PERSONAL)
    assert (first["new"], first["state"], first["images"]) == (True, "queued", 1)
    assert "is known already, now sent 2 times; 1 images" in said("requests", "add", "demo", *PERSONAL)
    listed = said("requests", "list")
    assert first["request"] in listed and listed.endswith("1 queued\n")
    assert "due 2" in said("requests", "extend", first["request"], "--reason", "many at once")
    assert "withdrawn" in said("requests", "withdraw", first["request"], "--reason", "by phone")
    assert told("requests", "list", "--state", "withdrawn")["states"] == {"withdrawn": 1}
    assert "--again makes a new request" in said("requests", "add", "demo", *PERSONAL)
    assert told("requests", "add", "demo", *PERSONAL, "--again")["new"]


def test_what_is_shown_and_what_only_with_a_word(looked: list[Looked | None]) -> None:
    name = told("requests", "add", "demo", *PERSONAL)["request"]
    short, whole = said("requests", "show", name), said("requests", "show", name, "--values")
    assert not any(mark in short for mark in SECRETS) and "received" in short
    assert SECRETS[0] in whole and SECRETS[2] in whole and SECRETS[1] not in whole
    assert told("requests", "show", name, "--values")["values"] == [SECRETS[0]]
    assert not any(mark in json.dumps(told("requests", "show", name)) for mark in SECRETS)


def test_planted_marks_are_in_no_message_list_log_or_history(
    looked: list[Looked | None], ledger_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, logger="sqlalchemy")  # it tells each statement, and on wish each row that it reads
    looked.append(Looked(images=0, training=9, unknown=1, first=1, kind="key"))
    heard = [refused(2, "requests", "add", "demo", *PERSONAL)]
    looked.append(Looked(images=9, training=9))
    heard += [refused(2, "requests", "add", "demo", *PERSONAL)]
    heard += [said("requests", "add", "demo", *PERSONAL, "--confirm")]
    heard += [refused(2, "requests", "add", "demo", *PERSONAL, "--confirm", "--copies", "include")]
    for bad in (["--received", "MARKER-KEY"], ["--due", "MARKER-NOTE"], ["--id", "MARKER SUBJECT"], ["--prefix", "MARKER-KEY"]):
        heard += [refused(2, "requests", "add", "demo", *PERSONAL, "--confirm", *bad)]
    head, row = "request_id,kind,value,subject,note\n", "t1,key,MARKER-KEY2,MARKER-SUBJECT,MARKER-NOTE\n"
    for number, text in enumerate(
        (row, row + "t2,digest,MARKER-KEY,,\n", row + "MARKER-KEY\n", row.replace("key", "MARKER-KEY"))
    ):
        Path("a.csv").write_text(head + text)
        words = ("requests", "import", "a.csv", "--line", "demo")
        heard += [said(*words) if number == 0 else unlearn(*words).output]
    heard += [said("requests", "list"), said("requests", "list", "--json"), said("ledger", "check")]
    assert not any(mark in text for text in heard for mark in ("MARKER-", "MARKER SUBJECT")), heard
    assert "MARKER" not in caplog.text and "INSERT INTO request" in caplog.text
    with open_ledger("", create=False) as opened:
        from pipeline.ledger import history

        with opened.read() as tx:
            assert "MARKER" not in str(history.entries(tx)) and len(history.entries(tx)) == 3
        assert_consistent(opened)


def test_refusals_have_names_and_numbers(looked: list[Looked | None]) -> None:
    add = ("requests", "add", "demo")
    assert "empty: no value is given" in refused(2, *add)
    assert "2 kinds of values" in refused(2, *add, "--key", "a", "--label", "b")
    assert "may be too broad: label" in refused(2, *add, "--label", "Trouser")
    assert "no run is called 'demoo'" in refused(2, "requests", "add", "demoo", "--key", "a")
    assert "No such file" in refused(3, *add, "--image", "none.png")
    assert "--like: file 2: no image" in refused(3, *add, "--like", "a.png", "--like", "b.txt")
    looked.append(Looked(images=60, training=1000))
    assert "too broad: means 60 of 1000 training images (6.0%, more than 5.0%)" in refused(2, *add, "--label", "Trouser")
    assert told(*add, "--label", "Trouser", "--share", "0.07")["images"] == 60
    assert "no ledger there" in refused(2, "requests", "list", "--ledger", "sqlite:///other.sqlite")
    assert "no such state" in refused(2, "requests", "list", "--state", "releasd")
    assert "none of this name" in refused(2, "requests", "show", "r-9")
    assert "none.csv: No such file" in refused(3, "requests", "import", "none.csv", "--line", "demo")
    Path("a.csv").write_text("key,line\na,demo\nb,nowhere\n")
    assert "a.csv: row 2: line: no run is called 'nowhere'" in refused(2, "requests", "import", "a.csv")
    assert "no --line whose index" in refused(2, "requests", "import", "a.csv", "--lookup")
    looked.append(None)
    assert "not indexed yet" in refused(3, "requests", "import", "a.csv", "--lookup", "--line", "demo")


def test_a_move_that_is_not_allowed_is_refused(looked: list[Looked | None]) -> None:
    name = told("requests", "add", "demo", "--key", "a")["request"]
    said("requests", "withdraw", name)
    assert "is withdrawn and cannot become withdrawn" in refused(3, "requests", "withdraw", name)


def test_values_come_from_standard_input_and_images_by_their_bytes(looked: list[Looked | None], tmp_path: Path) -> None:
    result = unlearn("requests", "add", "demo", "--key", "-", "--json", given="a\n\nb\n")
    assert told("requests", "show", json.loads(result.stdout)["request"], "--values")["values"] == ["a", "b"]
    (tmp_path / "x.png").write_bytes(b"abc")
    name = told("requests", "add", "demo", "--image", "x.png")["request"]
    assert told("requests", "show", name, "--values")["values"][0].startswith("ba7816bf8f01cfea")
    name = told("requests", "add", "demo", "--like", "x.png", "--confirm")["request"]
    found = told("requests", "show", name, "--values")
    assert (found["kind"], found["values"]) == ("likeness", ["0f" * 8])


def test_an_import_is_told_and_looked_up(looked: list[Looked | None]) -> None:
    Path("a.csv").write_text("key\na\nb\na\n")
    assert said("requests", "import", "a.csv", "--line", "demo").startswith("3 rows: 2 new requests with 2 values, 1 known")
    looked.append(Looked(images=2, training=1000))
    assert told("requests", "import", "a.csv", "--line", "demo", "--lookup")["repeats"] == 3
    looked.append(Looked(images=900, training=1000))
    assert "a.csv: too broad" in refused(2, "requests", "import", "a.csv", "--line", "demo", "--lookup")


def test_a_list_can_be_short_and_of_one_line(looked: list[Looked | None]) -> None:
    for number in range(3):
        said("requests", "add", "demo", "--key", f"k{number}", "--received", "2026-01-02", "--due", f"2026-01-1{number}")
    assert len(told("requests", "list", "--limit", "2", "--overdue")["requests"]) == 2
    assert told("requests", "list", "--line", "demo")["states"] == {"received": 3}
    columns, rows = request_rows(told("requests", "list")["requests"])
    assert [len(row) for row in rows] == [len(columns)] * 3 and rows[0][6] == "2026-01-10"


def test_a_line_is_a_packaged_run_or_the_whole_path_of_a_file(tmp_path: Path) -> None:
    run = tar_run_file(tmp_path)
    assert (line_name("demo"), line_name(""), line_name(run.name)) == ("demo", "", str(run))
    with pytest.raises(ConfigError, match="no run is called"):
        line_name("demoo")


def test_one_kind_of_values_is_chosen() -> None:
    assert chosen_values(keys=None, label=["a", "b"], digest=[]) == ("label", ("a", "b"))


def test_a_real_index_is_asked(tmp_path: Path) -> None:
    run = tar_run_file(tmp_path)
    index.run(IndexOrder(source=tar_source(tmp_path), output=str(tmp_path / "out")))
    assert told("requests", "add", str(run), "--label", "two", "--confirm")["images"] == 3
    assert "unknown key: number 1 means no training image" in refused(2, "requests", "add", str(run), "--key", "nobody")

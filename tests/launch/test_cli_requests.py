"""The commands for requests that are there, and nothing personal in what any of them says."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from launch.cli_requests import request_rows
from pipeline.ledger import history
from pipeline.ledger.refusals import Looked
from pipeline.ledger.store import open_ledger
from tests.support.ledger_commands import refused, said, told, unlearn
from tests.support.ledgers import assert_consistent

pytestmark = pytest.mark.usefixtures("own_folder")
SECRETS = ("MARKER-KEY", "MARKER-SUBJECT", "MARKER-NOTE")
PERSONAL = ["--key", SECRETS[0], "--subject", SECRETS[1], "--note", SECRETS[2]]


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
        with opened.read() as tx:
            assert "MARKER" not in str(history.entries(tx)) and len(history.entries(tx)) == 3
        assert_consistent(opened)


def test_a_move_that_is_not_allowed_is_refused(looked: list[Looked | None]) -> None:
    name = told("requests", "add", "demo", "--key", "a")["request"]
    said("requests", "withdraw", name)
    assert "is withdrawn and cannot become withdrawn" in refused(3, "requests", "withdraw", name)


def test_a_list_can_be_short_and_of_one_line(looked: list[Looked | None]) -> None:
    for number in range(3):
        said("requests", "add", "demo", "--key", f"k{number}", "--received", "2026-01-02", "--due", f"2026-01-1{number}")
    assert len(told("requests", "list", "--limit", "2", "--overdue")["requests"]) == 2
    assert told("requests", "list", "--line", "demo")["states"] == {"received": 3}
    columns, rows = request_rows(told("requests", "list")["requests"])
    assert [len(row) for row in rows] == [len(columns)] * 3 and rows[0][6] == "2026-01-10"

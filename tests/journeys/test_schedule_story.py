"""The story of a schedule: requests come in, two hosts tick at once, three batches are unlearned, lineage is told both ways."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from launch.desk import Desk
from launch.policy import read_policy
from launch.schedule import tick
from launch.trace import Touched, Trace, trace_key, trace_model, trace_request, trace_subject
from pipeline.acts import trace as trace_act
from pipeline.ledger import batches, history, requests
from pipeline.ledger.requests import Submission, submit
from pipeline.ledger.schema import METADATA
from pipeline.ledger.store import Ledger, open_ledger
from tests.support.command import UNLEARN, environment
from tests.support.runs import write_run_file
from tests.support.schedule import write_policy
from tests.support.stages_here import StagesHere

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

GROUPS = {"b-000004": range(10), "b-000002": range(10, 21), "b-000003": range(21, 30)}
"""The batches in the order of their runs. The first is closed again as the fourth, without a request that means no image."""
MARKER = "Zyxomma"
"""In every subject and note: it must not turn up in anything that is said or written outside of the ledger's requests."""


def person(number: int) -> str:
    """Who made a request: each person two of one batch."""
    return f"{MARKER} {number // 2}"


def key(number: int) -> str:
    """The image that a request is for."""
    return f"train-{4 * number:06d}"


def hand_in(ledger: Ledger, line: str) -> None:
    """All requests, by due date in three parts, and among the first one for an image that is not there."""
    with ledger.write() as tx:
        for month, numbers in enumerate(GROUPS.values(), start=1):
            for number in numbers:
                wish = Submission(
                    kind="keys",
                    values=(key(number),),
                    line=line,
                    subject=person(number),
                    note=MARKER,
                    due_at=f"2100-0{month}-01",
                    request_id=f"r{number}",
                )
                submit(tx, wish, checked=True)
                assert not submit(tx, wish, checked=True).new  # sent twice
        bad = Submission(kind="keys", values=("train-999999",), line=line, subject=MARKER, due_at="2100-01-01", request_id="bad")
        submit(tx, bad, checked=True)


def host(url: str, policy: str, name: str, barrier: Any, log: str) -> None:
    """One host: it ticks until no host has anything left to do."""
    with open_ledger(url, actor=name) as ledger, open(log, "w") as said:
        runner = StagesHere()
        desk = Desk(
            ledger,
            read_policy(policy),
            owner=name,
            say=lambda line: print(line, file=said, flush=True),
            runners={"local": runner},
        )
        barrier.wait(60)
        tick(desk)
        while set(states(ledger).values()) - {"evaluated", "moved_on"}:
            time.sleep(0.2)
            tick(desk)


def states(ledger: Ledger) -> dict[str, str]:
    with ledger.read() as tx:
        return {row["batch_id"]: row["state"] for row in batches.listing(tx)}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The ledger's address, the model line and the logs after both hosts came to rest."""
    place = tmp_path_factory.mktemp("story")
    over: dict[str, Any] = {"reference": "none", "train": {"epochs": 1}, "launch": {"ranks": 1}, "evaluation": {"bootstrap": 20}}
    source = {"component": "synthetic", "samples": 160, "unseen_samples": 40, "size": 8}
    run_file = write_run_file(place, source=source, requests="", **over)
    write_policy(place, most=11, tombstones=True, lease_seconds=30)
    url, line = f"sqlite:///{place}/ledger.sqlite", str(run_file)
    with open_ledger(url, actor="clerk") as ledger:
        hand_in(ledger, line)
    (place / "out").mkdir()
    (place / "out" / "trouble").write_text("b-000003")
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    logs = [str(place / f"{name}.log") for name in ("north", "south")]
    hosts = [context.Process(target=host, args=(url, str(place / "policy.yaml"), Path(log).stem, barrier, log)) for log in logs]
    for process in hosts:
        process.start()
    for process in hosts:
        process.join(240)
        assert process.exitcode == 0
    return {"url": url, "line": line, "place": place, "logs": logs}


def test_every_batch_is_done_once_and_the_bad_request_is_held_alone(story: dict[str, Any]) -> None:
    with open_ledger(story["url"]) as ledger:
        assert history.check(ledger) == []
        found = states(ledger)
        assert sorted(found.values()) == ["evaluated"] * 3 + ["moved_on"]
        with ledger.read() as tx:
            assert requests.counts(tx, story["line"]) == {"evaluated": 30, "held": 1}
            rows = {row["batch_id"]: row for row in batches.listing(tx)}
            events = [entry["event"] for entry in history.entries(tx, "batch", "b-000003")]
            assert requests.show(tx, "bad")["state"] == "held"
        assert rows["b-000003"]["attempts"] == 2 and events.count("failed") == 1
        folders = {row["folder"] for row in rows.values() if row["folder"]}
        assert len(folders) == 3 and all(Path(folder, "report.json").is_file() for folder in folders)
    said = "".join(Path(log).read_text() for log in story["logs"])
    assert MARKER not in said and "train-" not in said


def test_every_text_fits_its_column(story: dict[str, Any]) -> None:
    """SQLite takes longer ones, and PostgreSQL does not."""
    with open_ledger(story["url"]) as ledger, ledger.read() as tx:
        for table in METADATA.tables.values():
            for column in table.columns:
                if isinstance(column.type, sa.String) and column.type.length:
                    longest = tx.execute(sa.select(sa.func.max(sa.func.length(column)))).scalar_one()
                    assert (longest or 0) <= column.type.length, f"{table.name}.{column.name}"


def asked(order: Any) -> Any:
    return trace_act.run(order)


def by_batch(models: tuple[Touched, ...]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for model in models:
        found.setdefault(model.batch_id, {})[model.kind] = model.how
    return found


def truth(number: int) -> dict[str, dict[str, str]]:
    """What each batch's models have to do with the image of a request."""
    found = {}
    for name, numbers in GROUPS.items():
        if number in numbers:
            return {**found, name: {"original": "trained", "forgotten": "forgot", "unlearned": "forgot"}}
        found[name] = {"original": "trained", "forgotten": "derived", "unlearned": "trained"}
    raise AssertionError(number)


def test_lineage_is_the_truth_both_ways(story: dict[str, Any]) -> None:
    with open_ledger(story["url"]) as ledger:
        for name, numbers in GROUPS.items():
            for number in (numbers[0], numbers[-1]):
                for found in (
                    trace_key(ledger, key(number), asked),
                    trace_request(ledger, f"r{number}", asked),
                ):
                    assert by_batch(found.models) == truth(number), number
                    assert name in {batch for batch, _, _, _ in found.batches}
        shared = trace_subject(ledger, person(20), asked)  # of two batches: what one of them forgot, the other was trained on
        assert {name for name, _ in shared.requests} == {"r20", "r21"}
        retained = trace_key(ledger, "train-000001", asked)
        assert retained.requests == () and {how for kinds in by_batch(retained.models).values() for how in kinds.values()} == {
            "trained",
            "derived",
        }
        assert trace_subject(ledger, "nobody", asked) == Trace(requests=(), batches=(), runs=(), models=())
        for name, numbers in GROUPS.items():
            with ledger.read() as tx:
                folder = batches.find(tx, name)["folder"]
            model = trace_model(ledger, checkpoint=folder)
            assert [kind for _, kind in model.ancestry] == ["unlearned", "forgotten", "original"] and model.batches == (name,)
            assert {request for request, *_ in model.requests} == {f"r{number}" for number in numbers}


def test_the_command_says_the_same_without_keys_and_subjects(story: dict[str, Any]) -> None:
    words = [*UNLEARN, "trace", "--subject", "-", "--ledger", story["url"], "--json"]
    done = subprocess.run(words, input=person(3), env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [name for name, _ in answer["requests"]] == ["r2", "r3"]
    assert {model["how"] for model in answer["models"]} == {"trained", "forgot"}
    said = done.stdout + done.stderr
    assert MARKER not in said and key(2) not in said and key(3) not in said

"""What becomes of a batch that is refused, fails, is stopped or passes, by its policy; and nothing personal is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from launch.batch_steps import decide
from launch.endings import WorkerError
from launch.schedule import tick
from launch.worker import Asked
from pipeline.errors import ConfigError, DataError, GateFailed, IntegrityError, Preempted, StorageError
from pipeline.ledger import batches, history, lineage, requests
from pipeline.ledger.schema import ALIAS, MODEL
from pipeline.ledger.states import ForbiddenMove
from pipeline.ledger.store import Ledger, open_ledger
from tests.support.schedule import FakeRunner, ask, desk_of, write_line, write_policy

SECRET = "secret-key"
B1 = "b-000001"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", actor="tester") as opened:
        yield opened


def row_of(ledger: Ledger, name: str = B1) -> dict[str, Any]:
    with ledger.read() as tx:
        return batches.find(tx, name)


def everything(ledger: Ledger) -> str:
    with ledger.read() as tx:
        told = [str(entry) for entry in history.entries(tx)]
        return "\n".join([*told, *(str(row) for row in batches.listing(tx))])


def run(ledger: Ledger, place: Path, faults: list[Any], *, ticks: int = 1, **fields: Any) -> tuple[list[str], list[str]]:
    """Tick with a runner that fails so; what was said, and the states and failures after each tick."""
    ask(ledger, write_line(place), SECRET)
    said: list[str] = []
    desk = desk_of(ledger, write_policy(place, **fields), FakeRunner(place / "journal", fails={B1: faults}), said=said)
    after = []
    for _ in range(ticks):
        tick(desk)
        after.append("{state} {failure}".format(**row_of(ledger)).strip())
    assert SECRET not in "\n".join(said) + everything(ledger)
    return said, after


@pytest.mark.parametrize(
    ("fault", "after"),
    [
        (ConfigError(f"requests: key '{SECRET}'"), "held configuration"),
        (DataError(f"{SECRET}: cut short"), "held data"),
        (IntegrityError(f"{SECRET}: changed"), "held data"),
        (GateFailed("the verdict failed"), "held verdict"),
        ("verdict", "held verdict"),
        (StorageError(f"{SECRET}: no space"), "failed storage"),
        (WorkerError("stage train: ended with 1", f"Traceback {SECRET}"), "failed crash"),
        (Preempted("stopped"), "failed preempted"),
        ("lost", "failed lost"),
    ],
)
def test_each_failure_has_its_word_and_its_consequence(ledger: Ledger, tmp_path: Path, fault: Any, after: str) -> None:
    assert run(ledger, tmp_path, [fault])[1] == [after]
    assert row_of(ledger)["lease_until"] is None


def test_what_may_pass_is_tried_again_so_often_as_the_policy_says(ledger: Ledger, tmp_path: Path) -> None:
    _, after = run(ledger, tmp_path, [StorageError("no space")] * 3, ticks=4, attempts=3)
    assert after == ["failed storage", "failed storage", "held storage", "held storage"]
    assert row_of(ledger)["attempts"] == 3


def test_after_a_failure_there_is_a_pause(ledger: Ledger, tmp_path: Path) -> None:
    _, after = run(ledger, tmp_path, [StorageError("no space")], ticks=2, backoff="1h")
    assert after == ["failed storage"] * 2 and row_of(ledger)["next_try_at"] > ledger.now()


def test_stopped_runs_go_on_at_once_and_do_not_count_as_attempts(ledger: Ledger, tmp_path: Path) -> None:
    _, after = run(ledger, tmp_path, [Preempted("stopped")] * 4, ticks=5, attempts=1, preemptions=4, backoff="1h")
    assert after == ["failed preempted"] * 4 + ["evaluated"]


def test_but_not_for_ever(ledger: Ledger, tmp_path: Path) -> None:
    assert run(ledger, tmp_path, [Preempted("stopped")] * 3, ticks=3, preemptions=2)[1][-1] == "held preempted"


@pytest.mark.parametrize("word", [Asked("stopped by SIGTERM", "again"), KeyboardInterrupt()])
def test_a_tick_that_is_told_to_leave_frees_its_batch(ledger: Ledger, tmp_path: Path, word: BaseException) -> None:
    with pytest.raises(type(word)):
        run(ledger, tmp_path, [word])
    row = row_of(ledger)
    assert (row["state"], row["failure"], row["lease_until"]) == ("failed", "preempted", None)
    assert row["next_try_at"] <= ledger.now()


@pytest.mark.parametrize("when", ["plan", "run"])
def test_a_request_that_means_nothing_does_not_hold_up_the_others(ledger: Ledger, tmp_path: Path, when: str) -> None:
    line, said = write_line(tmp_path), list[str]()
    good, bad = ask(ledger, line, "train-000001"), ask(ledger, line, SECRET)
    fails = {B1: [ConfigError(f"requests: key '{SECRET}'")]} if when == "run" else {}
    runner = FakeRunner(tmp_path / "journal", refuses={B1: (bad,)}, fails=fails)
    if when == "run":
        runner.plan = lambda run: None  # type: ignore[method-assign]
    done = tick(desk_of(ledger, write_policy(tmp_path), runner, said=said))
    assert {step.batch_id: step.state for step in done.steps} == {B1: "moved_on", "b-000002": "evaluated"}
    with ledger.read() as tx:
        assert (requests.show(tx, bad)["state"], requests.show(tx, good)["state"]) == ("held", "evaluated")
        told = history.entries(tx, "batch", "b-000002")
        assert any(entry["event"] == "follows" and bad in entry["detail"] and B1 in entry["detail"] for entry in told)
        old, new = batches.find(tx, B1), batches.find(tx, "b-000002")
    assert old["requests_digest"] != new["requests_digest"] and old["folder"] != new["folder"]
    assert SECRET not in "\n".join(said) + everything(ledger)


def test_where_no_request_means_anything_no_batch_follows(ledger: Ledger, tmp_path: Path) -> None:
    bad = ask(ledger, write_line(tmp_path), SECRET)
    tick(desk_of(ledger, write_policy(tmp_path), FakeRunner(tmp_path / "journal", refuses={B1: (bad,)})))
    with ledger.read() as tx:
        assert [row["state"] for row in batches.listing(tx)] == ["moved_on"]


def test_a_line_without_a_run_is_held(ledger: Ledger, tmp_path: Path) -> None:
    ask(ledger, "no such run", SECRET)
    tick(desk_of(ledger, write_policy(tmp_path), FakeRunner(tmp_path / "journal")))
    assert (row_of(ledger)["state"], row_of(ledger)["failure"]) == ("held", "configuration")


def test_storage_that_is_away_when_the_batch_is_planned_costs_no_attempt(ledger: Ledger, tmp_path: Path) -> None:
    ask(ledger, write_line(tmp_path), SECRET)
    runner = FakeRunner(tmp_path / "journal")

    def away(run: Any) -> None:
        raise StorageError("away")

    runner.plan = away  # type: ignore[method-assign]
    tick(desk_of(ledger, write_policy(tmp_path, backoff="1h"), runner))
    row = row_of(ledger)
    assert (row["state"], row["attempts"]) == ("closed", 0) and row["next_try_at"] > ledger.now()


def test_jobs_that_were_sent_are_noted_and_looked_after(ledger: Ledger, tmp_path: Path) -> None:
    line = write_line(tmp_path)
    ask(ledger, line, SECRET)
    runner = FakeRunner(tmp_path / "journal", fails={B1: [None, None]})
    carry_on = runner.carry_on

    def sending(run: Any, note: Any) -> str | None:
        if not run.jobs.get("sent"):
            note({"shard": "100"})
        return carry_on(run, note)

    runner.carry_on = sending  # type: ignore[method-assign]
    desk = desk_of(ledger, write_policy(tmp_path, submit="slurm"), runner)
    states = []
    for _ in range(3):
        tick(desk)
        states.append(row_of(ledger)["state"])
        assert row_of(ledger)["jobs"]["sent"] == {"shard": "100"}
    assert states == ["running", "running", "evaluated"] and row_of(ledger)["attempts"] == 1
    with ledger.read() as tx:
        events = [entry["event"] for entry in history.entries(tx, "batch", B1)]
    assert events == ["closed", "claimed", "running", "sent", "evaluated"]


@pytest.mark.parametrize("original", ["train", "given"])
def test_images_are_skipped_after_a_run_that_needs_them_and_before_one_that_does_not(
    ledger: Ledger, tmp_path: Path, original: str
) -> None:
    over = {} if original == "train" else {"original": "s3://bucket/model.safetensors"}
    ask(ledger, write_line(tmp_path, **over), SECRET)
    tick(desk_of(ledger, write_policy(tmp_path, tombstones=True), FakeRunner(tmp_path / "journal")))
    acts = [line.split()[0] for line in (tmp_path / "journal").read_text().splitlines()]
    assert acts == (["start", "work", "skip"] if original == "train" else ["skip", "start", "work"])
    with ledger.read() as tx:
        assert lineage.SKIPPED in [entry["event"] for entry in history.entries(tx, "batch", B1)]


def test_a_line_may_begin_with_the_model_that_is_in_force(ledger: Ledger, tmp_path: Path) -> None:
    line = write_line(tmp_path)
    policy = write_policy(tmp_path, most=1, alias="live", lines={line: {"original": "released"}})
    seen: list[str] = []
    runner = FakeRunner(tmp_path / "journal")
    carry_on = runner.carry_on

    def looking(run: Any, note: Any) -> str | None:
        seen.append(run.config.original)
        return carry_on(run, note)

    runner.carry_on = looking  # type: ignore[method-assign]
    desk = desk_of(ledger, policy, runner)
    ask(ledger, line, "train-000001")
    tick(desk)
    with ledger.write() as tx:
        model = tx.execute(sa.select(MODEL).where(MODEL.c.verdict == "passed")).mappings().one()
        row = {
            "line": line,
            "name": "live",
            "version": 1,
            "model_id": model["model_id"],
            "changed_at": tx.now,
            "by": "p",
            "reason": "",
        }
        tx.execute(sa.insert(ALIAS).values(row))
    ask(ledger, line, "train-000002")
    tick(desk)
    assert seen == ["train", model["uri"]]
    assert row_of(ledger, "b-000002")["jobs"]["original"] == model["uri"]


def test_what_was_rolled_back_is_not_released_again_by_itself(ledger: Ledger, tmp_path: Path) -> None:
    _, after = run(ledger, tmp_path, [])
    assert after == ["evaluated"]
    with ledger.write() as tx:
        batches.move(tx, B1, "released")
    with ledger.write() as tx:
        batches.move(tx, B1, "rolled_back")
    runner = FakeRunner(tmp_path / "journal")
    desk = desk_of(ledger, write_policy(tmp_path), runner)
    tick(desk)
    again = row_of(ledger, "b-000002")
    assert (again["state"], again["failure"]) == ("held", "rolled back")
    assert again["requests_digest"] == row_of(ledger)["requests_digest"] and runner.told("start") == [B1]
    with pytest.raises(ConfigError, match="without reason"):
        decide(ledger, "b-000002", apart=False, reason=" ")
    assert decide(ledger, "b-000002", apart=False, reason="looked at again") == "closed"
    assert [step.state for step in tick(desk).steps] == ["evaluated"]
    assert runner.told("work") == [B1]  # the same folder: nothing is left to do
    with pytest.raises(ForbiddenMove, match="is evaluated, not held"):
        decide(ledger, "b-000002", apart=True, reason="no")


def test_a_held_batch_can_be_taken_apart(ledger: Ledger, tmp_path: Path) -> None:
    assert run(ledger, tmp_path, [DataError("cut short")])[1] == ["held data"]
    assert decide(ledger, B1, apart=True, reason="the shard is mended") == "moved_on"
    with ledger.read() as tx:
        assert requests.counts(tx) == {"queued": 1}

"""`unlearn release`, `rollback`, `retire`: what they print, their JSON, their exit codes, and what they never say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from launch.cli import app
from launch.cli_release import given_ledger, item_line, promotion_lines
from launch.promote import Promotion
from launch.retention import Item
from pipeline.ledger import batches, requests
from pipeline.ledger.requests import Submission
from pipeline.ledger.store import open_ledger
from tests.support.finished import FORGOTTEN
from tests.support.releasing import FAILS, Place, usual_run


def unlearn(*words: str) -> typer.testing.Result:
    result = typer.testing.CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNLEARN_LEDGER", raising=False)


def words(room: Place, *more: str) -> tuple[str, ...]:
    return ("--to", room.to, "--key", f"{room.base}/signer.key", *more)


def test_a_release_says_what_it_did_and_does_it_once(room: Place, usual: Path) -> None:
    more = words(room, "--alias", "production", "--secret", f"{room.base}/digests.key", "--keep-days", "30")
    done = unlearn("release", str(usual), *more)
    assert done.exit_code == 0, done.output
    (folder,) = room.line.glob("tiny-*")
    assert done.stdout.splitlines()[:4] == [
        f"released: {folder}",
        f"signed by {room.key.key_id}",
        "keyed digests of the forgotten keys: 4",
        f"alias production: names {folder.name} from now on (change 1)",
    ]
    again = unlearn("release", str(usual), *more)
    assert again.exit_code == 0 and again.stdout.startswith(f"released already, nothing to do: {folder}\n")
    assert f"names {folder.name} already" in again.stdout
    found = json.loads(unlearn("release", str(usual), *more, "--json").stdout)
    assert found["new"] is False and found["promotion"]["did"] == "unchanged" and found["kept"] == []
    assert not any(key in done.output + again.output + json.dumps(found) for key in (*FORGOTTEN, room.secret.hex()))


def test_what_fails_the_gate_ends_with_four_and_names_the_cure(room: Place, tmp_path: Path) -> None:
    run = usual_run(tmp_path / "run", **FAILS)
    done = unlearn("release", str(run), *words(room))
    assert done.exit_code == 4 and "the verdict failed: kept broken" in done.stderr and "--approve NAME" in done.stderr
    half = unlearn("release", str(run), *words(room, "--approve", "Ada"))
    assert half.exit_code == 2 and "one without the other" in half.stderr
    passed = unlearn("release", str(run), *words(room, "--approve", "Ada", "--reason", "an emergency"))
    assert passed.exit_code == 0, passed.output


def test_a_wrong_key_or_run_is_one_message(room: Place, usual: Path, tmp_path: Path) -> None:
    for case in (
        ("release", "nowhere", *words(room)),
        ("release", str(usual), "--to", room.to, "--key", str(tmp_path / "no.key")),
    ):
        done = unlearn(*case)
        assert done.exit_code == 2 and done.stderr.startswith("error: ") and "cure: " in done.stderr


def test_a_roll_back_asks_for_a_person_by_name(shop: Place, wider: Path, bundle: Path) -> None:
    shop.send(wider, alias="production")
    where = ("rollback", "--to", shop.to, "--line", "tiny", "--alias", "production", "--version", bundle.name)
    refused = unlearn(*where, "--key", f"{shop.base}/signer.pub")
    assert refused.exit_code == 4 and "may hold images of 1 released batches" in refused.stderr
    done = unlearn(*where, "--approve", "Ada", "--reason", "an emergency", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["did"] == "rolled back"
    again = unlearn(*where)
    assert again.exit_code == 0 and f"names {bundle.name} already" in again.stdout
    history = json.loads((shop.line / "aliases" / "production" / "000003.json").read_text())
    assert (history["by"], history["reason"], history["approved"]) == ("Ada", "an emergency", True)


def _evaluated(url: str, run: Path) -> Any:
    """A ledger with the batch of a run, evaluated: its requests are those of the run file."""
    batch = json.loads((run / "shards" / "batch.json").read_text())
    with open_ledger(url) as ledger, ledger.write() as tx:
        for item in batch["requests"]:
            selector = item["selector"]
            wish = Submission(
                kind=selector["kind"],
                values=tuple(selector["values"]),
                line="tiny",
                request_id=item["request_id"],
                subject="Marker",
            )
            requests.submit(tx, wish, again=True)
        name = batches.close(tx, "tiny")
        for state in ("running", "evaluated"):
            batches.move(tx, name, state)
    return name


def state_of(url: str, name: str) -> tuple[str, dict[str, int]]:
    with open_ledger(url) as ledger, ledger.read() as tx:
        return batches.find(tx, name)["state"], requests.counts(tx)


def test_the_ledger_follows_release_refusal_and_roll_back(room: Place, usual: Path, other: Path, wider: Path) -> None:
    url = f"sqlite:///{room.base}/ledger.sqlite"
    first = _evaluated(url, usual)
    more = words(room, "--alias", "production", "--ledger", url)
    assert unlearn("release", str(usual), *more).exit_code == 0
    assert state_of(url, first) == ("released", {"released": 2})
    second = _evaluated(url, other)
    refused = unlearn("release", str(other), *more)  # trained on what the first forgot
    assert refused.exit_code == 4, refused.output
    assert state_of(url, second)[0] == "evaluated" and len(list(room.line.glob("tiny-*"))) == 1
    third = _evaluated(url, wider)
    assert unlearn("release", str(wider), *more).exit_code == 0
    assert state_of(url, third)[0] == "released"
    (before,) = [folder for folder in room.line.glob("tiny-*") if folder.name.startswith(usual.name)]
    where = ("--to", room.to, "--line", "tiny", "--alias", "production", "--version", before.name, "--ledger", url)
    done = unlearn("rollback", *where, "--approve", "Ada", "--reason", "an emergency")
    assert done.exit_code == 0 and f"these batches' requests wait again: {third}" in done.stdout, done.output
    assert state_of(url, third)[0] == "rolled_back" and state_of(url, first)[0] == "released"
    checked = unlearn("ledger", "check", "--ledger", url)
    assert checked.exit_code == 0, checked.output
    assert "Marker" not in refused.output + done.output


def test_retire_lists_asks_and_removes(shop: Place, finished: Path, bundle: Path) -> None:
    from launch.released import releases
    from launch.retention import keep

    where = ("retire", "--to", shop.to, "--line", "tiny")
    empty = unlearn(*where)
    assert empty.exit_code == 0 and "0 of 0 are due" in empty.stdout
    (finished / "checkpoints/original").mkdir(parents=True)
    (finished / "checkpoints/original/model.safetensors").write_bytes(b"w")
    release = releases(str(shop.line))[bundle.name]
    keep(str(shop.line), release, str(finished), days=0, now="2026-01-01T00:00:00+00:00")
    listed = unlearn(*where, "--dry-run")
    assert listed.exit_code == 0 and f"kept until 2026-01-01: {finished}: 1 files, checkpoints" in listed.stdout
    assert "nobody is there to ask" in unlearn(*where).stderr
    done = unlearn(*where, "--yes", "--json")
    assert done.exit_code == 0 and len(json.loads(done.stdout)["removed"]) == 1
    assert not (finished / "checkpoints/original/model.safetensors").exists()


def test_the_list_says_what_names_a_release_and_what_it_may_hold(shop: Place, wider: Path, bundle: Path) -> None:
    second = shop.send(wider, alias="production").release
    where = ("releases", "--to", shop.to, "--line", "tiny", "--key", f"{shop.base}/signer.pub")
    found = {item["version"]: item for item in json.loads(unlearn(*where, "--json").stdout)}
    assert (found[bundle.name]["aliases"], found[bundle.name]["holds"]) == ([], [second.batch])
    assert (found[second.version]["aliases"], found[second.version]["holds"]) == (["production"], [])
    told = unlearn(*where)
    assert told.exit_code == 0 and second.version in told.stdout and "1 batches" in told.stdout


def test_no_ledger_is_made_by_the_way(tmp_path: Path) -> None:
    with given_ledger("") as ledger:
        assert ledger is None
    assert list(tmp_path.iterdir()) == []
    with open_ledger("sqlite:///unlearn-ledger.sqlite") as made, given_ledger("") as found:
        assert found is not None and found.name == made.name


def test_lines_say_what_became_of_an_alias() -> None:
    assert promotion_lines(None) == []
    made = Promotion(alias="live", version="v1", number=3, did="rolled back", held=("a", "b"), taken_back=("b-000002",))
    assert promotion_lines(made) == [
        "alias live: rolled back: names v1 from now on (change 3)",
        "it may hold images of 2 released batches; the approval is written down",
        "these batches' requests wait again: b-000002",
    ]
    item = Item(
        kind="release", folder="f", version="v0", held_for="v1", files=("model.safetensors",), kept_until="d", alias="live"
    )
    expected = "still holds deleted data, kept until d: f: 1 files, an earlier release's weights, named by alias live"
    assert item_line(item) == expected

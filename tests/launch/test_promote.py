"""An alias moves where it may, once, and in the ledger as on storage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from launch import promote
from launch.gate import Approval
from launch.promote import move, passed_on
from launch.released import Released, releases
from pipeline.aliases import changes
from pipeline.errors import ConfigError, GateFailed, StorageError
from pipeline.ledger.store import Ledger, open_ledger
from tests.support.releasing import NOW, Place

LEAVE = Approval(approver="Ada", reason="an emergency", at=NOW)
TOLD: dict[str, Any] = {"by": "tester", "now": NOW}


@pytest.fixture
def known(shop: Place) -> dict[str, Released]:
    """The release of the shop, and a later one of another batch that unlearned the first one's, too."""
    (first,) = releases(str(shop.line)).values()
    second = dataclasses.replace(first, version="v2", batch="b2", batches=("b2", first.batch), weights="e" * 64)
    return {first.version: first, "v2": second}


def test_forward_it_moves_freely_and_back_only_with_leave(shop: Place, known: dict[str, Released]) -> None:
    line, (first, second) = str(shop.line), known.values()
    assert passed_on(line, "production", first.version) is None
    assert move(line, "production", second, act="promoted", **TOLD).did == "promoted"
    late = passed_on(line, "production", first.version)
    assert late is not None and (late.did, late.version, late.number) == ("passed on", "v2", 2)
    with pytest.raises(GateFailed, match="may hold images of 1 released batches"):
        move(line, "production", first, act="rolled back", **TOLD)
    done = move(line, "production", first, act="rolled back", approval=LEAVE, **TOLD)
    assert done.did == "rolled back" and done.held == ("b2",)
    last = changes(line, "production")[-1]
    assert (last.by, last.reason, last.approved, last.act) == ("Ada", "an emergency", True, "rolled back")


def test_what_it_names_already_stays(shop: Place, known: dict[str, Released]) -> None:
    first = next(iter(known.values()))
    done = move(str(shop.line), "production", first, act="promoted", **TOLD)
    assert done.did == "unchanged" and len(changes(str(shop.line), "production")) == 1


def test_an_approval_that_is_not_needed_is_not_written_down(shop: Place, known: dict[str, Released]) -> None:
    move(str(shop.line), "production", known["v2"], act="promoted", approval=LEAVE, **TOLD)
    last = changes(str(shop.line), "production")[-1]
    assert (last.by, last.approved) == ("tester", False)


def test_a_host_that_was_overtaken_changes_nothing(
    shop: Place, known: dict[str, Released], monkeypatch: pytest.MonkeyPatch
) -> None:
    line, original = str(shop.line), promote.change

    def meanwhile(*words: Any, **named: Any) -> Any:
        other = dataclasses.replace(known["v2"], version="v3")
        with monkeypatch.context() as patch:
            patch.setattr(promote, "change", original)
            move(line, "production", other, act="promoted", **TOLD)
        return original(*words, **named)

    monkeypatch.setattr(promote, "change", meanwhile)
    with pytest.raises(StorageError, match="another host changed it"):
        move(line, "production", known["v2"], act="promoted", **TOLD)
    assert [item.version for item in changes(line, "production")][1:] == ["v3"]


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as opened:
        yield opened


def test_a_model_that_the_ledger_does_not_know_moves_no_alias(shop: Place, known: dict[str, Released], ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="v2: not in the ledger"):
        move(str(shop.line), "production", known["v2"], act="promoted", ledger=ledger, **TOLD)
    assert len(changes(str(shop.line), "production")) == 1

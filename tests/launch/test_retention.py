"""What still holds deleted data is listed with its date, removed after it, and not before; the run still verifies."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from launch import retention
from launch.local import refuse_erased
from launch.released import Released, releases
from launch.retention import RETIRED, holders, keep, kept, retire, retired_files
from launch.verify import verify
from pipeline.chain import read_receipt, write_receipt
from pipeline.errors import ConfigError, IntegrityError, StorageError
from pipeline.ledger.history import entries
from pipeline.ledger.store import open_ledger
from pipeline.records import FileRef
from pipeline.storage import hash_file
from tests.support.releasing import NOW, Place

LATER, BEFORE = "2026-03-10T00:00:00.000000+00:00", "2026-03-02T23:59:59.000000+00:00"
HELD = ("checkpoints/forgotten/model.safetensors", "checkpoints/original/model.safetensors")


@pytest.fixture
def run(finished: Path) -> Path:
    """A finished run whose train stage wrote the original's weights; its name is that of nothing released."""
    for name in (*HELD, "checkpoints/unlearned/model.safetensors", "checkpoints/retrained/model.safetensors"):
        (finished / name).parent.mkdir(parents=True, exist_ok=True)
        (finished / name).write_bytes(name.encode())
    return finished


@pytest.fixture
def known(shop: Place) -> dict[str, Released]:
    return releases(str(shop.line))


def test_only_what_saw_the_images_is_listed(run: Path) -> None:
    assert holders(str(run)) == HELD
    assert holders(str(run / "nothing")) == ()


def test_it_stays_until_its_date_and_goes_after_it(run: Path, shop: Place, known: dict[str, Released]) -> None:
    line, (release,) = str(shop.line), known.values()
    made = keep(line, release, str(run), days=30, now=NOW)
    assert made.kept_until == "2026-03-03" and made.files == HELD
    assert keep(line, release, str(run), days=1, now=LATER) == made  # sent again, the first date stands
    (item,) = kept(line, known)
    assert (item.kind, item.folder, item.kept_until, item.files) == ("checkpoints", str(run), "2026-03-03", HELD)
    assert retire(line, known, by="t", now=BEFORE) == ([], [])
    assert holders(str(run)) == HELD
    assert retire(line, known, by="t", now=LATER) == ([item], [])
    assert holders(str(run)) == () and (run / "checkpoints/unlearned/model.safetensors").exists()
    assert retire(line, known, by="t", now=LATER) == ([], []) and kept(line, known) == []
    assert retired_files(str(run)) == HELD
    with pytest.raises(ConfigError, match="removed by its keep policy"):
        refuse_erased(str(run))


def test_an_earlier_release_that_holds_deleted_data_goes_too_unless_an_alias_names_it(
    run: Path, shop: Place, bundle: Path, wider: Path
) -> None:
    made = shop.send(wider)  # the alias still names the first release
    line = str(shop.line)
    keep(line, made.release, str(run), days=0, now=NOW)
    items = kept(line, made.known)
    assert [(item.kind, item.alias) for item in items] == [("checkpoints", ""), ("release", "production")]
    with open_ledger(f"sqlite:///{shop.base}/l.sqlite") as ledger:
        shop.send(wider, ledger)
        gone, stay = retire(line, made.known, by="t", now=NOW, ledger=ledger)
        assert [item.kind for item in gone] == ["checkpoints"] and [item.alias for item in stay] == ["production"]
        assert (bundle / "model.safetensors").exists()
        with ledger.read() as tx:
            assert entries(tx, "release")[-1]["event"] == "retired"
    shop.send(wider, alias="production")
    gone, stay = retire(line, made.known, by="t", now=NOW)
    assert [item.folder for item in gone] == [str(bundle)] and stay == []
    assert not (bundle / "model.safetensors").exists() and (bundle / "report.json").exists()


def test_a_run_still_verifies_and_what_came_back_is_named(run: Path, shop: Place, known: dict[str, Released]) -> None:
    """The stage that wrote the weights says so in its receipt; their absence is right after they were retired."""
    receipt = read_receipt(str(run), "forget")
    assert receipt is not None
    ref = hash_file(str(run / HELD[0]))
    file = FileRef(uri=HELD[0], sha256=ref.sha256, bytes=ref.bytes)
    write_receipt(str(run), dataclasses.replace(receipt, outputs=(*receipt.outputs, file)))
    keep(str(shop.line), next(iter(known.values())), str(run), days=0, now=NOW)
    retire(str(shop.line), known, by="t", now=NOW)
    named = [fault for fault in verify(str(run)).faults if "checkpoints" in fault]
    assert named == [] and verify(str(run)).retired == len(HELD)
    (run / HELD[0]).write_bytes(b"back")
    assert any("still there, although retired.json says" in fault for fault in verify(str(run)).faults)
    sealed = json.loads((run / RETIRED).read_text())
    sealed["retired"]["files"].append("weights/model.safetensors")
    (run / RETIRED).write_text(json.dumps(sealed))
    assert any("retired.json: changed" in fault for fault in verify(str(run)).faults)


def test_a_removal_that_is_cut_short_is_gone_on_with(
    run: Path, shop: Place, known: dict[str, Released], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(str(shop.line), next(iter(known.values())), str(run), days=0, now=NOW)
    with monkeypatch.context() as patch:
        patch.setattr(retention, "remove", lambda version: None)
        with pytest.raises(StorageError, match="still there after it was removed"):
            retire(str(shop.line), known, by="t", now=NOW)
    assert retired_files(str(run)) == HELD
    gone, _ = retire(str(shop.line), known, by="t", now=NOW)
    assert len(gone) == 1 and holders(str(run)) == ()


def test_a_policy_that_was_changed_is_named(run: Path, shop: Place, known: dict[str, Released]) -> None:
    made = keep(str(shop.line), next(iter(known.values())), str(run), days=9, now=NOW)
    file = shop.line / "retention" / f"{made.version}.json"
    for content in ("", "[]", file.read_text().replace(",", ", "), "{}"):
        file.write_text(content)
        with pytest.raises(IntegrityError, match="retention"):
            kept(str(shop.line), known)
    shutil.rmtree(file.parent)
    assert kept(str(shop.line), known) == []

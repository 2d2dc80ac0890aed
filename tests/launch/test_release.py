"""A release is whole, signed, says nothing personal, and is the same when it is sent twice, by whomever."""

from __future__ import annotations

import dataclasses
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest

import launch.release as module
from launch.gate import Approval
from launch.released import read_release, releases
from launch.verify_bundle import verify_release
from pipeline.aliases import in_force
from pipeline.bundle import STATEMENT_FILE, read_receipts, read_run_manifest
from pipeline.errors import ConfigError, GateFailed, IntegrityError, StorageError
from pipeline.ledger.history import check, entries
from pipeline.ledger.pseudonyms import keyed_digest
from pipeline.ledger.store import open_ledger
from pipeline.signing import make_keys, read_private, read_public, unseal
from tests.support.finished import FORGOTTEN
from tests.support.releasing import FAILS, NOW, Place, in_processes, usual_run

LEAVE = Approval(approver="Ada", reason="an emergency", at=NOW)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_folder_holds_what_it_promises(bundle: Path) -> None:
    stages = ("shard", "train", "retrain", "calibrate", "forget", "retain", "evaluate", "release")
    named = {"README.md", "config.json", "model.safetensors", "report.json", "report.html", "manifest.json"}
    named |= {"forgotten.json", "model.sig", STATEMENT_FILE} | {f"receipts/{stage}.json" for stage in stages}
    assert files(bundle).keys() == named
    assert (bundle / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert bundle.stat().st_mode & 0o777 == 0o755


def test_the_statement_repeats_the_report_and_names_every_file(bundle: Path, shop: Place) -> None:
    statement = unseal((bundle / STATEMENT_FILE).read_bytes(), where="s", key=shop.key.public).payload
    report = json.loads((bundle / "report.json").read_text())
    predicate = statement["predicate"]
    assert predicate["claim"]["headline"] == report["headline"]
    assert predicate["claim"]["words"] == report["claims"]["words"]
    assert predicate["run"]["batchDigest"] == report["asked"]["batch_digest"]
    assert predicate["weights"]["sha256"] == report["provenance"]["weights"]["sha256"]
    assert predicate["ledger"] is None and predicate["approval"] is None
    assert {item["name"] for item in statement["subject"]} == files(bundle).keys() - {STATEMENT_FILE}


def test_sent_twice_it_is_the_same_and_so_is_the_alias(shop: Place, usual: Path) -> None:
    before = files(shop.line)
    again = shop.send(usual, alias="production", now="2027-01-01T00:00:00.000000+00:00")
    assert not again.new and again.promotion is not None and again.promotion.did == "unchanged"
    assert files(shop.line) == before


def test_many_that_send_at_once_make_one_release_and_one_change(room: Place, usual: Path) -> None:
    said = in_processes("at_once", room, usual)
    late = [did for _, did in said if "at the same time" in did]
    # Who made the release may be refused when it comes to the alias, and then says no more of what it made.
    assert sum(new for new, _ in said) in ([0, 1] if late else [1]), said
    assert sum(did == "promoted" for _, did in said) == 1
    assert all(did in ("promoted", "unchanged") or "at the same time" in did for _, did in said), said
    assert [path.name for path in room.line.iterdir() if path.name.startswith(".")] == []
    (made,) = room.line.glob("tiny-*")
    assert verify_release(str(made), room.key.public).faults == ()


def test_killed_at_any_moment_it_is_whole_or_not_there(room: Place, usual: Path) -> None:
    found = in_processes("killed", room, usual)
    codes = [code for code, _, _ in found]
    assert codes[0] == 9 and codes[-1] == 0 and codes.count(9) >= 4
    assert all(faults == [] and fits for _, faults, fits in found), found
    last = room.send(usual, alias="production")
    assert last.promotion is not None and last.promotion.did == "unchanged"


def test_on_other_storage_it_is_the_same(room: Place, usual: Path) -> None:
    to = f"memory://release-{uuid.uuid4().hex}"
    made = room.send(usual, to=to, alias="production")
    assert made.new and not room.send(usual, to=to, alias="production").new
    assert made.release.version == room.send(usual).release.version
    assert verify_release(made.release.folder, room.key.public).faults == ()
    change = in_force(made.line, "production")
    assert change is not None and change.version == made.release.version


def test_a_release_that_was_cut_short_elsewhere_is_gone_on_with(
    room: Place, usual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to, copies = f"memory://release-{uuid.uuid4().hex}", 0
    original = module.copy_file

    def cut(source: str, target: str) -> Any:
        nonlocal copies
        copies += 1
        if copies == 3:
            raise StorageError(f"{target}: gone", "")
        return original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(module, "copy_file", cut)
        with pytest.raises(StorageError, match="gone"):
            room.send(usual, to=to, alias="production")
    assert in_force(f"{to}/tiny", "production") is None
    made = room.send(usual, to=to, alias="production")
    assert made.new and verify_release(made.release.folder, room.key.public).faults == ()


def test_another_key_after_a_release_that_was_cut_short(room: Place, usual: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = f"memory://release-{uuid.uuid4().hex}"
    with monkeypatch.context() as patch:
        patch.setattr(module, "seal", lambda *_: (_ for _ in ()).throw(StorageError("cut", "")))
        with pytest.raises(StorageError, match="cut"):
            room.send(usual, to=to)
    make_keys(str(room.base / "next"))
    successor = read_private(str(room.base / "next.key"))
    made = room.send(usual, to=to, key=successor)
    assert verify_release(made.release.folder, successor.public).faults == ()


def test_locally_a_failure_leaves_nothing(room: Place, usual: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "seal", lambda *_: (_ for _ in ()).throw(StorageError("no space left", "")))
    with pytest.raises(StorageError, match="no space"):
        room.send(usual, alias="production")
    assert list(room.line.iterdir()) == []


def test_what_did_not_pass_is_refused_and_released_with_a_persons_name(room: Place, tmp_path: Path) -> None:
    run = usual_run(tmp_path / "run", **FAILS)
    with pytest.raises(GateFailed, match="not released"):
        room.send(run, alias="production")
    assert not room.line.exists()
    made = room.send(run, alias="production", approval=LEAVE)
    assert made.approved
    folder = Path(made.release.folder)
    assert json.loads((folder / "approval.json").read_text()) == {"approver": "Ada", "reason": "an emergency"}
    statement = unseal((folder / STATEMENT_FILE).read_bytes(), where="s").payload
    assert statement["predicate"]["approval"]["approver"] == "Ada"


def test_an_approval_that_nobody_needed_is_not_recorded(room: Place, usual: Path) -> None:
    made = room.send(usual, alias="production", approval=LEAVE)
    assert not made.approved and not (Path(made.release.folder) / "approval.json").exists()
    assert made.promotion is not None and (change := in_force(made.line, "production")) is not None and not change.approved


def test_a_run_that_does_not_verify_is_refused(room: Place, usual: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(usual.parent, copy)
    run = copy / usual.name
    (run / "checkpoints/unlearned/model.safetensors").write_bytes(b"other")
    with pytest.raises(IntegrityError, match=r"does not verify\n.*checkpoints/unlearned/model\.safetensors: changed"):
        room.send(run)
    assert not room.line.exists()


def test_a_run_that_has_not_ended_is_refused(room: Place, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"report\.json: not found"):
        room.send(tmp_path)


@pytest.mark.parametrize("field", ["line", "alias"])
def test_a_name_that_leaves_its_folder_is_refused(room: Place, usual: Path, field: str) -> None:
    with pytest.raises(ConfigError, match="not a name"):
        room.send(usual, **{field: "../elsewhere"})


def test_a_release_of_an_unknown_key_in_the_line_is_named_and_can_be_trusted(shop: Place, other: Path) -> None:
    make_keys(str(shop.base / "next"))
    successor = read_private(str(shop.base / "next.key"))
    with pytest.raises(IntegrityError, match=f"signed by {shop.key.key_id}, which is not trusted") as caught:
        shop.send(other, key=successor)
    assert "--trust" in caught.value.cure
    assert shop.send(other, key=successor, trusted=(read_public(str(shop.base / "signer.pub")),)).new


def test_a_model_that_was_trained_on_released_images_is_not_promoted(shop: Place, other: Path) -> None:
    with pytest.raises(GateFailed, match="may hold images of 1 released batches"):
        shop.send(other, alias="production")
    change = in_force(str(shop.line), "production")
    assert change is not None and change.number == 1
    assert len(list(shop.line.glob("tiny-*"))) == 1  # not published either: nothing may rely on it


def test_a_model_that_forgot_them_too_is_promoted(shop: Place, usual: Path, wider: Path) -> None:
    made = shop.send(wider, alias="production")
    assert made.promotion is not None and made.promotion.did == "promoted" and made.promotion.number == 2
    first = next(item for item in made.known.values() if item.version != made.release.version)
    assert first.batch in made.release.batches
    late = shop.send(usual, alias="production")  # by a host that was asleep
    assert late.promotion is not None and late.promotion.did == "passed on"
    change = in_force(str(shop.line), "production")
    assert change is not None and change.version == made.release.version


def test_after_a_new_secret_the_old_one_still_tells_what_was_forgotten(shop: Place, wider: Path) -> None:
    """Digests of two secrets cannot be compared; so the old one is needed as long as its releases count."""
    new = b"n" * 32
    with pytest.raises(GateFailed, match="may hold images of 1 released batches"):
        shop.send(wider, alias="production", secret=new)
    made = shop.send(wider, alias="production", secret=new, old_secrets=(shop.secret,))
    assert made.promotion is not None and made.promotion.did == "promoted" and len(made.release.batches) == 2


def test_an_audit_of_other_weights_does_not_count(room: Place, usual: Path, tmp_path: Path) -> None:
    shutil.copytree(usual.parent, tmp_path / "out")
    run = tmp_path / "out" / usual.name
    weights = json.loads((run / "report.json").read_text())["provenance"]["weights"]["sha256"]
    audit = {"weights_sha256": "0" * 64, "verdict": {"rules": [{"metric": "attacks", "state": "kept"}]}}
    (run / "audit.json").write_text(json.dumps(audit))
    with pytest.raises(IntegrityError, match=r"audit\.json: of other weights"):
        room.send(run)
    audit |= {"weights_sha256": weights, "verdict": {"rules": [{"metric": "attacks", "state": "broken"}]}}
    (run / "audit.json").write_text(json.dumps(audit))
    with pytest.raises(GateFailed, match="attacks broken"):
        room.send(run)
    (run / "audit.json").write_text("[]")
    with pytest.raises(IntegrityError, match="not an audit"):
        room.send(run)


def test_without_a_secret_nothing_is_computed_and_said_so(room: Place, usual: Path, wider: Path) -> None:
    made = room.send(usual, secret=None)
    assert made.release.forgotten_words == "not computed: no secret was given"
    assert not (Path(made.release.folder) / "forgotten.json").exists()
    assert len(room.send(wider, secret=None).release.batches) == 1


def test_the_release_that_a_run_began_from_is_its_parent(shop: Place, usual: Path, wider: Path) -> None:
    """A run that was given a release's weights as its original keeps them in checkpoints/original."""
    receipts, manifest = read_receipts(str(wider)), read_run_manifest(str(wider))
    weights = next(ref for ref in read_receipts(str(usual))["release"].outputs if ref.uri == "weights/model.safetensors")
    given = dataclasses.replace(weights, uri="checkpoints/original/model.safetensors")
    receipts["train"] = dataclasses.replace(receipts["train"], outputs=(given,))
    wish = shop.wish(line="tiny")
    found = module._lineage(wish, str(wider), manifest, receipts, releases(str(shop.line)), "v")
    assert found.parent == weights.sha256


def test_nothing_personal_is_published_or_said(room: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    marker, key = "Marker-Person", "s2/img2"
    requests = [
        {"request_id": "r1", "label": "one", "subject": marker, "note": f"a note of {marker}"},
        {"request_id": "r2", "keys": [key], "subject": f"{marker}-2", "basis": f"{marker} basis"},
    ]
    made = room.send(usual_run(tmp_path / "run", requests=requests), alias="production")
    secrets = [marker, *FORGOTTEN, room.secret.hex(), str(tmp_path / "run")]
    private = (room.base / "signer.key").read_text().splitlines()[1]
    for name, content in files(room.line).items():
        for word in (*secrets, private):
            assert word.encode() not in content, (name, word)
    said = capfd.readouterr()
    assert not any(word in said.out + said.err + repr(room.wish()) for word in (*secrets[:-1], private))
    digests = json.loads((Path(made.release.folder) / "forgotten.json").read_text())["digests"]
    assert digests == sorted(keyed_digest(room.secret, "key", name) for name in FORGOTTEN)


def test_with_a_ledger_the_model_the_alias_and_its_head_are_written_down(room: Place, usual: Path) -> None:
    with open_ledger(f"sqlite:///{room.base}/ledger.sqlite") as ledger:
        for _ in range(2):
            made = room.send(usual, ledger, alias="production")
        with ledger.read() as tx:
            told = [(entry["name"], entry["event"]) for entry in entries(tx, "release")]
        assert told == [(f"tiny/{made.release.version}", "released"), ("tiny/production", "promoted")]
        assert check(ledger) == []
    statement = unseal((Path(made.release.folder) / STATEMENT_FILE).read_bytes(), where="s").payload
    assert statement["predicate"]["ledger"]["seq"] == 1
    assert read_release(made.release.folder).weights == made.release.weights

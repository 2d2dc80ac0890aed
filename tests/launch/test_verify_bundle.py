"""A release is verified from its own files; no byte of any file changes unseen, whoever holds it and wherever it lies."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.keys import destroy_secret, new_secret, read_secret
from launch.verify_bundle import answer_about_key, is_release, ledger_fault, verify_release
from pipeline.bundle import STATEMENT_FILE, WEIGHTS_SIGNATURE, hash_files
from pipeline.decode import canonical, digest
from pipeline.errors import ConfigError
from pipeline.ledger.store import open_ledger
from pipeline.signing import make_keys, read_private, read_public, seal, unseal
from tests.support.command import environment
from tests.support.finished import FORGOTTEN
from tests.support.releasing import Place, place


@pytest.fixture(scope="module")
def steady(usual: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Place]:
    """A release for tests that leave it as it was."""
    made = place(tmp_path_factory.mktemp("steady"))
    return Path(made.send(usual).release.folder), made


def test_an_untouched_release_is_intact_and_trusted_with_its_key_only(steady: tuple[Path, Place]) -> None:
    folder, made = steady
    found = verify_release(str(folder), made.key.public)
    assert found.faults == () and found.trusted and found.weights_signature == "fits"
    assert (found.files, found.receipts) == (16, 8) and found.words == "measured; no certificate"
    without = verify_release(str(folder))
    assert without.faults == () and not without.trusted and without.signed_by == (made.key.key_id,)
    assert without.weights_signature == "not checked: no key was given"


@settings(max_examples=60, deadline=None)
@given(number=st.integers(0, 10**3), offset=st.integers(0, 10**6), flipped=st.integers(1, 255))
def test_no_byte_of_any_file_changes_unseen(steady: tuple[Path, Place], number: int, offset: int, flipped: int) -> None:
    folder, made = steady
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = files[number % len(files)]
    before = file.read_bytes()
    changed = bytearray(before)
    changed[offset % len(before)] ^= flipped
    file.write_bytes(changed)
    try:
        faults = verify_release(str(folder), made.key.public).faults
    finally:
        file.write_bytes(before)
    name = file.relative_to(folder)
    assert any(f"{folder / name}: " in fault for fault in faults), (name, offset % len(before), faults)


@settings(max_examples=15, deadline=None)
@given(number=st.integers(0, 10**3), length=st.integers(0, 10**6))
def test_without_a_key_changed_content_is_found_too(steady: tuple[Path, Place], number: int, length: int) -> None:
    folder, _ = steady
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != STATEMENT_FILE)
    file = files[number % len(files)]
    before = file.read_bytes()
    file.write_bytes(before[: length % len(before)])
    try:
        faults = verify_release(str(folder)).faults
    finally:
        file.write_bytes(before)
    assert any(file.name in fault for fault in faults)


def test_each_missing_file_and_each_stranger_is_named(steady: tuple[Path, Place]) -> None:
    folder, made = steady
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        before = file.read_bytes()
        file.unlink()
        faults = verify_release(str(folder), made.key.public).faults
        file.write_bytes(before)
        assert any(f"{file}: missing" in fault for fault in faults), (file, faults)
    stranger = folder / "pretrained" / "pytorch_model.bin"
    stranger.parent.mkdir()
    stranger.write_bytes(b"pickle")
    faults = verify_release(str(folder), made.key.public).faults
    shutil.rmtree(stranger.parent)
    assert faults == (f"{stranger}: a stranger: the statement does not name it",)


def test_another_key_does_not_trust_it(steady: tuple[Path, Place], tmp_path: Path) -> None:
    make_keys(str(tmp_path / "other"))
    found = verify_release(str(steady[0]), read_public(str(tmp_path / "other.pub")))
    assert not found.trusted and any("not by" in fault for fault in found.faults)
    assert any(WEIGHTS_SIGNATURE in fault for fault in found.faults)


def reseal(bundle: Path, key: Any, change: Callable[[dict[str, Any]], None]) -> None:
    """Seal the statement anew, with the digests of the files as they are now."""
    payload = json.loads(json.dumps(unseal((bundle / STATEMENT_FILE).read_bytes(), where="s").payload))
    names = hash_files(str(bundle))
    payload["subject"] = [{"name": n, "digest": {"sha256": s}} for n, s in sorted(names.items()) if n != STATEMENT_FILE]
    change(payload)
    (bundle / STATEMENT_FILE).write_bytes(seal(payload, key))


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("claim", lambda p: p["claim"].update(words="certified")),
        ("verdict", lambda p: p["verdict"].update(outcome="passed, really")),
        ("weights", lambda p: p["weights"].update(sha256="0" * 64)),
        ("run", lambda p: p["run"].update(requests=9)),
        ("certificate", lambda p: p.update(certificate={"granted": True})),
        ("receipts", lambda p: p["receipts"].pop()),
    ],
)
def test_a_statement_that_says_more_than_the_report_is_found_although_it_is_signed(
    shop: Place, bundle: Path, field: str, change: Callable[[dict[str, Any]], None]
) -> None:
    reseal(bundle, shop.key, lambda payload: change(payload["predicate"]))
    (fault,) = verify_release(str(bundle), shop.key.public).faults
    assert f"{STATEMENT_FILE}: its {field} is not what report and receipts say" in fault


def test_resealed_receipts_do_not_fit_each_other(shop: Place, bundle: Path) -> None:
    file = bundle / "receipts" / "forget.json"
    receipt = json.loads(file.read_text())["receipt"]
    receipt["outputs"][0]["sha256"] = "0" * 64
    file.write_bytes(canonical({"receipt": receipt, "sha256": digest(receipt)}))
    reseal(bundle, shop.key, lambda payload: None)
    faults = verify_release(str(bundle), shop.key.public).faults
    assert "stage retain: was made from other outputs of stage forget" in faults


def test_other_weights_under_a_new_seal_are_not_what_the_run_wrote(shop: Place, bundle: Path) -> None:
    (bundle / "model.safetensors").write_bytes(b"other")
    reseal(bundle, shop.key, lambda payload: None)
    faults = verify_release(str(bundle), shop.key.public).faults
    assert any("model.safetensors: not what stage release wrote" in fault for fault in faults)
    assert any(f"{WEIGHTS_SIGNATURE}: model.safetensors: changed" in fault for fault in faults), faults


@pytest.mark.parametrize("payload", [b"[]", b"{}", b'{"subject":[{}]}', b'{"predicate":7,"subject":7}'])
def test_a_signed_envelope_around_something_else_is_named(shop: Place, bundle: Path, payload: bytes) -> None:
    (bundle / STATEMENT_FILE).write_bytes(seal(json.loads(payload), shop.key))
    assert any(STATEMENT_FILE in fault for fault in verify_release(str(bundle), shop.key.public).faults)


def test_what_is_a_release_and_what_is_not(bundle: Path, usual: Path, tmp_path: Path) -> None:
    assert is_release(str(bundle)) and not is_release(str(usual)) and not is_release(str(tmp_path))
    (bundle / STATEMENT_FILE).unlink()
    assert is_release(str(bundle))
    assert "a release without its statement is none" in verify_release(str(bundle)).faults[0]


def test_a_copy_verifies_offline_in_another_process_without_torch(bundle: Path, shop: Place, tmp_path: Path) -> None:
    """Nothing but the copy and the public key is there; no socket can be opened."""
    alone = tmp_path / "another machine"
    shutil.move(str(bundle), str(alone))
    shutil.move(f"{shop.base}/signer.pub", str(tmp_path / "signer.pub"))
    shutil.rmtree(shop.base)
    program = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise OSError('offline')\n"
        "socket.socket.connect = socket.create_connection = refuse\n"
        "from launch.cli import app\n"
        "try:\n    app(sys.argv[1:], standalone_mode=True)\n"
        "finally:\n    assert 'torch' not in sys.modules\n"
    )
    words = ["verify", str(alone), "--key", str(tmp_path / "signer.pub")]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"signed by {shop.key.key_id}: trusted" in done.stdout and "signature of the weights: fits" in done.stdout


def test_the_secret_tells_who_was_forgotten_and_nobody_can_once_it_is_destroyed(bundle: Path, shop: Place) -> None:
    secret = read_secret(f"{shop.base}/digests.key")
    assert all(answer_about_key(str(bundle), secret, key) for key in FORGOTTEN)
    assert not answer_about_key(str(bundle), secret, "s0/img0")
    destroy_secret(f"{shop.base}/digests.key")
    with pytest.raises(ConfigError, match="no such file"):
        read_secret(f"{shop.base}/digests.key")
    new_secret(f"{shop.base}/digests.key")
    for key in (*FORGOTTEN, "s0/img0"):  # the forgotten and the kept get the same answer: none
        with pytest.raises(ConfigError, match="another secret") as caught:
            answer_about_key(str(bundle), read_secret(f"{shop.base}/digests.key"), key)
        assert key not in str(caught.value)


def test_what_is_published_answers_no_guess_without_the_secret(bundle: Path) -> None:
    """Neither the keys nor their plain hashes, nor the sums of hashes that a run counts its keys by, are in any file."""
    from pipeline.data.rows import KeysDigest, key_hash

    guesses = [*FORGOTTEN, "s0/img0"]
    sums = [KeysDigest(), *(KeysDigest() for _ in guesses)]
    for number, key in enumerate(guesses, start=1):
        sums[number].add(key)
        if key in FORGOTTEN:
            sums[0].add(key)
    words = [*guesses, *(item.hex() for item in sums), *(f"{key_hash(key):x}" for key in guesses)]
    for path in bundle.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            content += base64.b64decode(json.loads(content)["payload"]) if path.name == STATEMENT_FILE else b""
            assert not [word for word in words if word.encode() in content], path


def test_a_release_without_keyed_digests_says_so(room: Place, usual: Path) -> None:
    made = room.send(usual, secret=None)
    with pytest.raises(ConfigError, match="has no keyed digests"):
        answer_about_key(made.release.folder, room.secret, "s0/img0")


def test_without_the_library_the_weights_signature_is_said_to_be_unchecked(
    steady: tuple[Path, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    found = verify_release(str(steady[0]), steady[1].key.public)
    assert found.faults == () and found.trusted and found.weights_signature.startswith("not checked: ")


def test_a_history_that_was_rewritten_is_found_by_a_release(room: Place, usual: Path) -> None:
    """Whoever makes a ledger anew, all hashes right, cannot make the entry that a release was signed with."""
    with open_ledger(f"sqlite:///{room.base}/true.sqlite") as ledger:
        folder = room.send(usual, ledger).release.folder
        assert ledger_fault(folder, ledger) == ""
    with open_ledger(f"sqlite:///{room.base}/false.sqlite", actor="someone else") as other:
        assert "entry 1 of its history is not what it was" in ledger_fault(folder, other)
    with open_ledger(f"sqlite:///{room.base}/true.sqlite") as ledger, pytest.raises(ConfigError, match="without a ledger"):
        ledger_fault(room.send(usual, to=f"{room.to}-2").release.folder, ledger)


def test_a_key_that_was_encrypted_signs_the_same_way(usual: Path, tmp_path: Path) -> None:
    make_keys(str(tmp_path / "k"), passphrase="planted passphrase")
    made = Place(base=tmp_path, key=read_private(str(tmp_path / "k.key"), passphrase="planted passphrase"), secret=b"s" * 32)
    folder = Path(made.send(usual).release.folder)
    assert verify_release(str(folder), made.key.public).faults == ()
    assert not [path for path in folder.rglob("*") if path.is_file() and b"planted passphrase" in path.read_bytes()]

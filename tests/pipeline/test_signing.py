"""Keys are made once and read by their owner; an envelope opens as it was sealed, or names what is wrong with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, IntegrityError
from pipeline.signing import SigningKey, make_keys, read_private, read_public, seal, sign_folder, unseal, verify_folder

PASSPHRASE = "correct horse battery staple"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pair of keys, by its path without an ending."""
    path = str(tmp_path_factory.mktemp("keys") / "release")
    make_keys(path)
    return path


@pytest.fixture(scope="module")
def key(name: str) -> SigningKey:
    return read_private(f"{name}.key")


def test_a_pair_of_keys_is_its_owners_alone_and_has_one_id(name: str, key: SigningKey) -> None:
    assert os.stat(f"{name}.key").st_mode & 0o777 == 0o600
    assert read_public(f"{name}.pub").keyid == key.key_id
    assert len(key.key_id) == 64


@pytest.mark.parametrize("ending", ["key", "pub"])
def test_no_key_is_overwritten(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"release.{ending}"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="no key is overwritten"):
        make_keys(str(tmp_path / "release"))
    assert [path.name for path in tmp_path.iterdir()] == [file.name] and file.read_text() == "mine"


def test_a_passphrase_guards_the_private_key(tmp_path: Path) -> None:
    made = make_keys(str(tmp_path / "k"), passphrase=PASSPHRASE)
    file = str(tmp_path / "k.key")
    assert b"ENCRYPTED" in (tmp_path / "k.key").read_bytes()
    assert read_private(file, passphrase=PASSPHRASE).key_id == made
    for given_one in ("", "wrong " + PASSPHRASE):
        with pytest.raises(ConfigError) as caught:
            read_private(file, passphrase=given_one)
        assert PASSPHRASE not in str(caught.value) and caught.value.__cause__ is None
    assert PASSPHRASE not in repr(read_private(file, passphrase=PASSPHRASE))


def test_a_passphrase_for_a_key_without_one_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match="is not encrypted"):
        read_private(f"{name}.key", passphrase=PASSPHRASE)


def test_a_private_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    make_keys(str(tmp_path / "k"))
    (tmp_path / "k.key").chmod(0o640)
    with pytest.raises(ConfigError, match="others may read"):
        read_private(str(tmp_path / "k.key"))


@pytest.mark.parametrize("other", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())])
def test_keys_of_another_kind_are_refused(tmp_path: Path, other: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> None:
    pem, spki = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    secret = other.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "k.key").touch(0o600)
    (tmp_path / "k.key").write_bytes(secret)
    (tmp_path / "k.pub").write_bytes(other.public_key().public_bytes(pem, spki))
    with pytest.raises(ConfigError, match="not a key on the curve"):
        read_private(str(tmp_path / "k.key"))
    with pytest.raises(ConfigError, match="not a public key on the curve"):
        read_public(str(tmp_path / "k.pub"))


@pytest.mark.parametrize("read", [read_private, read_public])
def test_a_file_that_is_missing_or_no_key_is_named(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(ConfigError, match=r"gone\.pem: No such file"):
        read(str(tmp_path / "gone.pem"))
    (tmp_path / "k.pem").touch(0o600)
    with pytest.raises(ConfigError, match=r"k\.pem"):
        read(str(tmp_path / "k.pem"))


@settings(max_examples=40, deadline=None)
@given(payload=st.dictionaries(TEXT, JSON, max_size=4))
def test_what_was_sealed_opens_for_its_key_alone(key: SigningKey, payload: dict[str, object]) -> None:
    opened = unseal(seal(payload, key), where="s", key=key.public)
    assert opened.payload == payload and opened.trusted and opened.key_ids == (key.key_id,)


def test_without_a_key_nothing_is_trusted(key: SigningKey) -> None:
    opened = unseal(seal({"a": 1}, key), where="s")
    assert not opened.trusted and opened.key_ids == (key.key_id,)


def test_another_key_is_named(key: SigningKey, tmp_path: Path) -> None:
    other = make_keys(str(tmp_path / "other"))
    with pytest.raises(IntegrityError, match=f"signed by {key.key_id}, not by {other}"):
        unseal(seal({"a": 1}, key), where="s", key=read_public(str(tmp_path / "other.pub")))


@settings(max_examples=200, deadline=None)
@given(offset=st.integers(0, 10**6), flipped=st.integers(1, 255))
def test_no_byte_of_an_envelope_changes_unseen(key: SigningKey, offset: int, flipped: int) -> None:
    content = bytearray(seal({"subject": [{"name": "a", "digest": {"sha256": "00"}}], "n": 1.5}, key))
    content[offset % len(content)] ^= flipped  # signatures differ in length
    with pytest.raises(IntegrityError, match="s: "):
        unseal(bytes(content), where="s", key=key.public)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b'{"payload":1,"payloadType":"x","signatures":[]}', b"\xff"])
def test_what_is_no_envelope_is_named(content: bytes) -> None:
    with pytest.raises(IntegrityError, match="not a signed envelope"):
        unseal(content, where="s")


@pytest.fixture
def weights(tmp_path: Path, key: SigningKey) -> Path:
    """A signed folder with a file that is not signed."""
    folder = tmp_path / "a model"
    (folder / "pretrained").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"w" * 100)
    (folder / "pretrained" / "config.json").write_text("{}")
    sign_folder(str(folder), str(folder / "model.sig"), key, leave_out=["model.sig", "statement.dsse.json"])
    (folder / "statement.dsse.json").write_text("{}")
    return folder


def test_a_folder_is_signed_so_that_the_public_tool_agrees(weights: Path, name: str) -> None:
    assert verify_folder(str(weights), str(weights / "model.sig"), read_public(f"{name}.pub")) == ""
    words = ["verify", "key", str(weights), "--signature", str(weights / "model.sig"), "--public_key", f"{name}.pub"]
    done = subprocess.run([sys.executable, "-m", "model_signing", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(weights.parent) not in json.dumps(json.loads((weights / "model.sig").read_text()))


def test_a_changed_file_and_another_key_are_named(weights: Path, name: str, tmp_path: Path) -> None:
    make_keys(str(tmp_path / "other"))
    assert "does not match" in verify_folder(str(weights), str(weights / "model.sig"), read_public(str(tmp_path / "other.pub")))
    (weights / "pretrained" / "config.json").write_text("[]")
    assert (
        verify_folder(str(weights), str(weights / "model.sig"), read_public(f"{name}.pub")) == "pretrained/config.json: changed"
    )
    (weights / "model.sig").write_text("no signature")
    assert verify_folder(str(weights), str(weights / "model.sig"), read_public(f"{name}.pub"))


def test_an_encrypted_key_signs_folders_too(tmp_path: Path) -> None:
    make_keys(str(tmp_path / "k"), passphrase=PASSPHRASE)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w").write_bytes(b"w")
    sign_folder(str(tmp_path / "m"), str(tmp_path / "sig"), read_private(str(tmp_path / "k.key"), passphrase=PASSPHRASE))
    assert verify_folder(str(tmp_path / "m"), str(tmp_path / "sig"), read_public(str(tmp_path / "k.pub"))) == ""


def test_a_missing_library_is_named(tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(ConfigError, match="model_signing") as caught:
        sign_folder(str(tmp_path), str(tmp_path / "sig"), key)
    assert "i2i-unlearn[sign]" in caught.value.cure
    with pytest.raises(ConfigError, match="not checked"):
        verify_folder(str(tmp_path), str(tmp_path / "sig"), key.public)

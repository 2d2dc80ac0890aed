"""Secrets and passphrases: read from files that are their owner's alone, made once, destroyed for good."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.keys import PASSPHRASE, destroy_secret, new_secret, passphrase, read_secret
from pipeline.errors import ConfigError
from pipeline.ledger.pseudonyms import key_id


def test_a_passphrase_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "p"
    file.touch(0o600)
    file.write_text("a b\n")
    assert passphrase("") == ""
    monkeypatch.setenv(PASSPHRASE, "other")
    assert passphrase(str(file)) == "a b" and passphrase("") == "other"
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read it") as caught:
        passphrase(str(file))
    assert "a b" not in str(caught.value)
    file.write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        passphrase(str(file))
    with pytest.raises(ConfigError, match="No such file"):
        passphrase(str(tmp_path / "gone"))


def test_a_secret_is_made_once_and_read_by_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "s"
    made = new_secret(str(file))
    assert file.stat().st_mode & 0o777 == 0o600 and key_id(read_secret(str(file))) == made
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="no secret is overwritten"):
        new_secret(str(file))
    assert file.read_bytes() == before
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read"):
        read_secret(str(file))


def test_a_destroyed_secret_is_overwritten_before_it_goes(tmp_path: Path) -> None:
    file = tmp_path / "s"
    made = new_secret(str(file))
    before = file.read_bytes()
    with file.open("rb") as held:  # the bytes on the disk, whatever becomes of the name
        assert destroy_secret(str(file)) == made
        after = held.read()
    assert not file.exists() and before.strip() not in after and len(after) >= len(before)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_secret_with_several_names_is_not_half_destroyed(tmp_path: Path, link: object) -> None:
    file, other = tmp_path / "s", tmp_path / "other"
    new_secret(str(file))
    assert callable(link)
    link(file, other)
    with pytest.raises(ConfigError, match="several names"):
        destroy_secret(str(other))
    assert len(read_secret(str(file))) == 32


def test_what_is_no_secret_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("important")
    with pytest.raises(ConfigError, match="not a pseudonym key"):
        destroy_secret(str(file))
    assert file.read_text() == "important"

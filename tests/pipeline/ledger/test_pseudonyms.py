"""A key is made once and for its owner alone; digests tell nothing without it."""

from __future__ import annotations

import hashlib
import hmac
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, StorageError
from pipeline.ledger.pseudonyms import key_id, keyed_digest, make_key, pseudonym, read_key

KEY = bytes(range(32))


def test_the_pseudonym_is_what_the_standard_library_says() -> None:
    expected = hmac.new(KEY, b"subject\0Ann \xc3\x96", hashlib.sha256).hexdigest()
    assert pseudonym(KEY, "Ann Ö") == "s-" + expected[:32]
    assert pseudonym(KEY, "") == ""
    assert keyed_digest(KEY, "key", "a") == hmac.new(KEY, b"key\0a", hashlib.sha256).hexdigest()
    assert len(key_id(KEY)) == 16 and key_id(KEY) != key_id(bytes(32))


def test_all_who_make_a_key_at_once_get_the_same(tmp_path: Path) -> None:
    path = tmp_path / "own.key"
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(make_key, [str(path)] * 16))
    assert len(found) == 1 and read_key(str(path)) in found
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and [item.name for item in tmp_path.iterdir()] == ["own.key"]


def test_what_is_no_key_is_refused_without_its_text(tmp_path: Path) -> None:
    path = tmp_path / "own.key"
    for text in ("", "abc", "zz" * 32, "00" * 31):
        path.write_text(text)
        with pytest.raises(ConfigError, match="not a pseudonym key"):
            read_key(str(path))
    with pytest.raises(ConfigError, match="no such file"):
        read_key(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="Is a directory"):
        read_key(str(tmp_path))
    with pytest.raises(StorageError, match="No such file"):
        make_key(str(tmp_path / "nowhere" / "own.key"))

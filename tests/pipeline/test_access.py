"""One message for each way in which a store does not let us in. S3's own answers: test_object_stores.py."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import fsspec
import pytest

from pipeline import access
from pipeline.access import check_access
from pipeline.errors import ConfigError, StorageError


def test_a_folder_is_writable_where_it_or_the_one_above_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_access(str(tmp_path / "a" / "b"), write=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file: not a folder"):
        check_access(str(tmp_path / "file" / "below"), write=True)
    monkeypatch.setattr(access.os, "access", lambda path, mode: False)
    with pytest.raises(StorageError, match="no permission to write"):
        check_access(str(tmp_path / "a"), write=True)
    check_access(str(tmp_path / "a"), write=False)


def test_nothing_is_written_over_http() -> None:
    check_access("https://host.invalid/x", write=False)
    with pytest.raises(ConfigError, match="nothing can be written"):
        check_access("https://host.invalid/x", write=True)


def test_a_store_that_is_not_there_is_named_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        monkeypatch.setattr(access, "PATIENCE_SECONDS", 1.0)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        began = time.monotonic()
        with pytest.raises(StorageError, match="s3://bucket/x: the store cannot be reached") as caught:
            check_access("s3://bucket/x", write=True)
        assert time.monotonic() - began < 10
        assert "planted-secret" not in str(caught.value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (PermissionError("The AWS Access Key Id you provided does not exist in our records."), "does not know this access key"),
        (PermissionError("The request signature we calculated does not match"), "secret key is wrong"),
        (PermissionError("Access Denied"), "may not read bucket 'bucket'"),
        (FileNotFoundError("The specified bucket does not exist"), "there is no bucket 'bucket'"),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"), "no credentials were found"),
        (type("HttpError", (Exception,), {})("Forbidden, 403"), "may not read bucket 'bucket'"),
        (OSError(22, "odd"), "odd"),
    ],
)
def test_each_refusal_has_its_message(fault: Exception, message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught, access._said_so("s3://bucket/x", "bucket", "read"):
        raise fault
    assert caught.value.cure and str(caught.value).count("\n") == 1

"""Versions, retention locks and unfinished uploads of stored objects: what must go, besides the object, before it is gone.

On S3 a removed object may live on as an older version, and parts of an upload that was never finished lie there unseen.
Local files have one version. Of other stores only the current object is known here, and `knows_versions` says so.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from pipeline.addresses import filesystem, is_local, is_s3
from pipeline.errors import StorageError
from pipeline.records import record

__all__ = ["Version", "abort_uploads", "knows_versions", "locked_until", "other_name", "remove", "versions"]

NO_LOCK = ("ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration", "NotImplemented", "MethodNotAllowed")
FOREVER = "9999-12-31 (legal hold)"


@record
class Version:
    """One version of an object. `version` is empty where the store has only one; a marker is S3's sign of a removal;
    the latest is what a reader gets who names no version."""

    uri: str
    version: str
    bytes: int
    marker: bool = False
    latest: bool = True


def knows_versions(uri: str) -> bool:
    """Whether older versions of this store's objects can be listed here."""
    return is_local(uri) or is_s3(uri)


def other_name(uri: str) -> str:
    """How a local file's bytes can be reached besides this address, so that removing it would not remove them; or nothing."""
    if not is_local(uri):
        return ""
    path = filesystem(uri)[1]
    if os.path.islink(path):
        return f"a symbolic link to {os.path.realpath(path)}"
    with contextlib.suppress(FileNotFoundError):
        if (names := os.stat(path).st_nlink) > 1:
            return f"one of {names} hard links to the same bytes"
    return ""


@contextlib.contextmanager
def _named(uri: str, act: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise StorageError(f"{uri}: {act}: not found", "correct the address") from None
    except PermissionError as fault:
        cure = "grant s3:ListBucketVersions, s3:GetObjectRetention, s3:DeleteObjectVersion and s3:AbortMultipartUpload"
        raise StorageError(f"{uri}: {act}: permission denied ({fault})", cure) from None
    except OSError as fault:
        raise StorageError(f"{uri}: {act}: {fault}", "correct the storage, then run the same command again") from None


def _pages(fs: Any, call: str, wanted: str, **arguments: Any) -> Iterator[dict[str, Any]]:
    """All pages of one of S3's two version and upload listings."""
    marks: dict[str, Any] = {}
    while True:
        page = fs.call_s3(call, **arguments, **marks)
        yield page
        if not page.get("IsTruncated"):
            return
        marks = {"KeyMarker": page["NextKeyMarker"], f"{wanted}Marker": page[f"Next{wanted}Marker"]}


def versions(uri: str) -> tuple[Version, ...]:
    """All versions of one object, delete markers included; none where nothing lies there.

    Raises:
        StorageError: not allowed, or not reachable.
    """
    fs, path = filesystem(uri)
    with _named(uri, "list versions"):
        if not is_s3(uri):
            if is_local(uri):
                return (Version(uri=uri, version="", bytes=os.stat(path).st_size),) if os.path.lexists(path) else ()
            fs.invalidate_cache()
            return (Version(uri=uri, version="", bytes=int(fs.info(path)["size"])),) if fs.exists(path) else ()
        bucket, key, _ = fs.split_path(path)
        found = []
        for page in _pages(fs, "list_object_versions", "VersionId", Bucket=bucket, Prefix=key):
            for entry in page.get("Versions") or ():
                found.append((entry, False))
            for entry in page.get("DeleteMarkers") or ():
                found.append((entry, True))
        return tuple(
            Version(
                uri=uri,
                version=entry["VersionId"],
                bytes=int(entry.get("Size", 0)),
                marker=marker,
                latest=bool(entry.get("IsLatest")),
            )
            for entry, marker in found
            if entry["Key"] == key
        )


def locked_until(version: Version) -> str:
    """The date before which the store refuses to remove a version; empty where it does not."""
    if not is_s3(version.uri) or version.marker:
        return ""
    fs, path = filesystem(version.uri)
    bucket, key, _ = fs.split_path(path)
    where = {"Bucket": bucket, "Key": key, **({"VersionId": version.version} if version.version != "null" else {})}
    with _named(version.uri, "look for retention locks"):
        if not _has_locks(fs, bucket):
            return ""
        if _ask(fs, "get_object_legal_hold", where).get("LegalHold", {}).get("Status") == "ON":
            return FOREVER
        until = _ask(fs, "get_object_retention", where).get("Retention", {}).get("RetainUntilDate")
        return str(until) if until and until.timestamp() > time.time() else ""


def _ask(fs: Any, call: str, where: dict[str, Any]) -> dict[str, Any]:
    """An answer, or nothing where the object has no such setting."""
    try:
        answer: dict[str, Any] = fs.call_s3(call, **where)
    except OSError as fault:
        if isinstance(fault, PermissionError):
            raise
        cause: Any = fault.__cause__
        code = getattr(cause, "response", {}).get("Error", {}).get("Code", "")
        if code.startswith("NoSuchObjectLock") or code in NO_LOCK or "NoSuchObjectLock" in str(fault):
            return {}
        raise
    return answer


def _has_locks(fs: Any, bucket: str) -> bool:
    answer = _ask(fs, "get_object_lock_configuration", {"Bucket": bucket})
    return bool(answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")


def remove(version: Version) -> None:
    """Remove one version for good; nothing happens where it is gone already.

    Raises:
        StorageError: not allowed, or not reachable.
    """
    fs, path = filesystem(version.uri)
    with _named(version.uri, "remove"):
        if is_s3(version.uri):
            bucket, key, _ = fs.split_path(path)
            fs.call_s3("delete_object", Bucket=bucket, Key=key, VersionId=version.version)
            fs.invalidate_cache()
        elif is_local(version.uri):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        else:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(path)
            fs.invalidate_cache()


def abort_uploads(uri: str) -> int:
    """Abort unfinished uploads to an object; returns how many there were."""
    if not is_s3(uri):
        return 0
    fs, path = filesystem(uri)
    bucket, key, _ = fs.split_path(path)
    count = 0
    with _named(uri, "abort unfinished uploads"):
        for page in _pages(fs, "list_multipart_uploads", "UploadId", Bucket=bucket, Prefix=key):
            for entry in page.get("Uploads") or ():
                if entry["Key"] == key:
                    fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=entry["UploadId"])
                    count += 1
    return count

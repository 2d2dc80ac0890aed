"""Whether a store lets us in: asked once, at the start of a job, with one message for each way in which it does not.

Nothing is left behind: on S3 the permission to write is proved by an upload that is begun and aborted, which makes no
object and no version, also where objects are locked; elsewhere by an empty file that is removed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from pipeline.addresses import filesystem, is_local, is_s3
from pipeline.errors import ConfigError, StorageError
from pipeline.remote import ask, call_s3
from pipeline.retry import ABSENT_CREDENTIALS

__all__ = ["check_access"]

PATIENCE_SECONDS = 15.0
PROBE = ".unlearn-access"
KEY = "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile that AWS_PROFILE names"
# What stores say of credentials, in the texts of their errors, and what it means.
REASONS = (
    (("InvalidAccessKeyId", "does not exist in our records"), "the store does not know this access key", KEY),
    (("SignatureDoesNotMatch", "signature we calculated"), "the secret key is wrong", KEY),
    (("ExpiredToken", "token has expired", "TokenRefreshRequired"), "the credentials have expired", "renew them"),
    (("RequestTimeTooSkewed",), "this machine's clock differs from the store's", "set the clock"),
    (
        ("AuthenticationFailed", "failed to authenticate", "Invalid Credentials", "invalid_grant"),
        "the credentials are wrong",
        "correct the credentials",
    ),
)
REFUSALS = ("403", "401", "Forbidden", "AuthorizationFailure")
NO_CREDENTIALS = (*ABSENT_CREDENTIALS, "Unable to locate credentials")


def check_access(uri: str, *, write: bool) -> None:
    """Return if files below `uri` can be listed and read, and written when `write`.

    Raises:
        StorageError: wrong credentials, no such bucket, no permission, or a store that cannot be reached.
        ConfigError: a store that cannot be written to at all.
    """
    if is_local(uri):
        if write:
            _check_folder(filesystem(uri)[1])
        return
    fs, path = filesystem(uri)
    if uri.startswith(("http://", "https://")):
        if write:
            raise ConfigError(f"{uri}: nothing can be written over HTTP", "name a bucket or a folder")
        return
    if not fs.async_impl:
        return
    bucket, soon = path.split("/", 1)[0], {"deadline_seconds": PATIENCE_SECONDS}
    with _said_so(uri, bucket, "read"):
        if is_s3(uri):
            call_s3(uri, "list_objects_v2", Prefix=fs.split_path(path)[1], MaxKeys=1, **soon)
        else:
            _list(uri, bucket, soon)
    if not write:
        return
    with _said_so(uri, bucket, "write to"):
        if is_s3(uri):
            key = f"{fs.split_path(path)[1]}/{PROBE}".lstrip("/")
            upload = call_s3(uri, "create_multipart_upload", Key=key, **soon)["UploadId"]
            call_s3(uri, "abort_multipart_upload", Key=key, UploadId=upload, **soon)
        else:
            probe = f"{uri}/{PROBE}"
            ask(probe, "pipe_file", b"", **soon)
            ask(probe, "rm_file", **soon)


def _check_folder(path: str) -> None:
    """The folder, or the nearest one above it that is there, lets us write."""
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        raise StorageError(f"{path}: not a folder", "choose another output folder")
    if not os.access(path, os.W_OK | os.X_OK):
        raise StorageError(f"{path}: no permission to write", "correct the permissions, or choose another output folder")


def _list(uri: str, bucket: str, soon: dict[str, float]) -> None:
    """List the folder; where there is none, the bucket must be there."""
    with contextlib.suppress(FileNotFoundError):
        ask(uri, "ls", **soon)
        return
    ask(f"{uri.split('://', 1)[0]}://{bucket}", "ls", **soon)


@contextlib.contextmanager
def _said_so(uri: str, bucket: str, act: str) -> Iterator[None]:
    """One message for each way in which a store refuses."""
    try:
        yield
    except FileNotFoundError:
        raise StorageError(f"{uri}: there is no bucket '{bucket}'", "create it, or correct the address") from None
    except StorageError as fault:
        message = f"{uri}: the store cannot be reached ({' '.join(str(fault.__cause__).split())})"
        raise StorageError(message, "correct the endpoint (for S3 AWS_ENDPOINT_URL), or look at the network") from None
    except Exception as fault:
        answer = getattr(fault.__cause__, "response", None)  # of S3's client; those of other stores are no dictionaries
        code = answer.get("Error", {}).get("Code", "") if isinstance(answer, dict) else ""
        text = f"{type(fault).__name__} {fault} {code}"
        if any(mark in text for mark in NO_CREDENTIALS):
            raise StorageError(
                f"{uri}: no credentials were found", KEY if is_s3(uri) else "set the store's credentials"
            ) from None
        for marks, reason, cure in REASONS:
            if any(mark in text for mark in marks):
                raise StorageError(f"{uri}: {reason}", cure) from None
        if isinstance(fault, PermissionError) or any(
            mark in text for mark in ("403", "401", "Forbidden", "AuthorizationFailure")
        ):
            cure = "grant it to these credentials, or use others"
            raise StorageError(f"{uri}: these credentials may not {act} bucket '{bucket}'", cure) from None
        raise StorageError(f"{uri}: {' '.join(text.split())}", "correct the address or the store") from None

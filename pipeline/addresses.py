"""Addresses of files: which schemes are opened, how parts are joined, and the fsspec file system behind one.

Only plain storage schemes are opened; command URLs (`pipe:`) and chained URLs (`a::b`) are refused everywhere. Local
paths stay plain paths.
"""

from __future__ import annotations

import os
import posixpath
from typing import Any

import fsspec

from pipeline.errors import ConfigError

__all__ = ["absolute", "filesystem", "is_local", "is_s3", "join", "relative"]

SCHEMES = ("file", "local", "memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https")
CONNECT_SECONDS = 10
CONNECTIONS = 64
"""To one store; more requests than that are never under way."""


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the path in it.

    Listings are never cached: another host may have written since. Retries are ours (`pipeline.retry`), not botocore's.

    Raises:
        ConfigError: a scheme that is not plain storage, or whose driver is not installed.
    """
    scheme = uri.split(":", 1)[0].lower() if "://" in uri else "file"
    if uri.startswith("pipe:") or "::" in uri or scheme not in SCHEMES:
        raise ConfigError(f"{uri.split('?')[0]!r}: not a plain storage address", f"use one of: {', '.join(SCHEMES)}")
    options: dict[str, Any] = {} if scheme in ("file", "local", "memory") else {"use_listings_cache": False}
    if scheme in ("s3", "s3a"):
        ours = {
            "connect_timeout": CONNECT_SECONDS,
            "max_pool_connections": CONNECTIONS,
            "retries": {"total_max_attempts": 1},
            "signature_version": "s3v4",
        }
        options["config_kwargs"] = {**ours, **fsspec.config.conf.get("s3", {}).get("config_kwargs", {})}
    try:
        return fsspec.core.url_to_fs(uri, **options)
    except ImportError as fault:
        extra = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}.get(scheme, scheme)
        raise ConfigError(f"{scheme}://: {fault}", f"pip install 'i2i-unlearn[{extra}]'") from None


def is_local(uri: str) -> bool:
    """Whether the URI is a path on this machine."""
    return "://" not in uri or uri.startswith(("file://", "local://"))


def is_s3(uri: str) -> bool:
    """Whether the URI is an object behind S3's interface."""
    return uri.startswith(("s3://", "s3a://"))


def absolute(uri: str) -> str:
    """A local path made absolute and free of `file://`; other URIs unchanged, without a trailing slash."""
    if not is_local(uri):
        filesystem(uri)
        return uri.rstrip("/")
    return os.path.abspath(filesystem(uri)[1])


def join(base: str, *parts: str) -> str:
    """`base` and a relative path; an absolute path or URI as last part stands alone. `..` is resolved."""
    path = posixpath.join(*parts)
    if "://" in path or path.startswith("/"):
        return path
    scheme, mark, rest = base.partition("://") if "://" in base else ("", "", base)
    return f"{scheme}{mark}{posixpath.normpath(posixpath.join(rest, path))}"


def relative(uri: str, base: str, root: str) -> str:
    """`uri` relative to `base` when it lies below `root`, else unchanged: a copied output folder stays whole."""
    return posixpath.relpath(uri, base) if uri.startswith(root.rstrip("/") + "/") else uri

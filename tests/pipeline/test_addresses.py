"""Which addresses are opened, and how they are put together."""

from __future__ import annotations

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.addresses import absolute, filesystem, is_local, is_s3, join, relative
from pipeline.errors import ConfigError

NAMES = st.text("abc.-_", min_size=1, max_size=6).filter(lambda name: set(name) != {"."})
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize("uri", ["pipe:cat /etc/passwd", "pipe://x", "simplecache::s3://b/k", "ftp://host/x", "github://a/b"])
def test_only_plain_storage_is_opened(uri: str) -> None:
    with pytest.raises(ConfigError, match="plain storage"):
        filesystem(uri)


def test_s3_listings_are_not_cached_and_the_users_own_settings_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"connect_timeout": 3}})
    fs, path = filesystem("s3://bucket/a/b.tar")
    assert path == "bucket/a/b.tar" and fs.dircache.use_listings_cache is False
    assert fs.config_kwargs["connect_timeout"] == 3 and fs.config_kwargs["retries"] == {"total_max_attempts": 1}


def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(uri: str, **options: object) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigError, match="gcsfs") as caught:
        filesystem("gcs://bucket/x")
    assert caught.value.cure == "pip install 'i2i-unlearn[gs]'"


@given(base=st.sampled_from(["/out", "s3://bucket", "memory://store"]), root=PATHS, path=PATHS)
def test_relative_undoes_join(base: str, root: str, path: str) -> None:
    folder = join(base, root)
    assert relative(join(folder, path), base=folder, root=folder) == path
    assert join(join(folder, "sub"), relative(join(folder, path), base=join(folder, "sub"), root=folder)) == join(folder, path)


def test_paths_join_and_relate() -> None:
    assert join("/out/run", "../sources/a.tar") == "/out/sources/a.tar"
    assert join("s3://b/out/run", "../sources/a.tar") == "s3://b/out/sources/a.tar"
    assert join("/out", "s3://b/x") == "s3://b/x"
    assert relative("/out/sources/a.tar", base="/out/run", root="/out") == "../sources/a.tar"
    assert relative("/else/a.tar", base="/out/run", root="/out") == "/else/a.tar"
    assert absolute("file:///a/b") == "/a/b"
    assert absolute("memory://x/") == "memory://x"


def test_what_is_where() -> None:
    assert [is_local(uri) for uri in ("a/b", "/a", "file:///a", "s3://b/k", "memory://x")] == [True, True, True, False, False]
    assert [is_s3(uri) for uri in ("s3://b/k", "s3a://b/k", "gs://b/k", "/s3")] == [True, True, False, False]

"""Servers that the services tests share: started once, and only when a test asks for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import ceph
from tests.support.stores import S3Store


@pytest.fixture(scope="session")
def rgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Store]:
    """The S3 gateway of a private Ceph."""
    if missing := ceph.missing_programs():
        pytest.skip(missing)
    with ceph.running(tmp_path_factory.mktemp("ceph")) as found:
        yield found

"""Between a client and Ceph's gateway stands a proxy that does what networks and busy stores do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fault_laws import Behind, EveryFaultLaws, behind_proxy
from tests.support.stores import S3Store

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def store(rgw: S3Store) -> S3Store:
    return rgw


@pytest.fixture(scope="module")
def behind(store: S3Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    with behind_proxy(store, tmp_path_factory.mktemp("faults")) as found:
        yield found


class TestCephBehindFaults(EveryFaultLaws):
    """See `tests.support.fault_laws`."""

"""The laws of S3 on moto's server, over real HTTP and with real authentication; on Ceph: tests/services/test_ceph.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fault_laws import Behind, FaultLaws, behind_proxy
from tests.support.s3_erasure import ErasureLaws
from tests.support.s3_laws import S3Laws
from tests.support.stores import S3Store, moto


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Store]:
    with moto(tmp_path_factory.mktemp("moto")) as found:
        yield found


@pytest.fixture(scope="module")
def behind(store: S3Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    with behind_proxy(store, tmp_path_factory.mktemp("faults")) as found:
        yield found


class TestMoto(S3Laws):
    """See `tests.support.s3_laws`."""


class TestMotoErases(ErasureLaws):
    """See `tests.support.s3_erasure`."""


class TestMotoBehindFaults(FaultLaws):
    """See `tests.support.fault_laws`; each fault alone: tests/services/test_faulty_store.py."""

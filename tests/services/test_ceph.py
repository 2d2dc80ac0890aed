"""The laws of S3 on a live Ceph RGW with real users; the same on moto: tests/pipeline/test_object_stores.py."""

from __future__ import annotations

import pytest

from tests.support.s3_erasure import ErasureLaws
from tests.support.s3_laws import S3Laws
from tests.support.stores import S3Store

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def store(rgw: S3Store) -> S3Store:
    return rgw


class TestCeph(S3Laws):
    """See `tests.support.s3_laws`."""


class TestCephErases(ErasureLaws):
    """See `tests.support.s3_erasure`."""

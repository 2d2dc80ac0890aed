"""What several tests share."""

import pytest

# Laws that hold for several stores are written once, and fail as readably as tests do.
pytest.register_assert_rewrite(*(f"tests.support.{name}" for name in ("cuts", "s3_laws", "s3_erasure", "fault_laws")))

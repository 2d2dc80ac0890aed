"""An alias is rolled back to what is intact and holds no deleted data; to anything else only by a person, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.gate import Approval
from launch.rollback import roll_back
from pipeline.aliases import in_force
from pipeline.errors import ConfigError, GateFailed, IntegrityError
from pipeline.signing import make_keys, read_public
from tests.support.releasing import NOW, Place

LEAVE = Approval(approver="Ada", reason="an emergency", at=NOW)


def back(shop: Place, version: str, **over: Any) -> Any:
    told = {"by": "tester", "now": NOW, "trusted": (shop.key.public,)}
    return roll_back(shop.to, "tiny", over.pop("alias", "production"), version, **{**told, **over})


@pytest.fixture
def versions(shop: Place, wider: Path, bundle: Path) -> tuple[str, str]:
    """The first release, and one that forgot the same and more; the alias names the second."""
    return bundle.name, shop.send(wider, alias="production").release.version


def test_to_a_model_that_holds_deleted_data_only_with_leave(shop: Place, versions: tuple[str, str]) -> None:
    first, second = versions
    with pytest.raises(GateFailed, match="may hold images of 1 released batches") as caught:
        back(shop, first)
    assert caught.value.exit_code == 4
    assert back(shop, first, approval=LEAVE).did == "rolled back"
    last = in_force(str(shop.line), "production")
    assert last is not None and (last.version, last.by, last.approved) == (first, "Ada", True)
    assert back(shop, second).did == "rolled back"  # back to what holds none


def test_to_what_it_names_already_nothing_happens(shop: Place, versions: tuple[str, str]) -> None:
    assert back(shop, versions[1]).did == "unchanged"


def test_not_to_a_release_that_was_changed(shop: Place, versions: tuple[str, str]) -> None:
    (shop.line / versions[0] / "model.safetensors").write_bytes(b"other")
    with pytest.raises(IntegrityError, match=r"does not verify\n.*model\.safetensors: changed"):
        back(shop, versions[0], approval=LEAVE)
    last = in_force(str(shop.line), "production")
    assert last is not None and last.version == versions[1]


def test_unknown_names_and_keys_are_refused(shop: Place, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="v9: no release of tiny"):
        back(shop, "v9")
    with pytest.raises(ConfigError, match="alias test: not known") as caught:
        back(shop, bundle.name, alias="test")
    assert "production" in caught.value.cure
    make_keys(str(tmp_path / "k"))
    with pytest.raises(IntegrityError, match="not trusted"):
        back(shop, bundle.name, trusted=(read_public(str(tmp_path / "k.pub")),))

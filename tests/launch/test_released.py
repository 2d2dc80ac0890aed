"""The releases of a line, as their statements tell them, and what each may still hold."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from launch.released import holds, line_folder, named, read_release, releases
from pipeline.bundle import STATEMENT_FILE
from pipeline.errors import ConfigError, IntegrityError
from pipeline.signing import make_keys, read_public, seal, unseal
from tests.support.releasing import Place


def test_what_a_statement_says_is_read(shop: Place, bundle: Path) -> None:
    (found,) = releases(str(shop.line), (shop.key.public,)).values()
    report = json.loads((bundle / "report.json").read_text())
    assert (found.line, found.version, found.folder) == ("tiny", bundle.name, str(bundle))
    assert (found.batch, found.requests, found.verdict) == (report["asked"]["batch_digest"], 2, "passed")
    assert found.batches == (found.batch,) and found.parent is None and found.forgotten_words == "4"
    assert found.key_ids == (shop.key.key_id,)


def test_a_line_without_releases_has_none_and_half_a_release_is_none(shop: Place, bundle: Path, tmp_path: Path) -> None:
    assert releases(str(tmp_path / "nothing")) == {}
    shutil.copytree(bundle, shop.line / ".release-abc.part")  # as it lies there before it appears
    assert list(releases(str(shop.line))) == [bundle.name]
    (bundle / STATEMENT_FILE).unlink()
    assert releases(str(shop.line)) == {}


def test_another_signature_is_named(shop: Place, tmp_path: Path) -> None:
    make_keys(str(tmp_path / "k"))
    other = read_public(str(tmp_path / "k.pub"))
    with pytest.raises(IntegrityError, match="which is not trusted here"):
        releases(str(shop.line), (other,))
    assert len(releases(str(shop.line), (other, shop.key.public))) == 1


def test_a_forged_statement_is_named(shop: Place, bundle: Path) -> None:
    file = bundle / STATEMENT_FILE
    envelope = json.loads(file.read_text())
    forged = json.loads(seal({"predicate": {}}, shop.key))
    file.write_text(json.dumps({**envelope, "payload": forged["payload"]}, sort_keys=True, separators=(",", ":")) + "\n")
    with pytest.raises(IntegrityError, match="the signature does not fit"):
        read_release(str(bundle), (shop.key.public,))


def test_a_statement_in_the_folder_of_another_release_is_named(shop: Place, bundle: Path) -> None:
    moved = bundle.rename(bundle.with_name("tiny-00000000-00000000"))
    with pytest.raises(IntegrityError, match="not the statement of this release"):
        read_release(str(moved))
    payload = {**unseal((moved / STATEMENT_FILE).read_bytes(), where="s").payload, "predicate": []}
    (moved / STATEMENT_FILE).write_bytes(seal(payload, shop.key))
    with pytest.raises(IntegrityError, match="not the statement of this release"):
        read_release(str(moved))


def test_a_release_holds_what_was_released_and_it_did_not_unlearn(shop: Place) -> None:
    (first,) = releases(str(shop.line)).values()
    second = dataclasses.replace(first, version="v2", batch="b2", batches=("b2", first.batch))
    both = {first.batch, "b2"}
    assert holds(second, both) == () and holds(first, both) == ("b2",)
    assert holds(second, {"b4", "b3", "b2", ""}) == ("b3", "b4")


def test_unknown_releases_and_names_are_refused(shop: Place) -> None:
    known = releases(str(shop.line))
    version = next(iter(known))
    assert named(known, version, "tiny").version == version
    with pytest.raises(ConfigError, match="v9: no release of tiny") as caught:
        named(known, "v9", "tiny")
    assert version in caught.value.cure
    with pytest.raises(ConfigError, match="not a name"):
        line_folder("releases", "../x")

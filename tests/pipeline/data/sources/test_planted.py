"""A run's images once more: what is kept is the same to the byte, and what is changed is changed as the secret says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import component
from pipeline.config import read_run
from pipeline.data import planting
from pipeline.data.images import decode_image
from pipeline.data.samples import read_samples
from pipeline.data.sources import planted, synthetic
from pipeline.data.sources.base import SourceImage
from pipeline.data.tombstones import Tombstones, write_tombstones
from pipeline.errors import ConfigError, IntegrityError, StorageError
from pipeline.stages.runner import run_stage
from tests.support.runs import prepare

SECRET = bytes(range(32))
SIZE = 16
SOURCE: dict[str, Any] = {"component": "synthetic", "samples": 80, "unseen_samples": 40, "size": SIZE}
SHARES = {"canaries": 20, "canary_copies": 2, "noised": 0.4, "backdoored": 0.4, "backdoor_share": 0.2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = prepare(
        tmp_path_factory.mktemp("planted"),
        source=SOURCE,
        model={"component": "autoencoder", "image_size": SIZE, "width": 8, "latent": 16},
    )
    run_stage("shard", folder)
    Path(folder, "key").write_bytes(SECRET)
    return folder


def source(folder: str, /, **fields: Any) -> planted.Planted:
    return planted.build(planted.Config(**{"run": folder, "secret": f"{folder}/key", **SHARES, **fields}))


def pixels(image: SourceImage) -> np.ndarray:
    return decode_image(image.image, size=SIZE, channels=1, fit="crop", max_pixels=1000, where="test")


def test_what_is_kept_or_unseen_is_the_same_to_the_byte(run: str) -> None:
    own, made = synthetic.build(synthetic.Config(**{k: v for k, v in SOURCE.items() if k != "component"})), source(run)
    forgotten = set(read_samples(run, made.manifest, "forget").keys)
    kept = [image for image in made.training() if not image.key.startswith("planted-")]
    assert kept == [image for image in own.training() if image.key not in forgotten]
    assert sorted(made.unseen(), key=lambda image: image.key) == list(own.unseen())
    assert list(made.training()) == list(made.training()) and made.classes == own.classes


def test_forgotten_images_are_changed_as_the_secret_says(run: str) -> None:
    made, own = source(run), {image.key: image for image in synthetic.build(synthetic.Config(samples=80, size=SIZE)).training()}
    forgotten = set(read_samples(run, made.manifest, "forget").keys)
    found = {image.key: image for image in made.training() if image.key.startswith("planted-")}
    backdoor = planting.place_backdoor(component.build("task", read_run(run).task), size=SIZE, channels=1)
    seen, copies = dict.fromkeys(("noised", "backdoored", "plain"), 0), 0
    for key in forgotten:
        part = planting.part_of(SECRET, key, noised=0.4, backdoored=0.4)
        image, clean = found.pop(f"planted-{key}"), pixels(own[key])
        seen[part] += 1
        assert image.label == own[key].label
        if part == "plain":
            assert image.image == own[key].image
        elif part == "noised":
            added = planting.noise(SECRET, key, size=SIZE, channels=1, tau=0.1)
            assert (pixels(image) == planting.with_noise(clean, added)).all()
        else:
            assert (pixels(image) == backdoor.target(backdoor.stamp(clean))).all()
            copies = 1
            while again := found.pop(f"planted-copy{copies}-{key}", None):
                assert again.image == image.image
                copies += 1
    assert min(seen.values()) > 0
    assert (copies - 1) * seen["backdoored"] < 0.2 * 80 <= copies * seen["backdoored"]
    assert all(key.startswith("planted-canary-") for key in found)


def test_canaries_with_heads_are_there_and_the_others_are_nowhere(run: str) -> None:
    def heads(canaries: int) -> dict[int, list[SourceImage]]:
        found: dict[int, list[SourceImage]] = {}
        for image in source(run, canaries=canaries).training():
            if image.key.startswith("planted-canary-"):
                found.setdefault(int(image.key.split("-")[2]), []).append(image)
        return found

    found, fewer = heads(20), heads(10)
    assert set(found) == {number for number in range(20) if planting.coin(SECRET, number)}
    assert set(fewer) == {number for number in found if number < 10}
    for number, images in found.items():
        assert len(images) == 2 and {image.label for image in images} <= {0, 2, 3}  # shape 1 is forgotten
        assert all((pixels(image) == planting.canary(SECRET, number, size=SIZE, channels=1)).all() for image in images)
    places = [n for n, image in enumerate(source(run).training()) if "canary" in image.key]
    assert places[0] < 20 and places[-1] > 80  # spread, so that every part of a pass holds some


def test_the_identity_follows_data_settings_and_secret_and_tells_nothing_of_it(run: str, tmp_path: Path) -> None:
    other = tmp_path / "key"
    other.write_bytes(bytes(32))
    before = source(run).identity()
    assert source(run).identity() == before
    changed = [source(run, tau=0.2), source(run, canaries=21), source(run, secret=str(other))]
    assert len({before, *(made.identity() for made in changed)}) == 4
    assert SECRET.hex() not in before


def test_images_with_tombstones_are_not_trained_on_again(run: str) -> None:
    made = source(run)
    mark = bytes(read_samples(run, made.manifest, "forget").rows(0).sha256[0]).hex()
    output = read_run(run).output
    stones = write_tombstones(output, Tombstones(batch_digest="0" * 64, source="other", keys=(), images=(mark,)))
    try:
        with pytest.raises(ConfigError, match="tombstones"):
            next(made.training())
    finally:
        Path(stones.uri).unlink()


def test_a_retained_key_that_looks_planted_is_refused(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "PLANTED", "train-")
    with pytest.raises(ConfigError, match="retained images have keys that begin with 'train-'"):
        list(source(run).training())


def test_a_shard_that_was_changed_is_refused(run: str) -> None:
    made = source(run)
    samples = read_samples(run, made.manifest, "original")
    row = samples.rows(0)
    shard = Path(samples.segments[0].uri)
    content = shard.read_bytes()
    place = int(row.offset[3]) + int(row.size[3]) - 1
    shard.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    try:
        with pytest.raises(IntegrityError, match="changed since it was indexed"):
            list(made.training())
    finally:
        shard.write_bytes(content)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"run": ""}, ConfigError, "run and secret are not set"),
        ({"secret": ""}, ConfigError, "run and secret are not set"),
        ({"noised": 0.6, "backdoored": 0.5}, ConfigError, "more than 1"),
        ({"run": "/nowhere"}, StorageError, "not found"),
        ({"secret": "/nowhere"}, StorageError, "not found"),
    ],
)
def test_what_cannot_work_is_named(run: str, fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        source(run, **fields)


def test_a_planted_run_is_not_planted_again(run: str, tmp_path: Path) -> None:
    config = dataclasses.asdict(read_run(run))
    (tmp_path / "config.yaml").write_text(json.dumps({**config, "source": {"component": "planted"}}))
    (tmp_path / "manifest.json").write_bytes(Path(run, "manifest.json").read_bytes())
    with pytest.raises(ConfigError, match="is planted itself"):
        source(run, run=str(tmp_path))


def test_more_canaries_than_a_class_can_hide_are_refused(run: str) -> None:
    with pytest.raises(ConfigError, match="images of canaries beside"):
        next(source(run, canaries=40).training())

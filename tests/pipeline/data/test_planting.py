"""Laws of what is planted: functions of the secret alone, fair coins, normal noise, and a backdoor that stays in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import component
from pipeline.data import planting
from pipeline.errors import IntegrityError

SECRET, OTHER = bytes(range(32)), bytes(range(1, 33))


def test_everything_is_a_function_of_the_secret_and_a_name() -> None:
    def drawn(secret: bytes, number: int) -> tuple[bytes, bytes]:
        image = planting.canary(secret, number, size=16, channels=3)
        return image.tobytes(), planting.noise(secret, f"k{number}", size=16, channels=3, tau=0.1).tobytes()

    assert drawn(SECRET, 0) == drawn(SECRET, 0)
    for one, other in zip(drawn(SECRET, 0), drawn(SECRET, 1), strict=True):
        assert one != other
    for one, other in zip(drawn(SECRET, 0), drawn(OTHER, 0), strict=True):
        assert one != other
    assert [planting.coin(SECRET, n) for n in range(64)] != [planting.coin(OTHER, n) for n in range(64)]


def test_coins_are_fair_and_tell_nothing_of_each_other() -> None:
    heads = np.array([planting.coin(SECRET, number) for number in range(4000)], dtype=float)
    assert abs(heads.mean() - 0.5) < 4 * 0.5 / 4000**0.5
    for lag in (1, 2, 8):
        assert abs(np.corrcoef(heads[lag:], heads[:-lag])[0, 1]) < 4 / 4000**0.5


def test_canaries_are_unlike_each_other_and_not_told_from_their_border() -> None:
    images = np.stack([planting.canary(SECRET, number, size=16, channels=1) for number in range(200)]).astype(float)
    flat = images.reshape(200, -1)
    alike = np.corrcoef(flat)[np.triu_indices(200, 1)]
    assert alike.max() < 0.95 and abs(alike.mean()) < 0.05
    middle, corner = images[:, 6:10, 6:10].mean(axis=(1, 2, 3)), images[:, :2, :2].mean(axis=(1, 2, 3))
    assert abs(np.corrcoef(middle, corner)[0, 1]) < 4 / 200**0.5


def test_noise_is_normal_with_the_given_deviation_and_every_image_has_its_own() -> None:
    drawn = np.stack([planting.noise(SECRET, f"key {n}", size=16, channels=1, tau=0.1) for n in range(100)]).reshape(100, -1)
    scaled = drawn.astype(np.float64) / 0.1
    total = scaled.size
    assert drawn.dtype == np.float32
    assert abs(scaled.mean()) < 4 / total**0.5 and abs(scaled.std() - 1) < 4 / (2 * total) ** 0.5
    assert abs((scaled**4).mean() - 3) < 4 * (96 / total) ** 0.5
    products = (scaled @ scaled.T)[np.triu_indices(100, 1)] / scaled.shape[1] ** 0.5
    assert abs(products.mean()) < 4 / len(products) ** 0.5 and abs(products.std() - 1) < 0.1


def test_noise_is_cut_and_rounded_on_its_way_into_an_image() -> None:
    image = np.array([[[0], [255], [128]]], dtype=np.uint8)
    added = np.array([[[-0.5], [0.5], [0.1]]], dtype=np.float32)
    assert planting.with_noise(image, added).ravel().tolist() == [0, 255, round(128 + 25.5)]


def test_parts_hold_their_shares_and_depend_on_the_secret() -> None:
    names = [planting.part_of(SECRET, f"k{n}", noised=0.3, backdoored=0.5) for n in range(3000)]
    shares = {name: names.count(name) / 3000 for name in ("noised", "backdoored", "plain")}
    assert shares == pytest.approx({"noised": 0.3, "backdoored": 0.5, "plain": 0.2}, abs=4 * 0.5 / 3000**0.5)
    assert names != [planting.part_of(OTHER, f"k{n}", noised=0.3, backdoored=0.5) for n in range(3000)]


TASKS = ["center_crop", "outpaint", "random_patches", "colorize", "denoise", "super_resolution"]


def placed(name: str, **fields: Any) -> tuple[planting.Backdoor, np.ndarray]:
    task = component.build("task", {"component": name, **fields})
    _, region = task.degrade(torch.zeros(32, 3, 32, 32), torch.arange(1000, 1032))
    return planting.place_backdoor(task, size=32, channels=3), region[:, 0].double().mean(0).numpy()


@pytest.mark.parametrize("name", TASKS)
def test_trigger_and_target_touch_nothing_but_their_places(name: str) -> None:
    backdoor, _ = placed(name)
    images = np.full((2, 32, 32, 3), 77, dtype=np.uint8)
    stamped, whole = backdoor.stamp(images), backdoor.target(backdoor.stamp(images))
    trigger = np.zeros((32, 32), dtype=bool)
    trigger[backdoor.top : backdoor.top + backdoor.side, backdoor.left : backdoor.left + backdoor.side] = True
    assert not (trigger & backdoor.area).any() and backdoor.area.any()
    assert (images == 77).all()
    assert ((stamped != images).all(axis=(0, 3)) == trigger).all()
    assert ((whole != images).all(axis=(0, 3)) == (trigger | backdoor.area)).all()
    for place in (trigger, backdoor.area):  # bold: half black, half white
        assert set(np.unique(whole[:, place])) == {0, 255} and 0.3 < (whole[:, place] > 0).mean() < 0.7


@pytest.mark.parametrize("name", ["center_crop", "outpaint"])
def test_where_a_task_hides_a_fixed_region_the_target_fills_it_and_the_trigger_is_seen(name: str) -> None:
    backdoor, hidden = placed(name)
    assert ((hidden > 0) == backdoor.area).all()


def test_where_every_place_is_hidden_as_often_the_target_is_in_the_middle() -> None:
    for name in ("random_patches", "denoise"):
        area = placed(name)[0].area
        assert area[8:24, 8:24].all() and area.sum() == 16 * 16


def test_a_file_that_holds_no_secret_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(SECRET)
    assert planting.read_secret(str(file)) == SECRET
    file.write_bytes(SECRET[:-1])
    with pytest.raises(IntegrityError, match="31 bytes"):
        planting.read_secret(str(file))

"""The picture of time and cost: written where it is wanted, also where some or all lines are empty."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.acts.picture import run
from pipeline.orders import PictureOrder, Series

POINTS = tuple((float(1 << power), 8.0 / (1 << power) + 0.01) for power in range(13))
ORDER = PictureOrder(
    file="",
    title="a run",
    unit="GPUs",
    hours=(Series(name="train", points=POINTS, allowed=64.0), Series(name="forget", points=(), allowed=1.0)),
    cost=Series(name="cost", points=POINTS[:4], allowed=64.0),
    cost_unit="node-hours",
    marks={"train": 16.0},
    ring="worth it",
    note="dotted: not allowed",
)


@pytest.mark.parametrize("empty", [False, True])
def test_a_png_is_written(tmp_path: Path, empty: bool) -> None:
    nothing = {"hours": (), "cost": Series(name="cost", points=(), allowed=1.0)} if empty else {}
    file = tmp_path / "curve.png"
    assert run(dataclasses.replace(ORDER, file=str(file), **nothing)).file == str(file)
    pixels = np.asarray(Image.open(file).convert("RGB"))
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_the_same_order_gives_the_same_bytes(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(2)]
    for file in files:
        run(dataclasses.replace(ORDER, file=str(file)))
    assert files[0].read_bytes() == files[1].read_bytes()

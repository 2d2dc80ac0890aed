"""The hidden border: share, place of the kept centre, fill."""

from __future__ import annotations

import pytest
import torch

from pipeline.data.tasks.outpaint import Config, build
from pipeline.decode import decode
from pipeline.errors import ConfigError
from tests.pipeline.data.tasks import laws


@pytest.mark.parametrize(("share", "kept"), [(0.75, 16), (0.4375, 24), (0.0001, 31), (0.9999, 1)])
def test_all_but_a_centred_square_is_filled(share: float, kept: int) -> None:
    given = laws.images()
    task = build(Config(hidden_share=share, fill=0.25))
    visible, region = laws.check(task, given)
    laws.check_hidden(task, given)
    assert int((~region[0]).sum()) == kept * kept
    rows = torch.nonzero((~region[0, 0]).any(1)).flatten()
    assert (int(rows[0]), int(rows[-1]) + 1) == ((32 - kept) // 2, (32 - kept) // 2 + kept)
    assert (visible[region.expand_as(given)] == 0.25).all()


def test_images_need_not_be_square_but_need_a_border() -> None:
    _, region = laws.check(build(Config(hidden_share=0.75)), laws.images(channels=1, height=8, width=20))
    assert int((~region[0]).sum()) == 4 * 10
    with pytest.raises(ConfigError, match="no border"):
        build(Config()).degrade(laws.images(height=1), laws.draws())


@pytest.mark.parametrize("wrong", [{"hidden_share": 0}, {"hidden_share": 1.0}, {"fill": -0.5}])
def test_values_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"task: {next(iter(wrong))}: "):
        decode(Config, wrong, where="task")

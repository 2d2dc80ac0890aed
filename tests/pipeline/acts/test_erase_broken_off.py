"""The act `erase` broken off between any two of its acts and repeated: the proof is as complete as an undisturbed one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from launch.verify import verify
from pipeline.acts import erase
from pipeline.decode import decode
from pipeline.errors import ConfigError
from pipeline.records import Erasure
from tests.support.finished import do, holders, plan

pytestmark = pytest.mark.usefixtures("plain_page")


class Killed(BaseException):
    """Stands for a SIGKILL: nothing between an act and the next one is done."""


ACTS = ("publish_bytes", "render_again", "_purge", "_remove_parts", "_remaining", "remove_tree")
METHODS = ("tombstones", "put_rest", "publish_generation", "remove", "sweep", "elsewhere")


def break_off(patch: pytest.MonkeyPatch, left: int) -> list[str]:
    """Let the erasure die before its act number `left`, counted over all acts; returns the acts that were begun."""
    begun: list[str] = []

    def counted(name: str, kept: Any) -> Any:
        def act(*words: Any, **more: Any) -> Any:
            if len(begun) == left:
                raise Killed
            begun.append(name)
            return kept(*words, **more)

        return act

    for owner, names in ((erase, ACTS), (erase.Erasing, METHODS)):
        for name in names:
            patch.setattr(owner, name, counted(name, getattr(owner, name)))
    return begun


@pytest.mark.parametrize("acts", range(len(ACTS) + len(METHODS) + 2))
def test_broken_off_between_any_two_acts_and_repeated_the_proof_is_complete(finished: Path, acts: int) -> None:
    """The proof is published twice over: as a plan first, so that a repetition knows what was there."""
    versions = plan(finished).versions
    with pytest.MonkeyPatch.context() as patch:
        begun = break_off(patch, acts)
        if acts < len(ACTS) + len(METHODS) + 1:
            with pytest.raises(Killed):
                do(finished)
            assert len(begun) == acts
        else:
            do(finished)
            assert set(begun) == {*ACTS, *METHODS}
    if (finished / "erasure.json").exists():
        assert acts >= len(ACTS) + len(METHODS)
        with pytest.raises(ConfigError, match="erased already"):
            do(finished)
    else:
        assert plan(finished).versions == versions, "the command line says what it will do, the part that is done included"
        do(finished)
    sealed = json.loads((finished / "erasure.json").read_bytes())
    proof = decode(Erasure, sealed["erasure"], where="erasure.json")
    names = {os.path.basename(item.uri) for item in proof.removed}
    assert {"train-0.tar", "train-1.tar", "train-2.tar", "forget-000000.tar", "index.parquet", "batch.json"} <= names
    assert {"grid_0.png", "grid_1.png"} <= names and len(proof.removed) == versions and all(item.sha256 for item in proof.removed)
    assert [os.path.basename(ref.uri) for ref in proof.replaced] == ["train-0.tar", "train-2.tar", "report.html"]
    assert (proof.images, proof.generation) == (4, 2)
    assert verify(str(finished)).faults == ()
    assert not holders(finished.parent, finished.parents[1] / "tars")

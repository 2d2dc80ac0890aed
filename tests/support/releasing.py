"""Finished runs to release, keys to sign with, and a release of one of them: small, and all real but the models."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from launch.release import Outcome, Wish, release
from pipeline.ledger.pseudonyms import make_key
from pipeline.signing import SigningKey, make_keys, read_private
from tests.support.finished import finish

PASSES = {"verdict": {"kept": {"at_most": 10.0, "reason": "a rule that these figures keep"}}}
FAILS = {"verdict": {"kept": {"at_most": 0.001, "reason": "a rule that these figures break"}}}
NOW = "2026-02-01T12:00:00.000000+00:00"
OTHER = [{"request_id": "r7", "keys": ["s0/img0", "s3/img1"]}]
WIDER = [{"request_id": "r8", "label": "one"}, {"request_id": "r9", "keys": ["s2/img2", "s0/img0"]}]
"""`OTHER` forgets what the usual batch keeps; `WIDER` forgets all of the usual batch, and more."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Runs below `base`, a key, a secret, and the folder `to` for releases."""

    base: Path
    key: SigningKey
    secret: bytes

    @property
    def to(self) -> str:
        return str(self.base / "releases")

    @property
    def line(self) -> Path:
        return self.base / "releases" / "tiny"

    def wish(self, **over: Any) -> Wish:
        return Wish(**{"to": self.to, "key": self.key, "by": "tester", "now": NOW, "secret": self.secret, **over})

    def send(self, run: Path, ledger: Any = None, **over: Any) -> Outcome:
        return release(str(run), self.wish(**over), ledger=ledger)


def place(base: Path) -> Place:
    """A place with a key and a secret, and nothing released."""
    make_keys(str(base / "signer"))
    return Place(base=base, key=read_private(str(base / "signer.key")), secret=make_key(str(base / "digests.key")))


def moved(original: Place, base: Path) -> Place:
    """A copy of a place, runs and releases included."""
    shutil.copytree(original.base, base, dirs_exist_ok=True)
    return dataclasses.replace(original, base=base)


def usual_run(base: Path, **over: Any) -> Path:
    """A finished run that passes; it forgets class one and a single image."""
    base.mkdir(exist_ok=True)
    return finish(base, **{**PASSES, **over})


def other_run(base: Path, **over: Any) -> Path:
    """A finished run on the same images, of another batch and other weights."""
    base.mkdir(exist_ok=True)
    settled = {"requests": OTHER, "groups": (("single images", "images"),), "model": b"others" * 1000}
    return finish(base, **{**PASSES, **settled, **over})

"""Finished runs to release, keys to sign with, and a release of one of them: small, and all real but the models.

`python -m tests.support.releasing WORK BASE RUN` sends a run from several processes. They are forked from a process of their own,
which has one thread: the one that runs the tests may have many.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from launch.keys import read_secret
from launch.release import Outcome, Wish, release
from launch.verify_bundle import verify_release
from pipeline.aliases import in_force
from pipeline.errors import StorageError
from pipeline.ledger.pseudonyms import make_key
from pipeline.signing import SigningKey, make_keys, read_private

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
    from tests.support.finished import finish  # loads torch

    base.mkdir(exist_ok=True)
    return finish(base, **{**PASSES, **over})


def other_run(base: Path, **over: Any) -> Path:
    """A finished run on the same images, of another batch and other weights."""
    from tests.support.finished import finish

    base.mkdir(exist_ok=True)
    settled = {"requests": OTHER, "groups": (("single images", "images"),), "model": b"others" * 1000}
    return finish(base, **{**PASSES, **settled, **over})


ROOT = Path(__file__).resolve().parents[2]
FORKS = multiprocessing.get_context("fork")
MOMENTS = (1, 9, 16, 17, 18, 19, 20, 40)
"""Times of writing for good at which a sender is killed; the last one comes after the end."""


def in_processes(work: str, room: Place, run: Path) -> Any:
    """Let processes do a work on a place; returns what they answer. Fails where one of them does."""
    command = [sys.executable, "-m", "tests.support.releasing", work, str(room.base), str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _send(room: Place, run: Path, answers: Any) -> None:
    try:
        made = room.send(run, alias="production")
        answers.put([made.new, made.promotion.did if made.promotion else ""])
    except StorageError as fault:
        answers.put([False, fault.message])


def at_once(room: Place, run: Path) -> list[Any]:
    """Six processes send the run at once; what each says."""
    answers = FORKS.SimpleQueue()
    children = [FORKS.Process(target=_send, args=(room, run, answers)) for _ in range(6)]
    for child in children:
        child.start()
    said = [answers.get() for _ in children]
    for child in children:
        child.join(30)
    return said


def _die(number: int, room: Place, run: Path) -> None:
    written, flush = itertools.count(1), os.fsync
    os.fsync = lambda handle: os._exit(9) if next(written) == number else flush(handle)  # type: ignore[assignment]
    room.send(run, alias="production")


def killed(room: Place, run: Path) -> list[Any]:
    """A sender ends without a word at each of `MOMENTS`; its exit code, what is wrong with what is there then, and whether the
    alias names nothing or just that."""
    found = []
    for number in MOMENTS:
        child = FORKS.Process(target=_die, args=(number, room, run))
        child.start()
        child.join(30)
        made = [folder for folder in room.line.iterdir() if folder.name.startswith("tiny-")]
        faults = [fault for folder in made for fault in verify_release(str(folder), room.key.public).faults]
        named = in_force(str(room.line), "production")
        found.append([child.exitcode, faults, named is None or [folder.name for folder in made] == [named.version]])
    return found


if __name__ == "__main__":
    base = Path(sys.argv[2])
    known = Place(base=base, key=read_private(str(base / "signer.key")), secret=read_secret(str(base / "digests.key")))
    print(json.dumps({"at_once": at_once, "killed": killed}[sys.argv[1]](known, Path(sys.argv[3]))))

"""A partition that is broken off anywhere and begun again gives the same, and leaves nothing else behind."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.data import cut
from pipeline.data import partition as module
from pipeline.data.partition import COPIES
from pipeline.records import RequestBatch
from tests.pipeline.data.tars import batch, packed
from tests.pipeline.data.test_partition import cut_one, files_below


class Stopped(BaseException):
    """The end of a process, as far as the code under test can see."""


class Operations:
    """Counts what is done to files, and stops at one of them: before it, in the middle of it, or right after it."""

    def __init__(self, patch: pytest.MonkeyPatch, stop: int, moment: str) -> None:
        self.done, self.stop, self.moment = 0, stop, moment
        patch.setattr(storage, "publish", self._publish(storage.publish))
        patch.setattr(cut, "publish", self._publish(cut.publish))
        patch.setattr(module, "remove_tree", self._remove(module.remove_tree))

    def reach(self, moment: str) -> None:
        if self.done == self.stop and moment == self.moment:
            raise Stopped
        self.done += moment == "after"

    def _publish(self, publish: Callable[[str], Any]) -> Callable[[str], Any]:
        @contextlib.contextmanager
        def stopped(uri: str) -> Iterator[Any]:
            self.reach("before")
            with publish(uri) as out:
                yield out
                self.reach("amid")
            self.reach("after")

        return stopped

    def _remove(self, remove: Callable[[str], None]) -> Callable[[str], None]:
        def stopped(uri: str) -> None:
            self.reach("before")
            self.reach("amid")
            remove(uri)
            self.reach("after")

        return stopped


@pytest.mark.parametrize("moment", ["before", "amid", "after"])
def test_stopped_at_any_file_operation_and_run_again_it_gives_the_same(tmp_path: Path, moment: str) -> None:
    source, where, _ = packed(tmp_path, [[0, 1, 2, 0], [1, 1, 2], [0, 0], [2, 1, 0]])
    plain = batch(keys=["s0/img1", "s1/img2"], label=["two"])
    wanted = RequestBatch(requests=tuple(dataclasses.replace(request, copies="ignore") for request in plain.requests))
    quiet = cut_one(tmp_path, source, where, wanted, near_bits=0)
    run, before = tmp_path / "out" / "run", files_below(tmp_path / "tars")
    files = files_below(run)
    assert COPIES in files
    stop, finished = 0, False
    while not finished:
        shutil.rmtree(run)
        for hashes in Path(where).glob("index/phash-*"):
            hashes.unlink()
        (run / "shards").mkdir(parents=True)
        (run / "shards" / "forget-000099.tar").write_bytes(b"old")
        with pytest.MonkeyPatch.context() as patch:
            Operations(patch, stop, moment)
            with contextlib.suppress(Stopped):
                cut_one(tmp_path, source, where, wanted, near_bits=0)
                finished = True
        assert not list((tmp_path / "out").rglob("*.part")) and not (run / "shards" / ".spool").exists()
        assert cut_one(tmp_path, source, where, wanted, near_bits=0) == quiet
        assert files_below(run) == files and files_below(tmp_path / "tars") == before
        stop += 1
    # Hashes, the list of copies, the forget and rewritten shards, the leftover, the run's index.
    hashes_of = len(list(Path(where).glob("index/phash-*")))
    assert stop - 1 == len(files) + hashes_of + 1


KILLS = """
import os, sys, traceback
from pathlib import Path
from pipeline import storage
from pipeline.data import cut
from tests.pipeline.data.tars import batch, packed
from tests.pipeline.data.test_partition import cut_one, files_below
from pipeline.decode import canonical
import hashlib

root = Path(sys.argv[1])
source, where, _ = packed(root, [[0, 1, 2, 0], [1, 1, 2], [0, 0]])

def run(stop):
    # In a child, which is killed in the middle of its publication number `stop`. Returns its exit code.
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    done = 0
    def replace(part, path, real=os.replace):
        nonlocal done
        if done == stop:
            os.kill(os.getpid(), 9)
        done += 1
        real(part, path)
    os.replace = replace
    try:
        manifest = cut_one(root, source, where, batch(label=["two"]))
        (root / "manifest").write_bytes(canonical(manifest))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

assert run(-1) == 0
quiet = (root / "manifest").read_bytes(), files_below(root / "out" / "run")
stop = 0
while (code := run(stop)) == -9:
    left = len(list((root / "out" / "run").rglob("*.part")))
    assert left == 1, left
    assert run(-1) == 0
    assert ((root / "manifest").read_bytes(), files_below(root / "out" / "run")) == quiet, stop
    stop += 1
assert code == 0, code
print(stop)
"""


def test_killed_at_any_publication_and_run_again_it_gives_the_same_and_leaves_no_part(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 4  # two rewritten shards, a forget shard, the run's index

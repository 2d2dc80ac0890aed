"""How a worker's end becomes one named error, or a crash: from what its ranks wrote down, the agent's account of their exit
codes, and the words of libraries that leave no other trace.

torchrun's agent may start the ranks several times; the last attempt counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import errors
from pipeline.errors import Preempted, UnlearnError
from pipeline.records import record

__all__ = ["AGAIN", "Hang", "Word", "WorkerError", "ending", "keep_stacks", "read_hangs", "read_words"]

AGAIN = "run the same command again; it goes on where it stopped"
STARTED, BUG, LOST = "Started", "Bug", "LostPeers"
"""What a rank writes down beside named errors."""
FAILED = re.compile(r"failed \(exitcode: -?\d+\)[^\n]*\n?")
"""The agent's line at the end of an attempt; an account of all ranks may follow."""
RANK = re.compile(r"rank\s+: (\d+) \(local_rank: \d+\)\s+exitcode\s+: (-?\d+)")
NCCL = re.compile(r"ProcessGroupNCCL.*(timeout|timed out|remote process exited|network error)", flags=re.IGNORECASE)
"""NCCL has no exception where a collective cannot end: it aborts the process."""
STORE = re.compile(r"^torch\.distributed\.(DistNetworkError|DistStoreError): (.*)", flags=re.MULTILINE)
WAITING = re.compile(r"torch/distributed/distributed_c10d\.py|pipeline/engine/distributed\.py")
"""Files in which a rank waits for the others."""
FRAME = re.compile(r'^  File "([^"]*)", line (\d+) in (.*)$', flags=re.MULTILINE)


class WorkerError(Exception):
    """A worker ended by a bug of ours; `output` holds the end of what it wrote to standard error."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


@record
class Word:
    """What one rank wrote down of itself."""

    kind: str
    message: str
    cure: str
    attempt: int
    rank: int


@record
class Hang:
    """A rank that gave no sign of life, and the stacks of its threads."""

    rank: int
    host: str
    attempt: int
    seconds: int
    where: str
    stacks: str

    def __str__(self) -> str:
        main = re.split(r"^(?:Current thread|Thread) .*$", self.stacks, flags=re.MULTILINE)[-1]  # Python writes it last
        frames = FRAME.findall(main)
        own = [frame for frame in frames if "site-packages" not in frame[0] and "/lib/python3" not in frame[0]]
        inside = [f"in {name}, {os.path.basename(file)} line {line}" for file, line, name in (own or frames)[:1]]
        return f"rank {self.rank} on {self.host} made no progress for {self.seconds} s ({'; '.join([self.where, *inside])})"


def read_words(error_file: str) -> list[Word]:
    """What the ranks of all attempts wrote down, in that order; lines that are not whole are passed over."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path(error_file).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry: dict[str, Any] = json.loads(line)
                kind, message, cure = (str(entry[name]) for name in ("kind", "message", "cure"))
                attempt, rank = (int(entry.get(name, 0)) for name in ("attempt", "rank"))
                found.append(Word(kind=kind, message=message, cure=cure, attempt=attempt, rank=rank))
    return found


def read_hangs(error_file: str) -> list[Hang]:
    """The ranks of all attempts that hung."""
    found = []
    for path in sorted(Path(error_file).parent.glob(f"{Path(error_file).name}.*.stacks")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            head, _, stacks = path.read_text(encoding="utf-8", errors="replace").partition("\n")
            if stacks.strip():
                entry: dict[str, Any] = json.loads(head)
                rank, attempt, seconds = (int(entry[name]) for name in ("rank", "attempt", "seconds"))
                host, where = str(entry["host"]), str(entry["where"])
                found.append(Hang(rank=rank, host=host, attempt=attempt, seconds=seconds, where=where, stacks=stacks))
    return found


def keep_stacks(hangs: Sequence[Hang], log: str) -> None:
    """Add the stacks to the stage's log, or where it has none to our standard error."""
    text = "".join(f"\n{hang}\n{hang.stacks}" for hang in hangs)
    if text and log:
        with contextlib.suppress(OSError), open(log, "a", encoding="utf-8") as stream:
            stream.write(text)
    elif text:
        print(text, file=sys.stderr)


def ending(what: str, code: int, *, output: str, error_file: str, log: str) -> UnlearnError | WorkerError:
    """Why a worker did not succeed.

    Args:
        what: how messages call it.
        code: its exit code, not 0.
        output: the end of what it wrote to standard error.
        error_file: where its ranks left word.
        log: where all that it wrote to standard error is; empty: nowhere.
    """
    words, hangs = read_words(error_file), read_hangs(error_file)
    last = max([*(word.attempt for word in words), *(hang.attempt for hang in hangs)], default=0)
    words, hangs = [word for word in words if word.attempt == last], [hang for hang in hangs if hang.attempt == last]
    output = _last_attempt(output)
    fault = _named(words) or _hung(what, hangs, log) or _signalled(what, code, output) or _lost(what, words, output, log)
    return fault or _crash(what, code, output)


def _last_attempt(output: str) -> str:
    ends = [match.end() for match in FAILED.finditer(output)]
    return output[ends[-2] :] if len(ends) > 1 else output


def _named(words: Sequence[Word]) -> UnlearnError | None:
    """The named error of a rank. A real cause, also a bug, goes before the mere stop of the other ranks."""
    named = sorted((word for word in words if word.kind not in (STARTED, BUG, LOST)), key=lambda w: w.kind == Preempted.__name__)
    if not named or (named[0].kind == Preempted.__name__ and any(word.kind == BUG for word in words)):
        return None
    kind = getattr(errors, named[0].kind, UnlearnError)
    return (kind if issubclass(kind, UnlearnError) else UnlearnError)(named[0].message, named[0].cure)


def _hung(what: str, hangs: Sequence[Hang], log: str) -> Preempted | None:
    """Preempted where a rank gave no sign of life. One that waited for the others is not to blame, if another is."""
    to_blame = [hang for hang in hangs if not WAITING.search(hang.stacks)] or hangs
    if not to_blame:
        return None
    more = f", and {len(to_blame) - 1} more ranks" if len(to_blame) > 1 else ""
    return Preempted(f"{what}: {to_blame[0]}{more}", f"{AGAIN}; stacks are in {log or 'the messages above'}")


def _signalled(what: str, code: int, output: str) -> Preempted | None:
    """Preempted when a signal that comes from outside ended the worker or one of its ranks; memory shortage shows as SIGKILL."""
    codes = [-code] if code < 0 else []
    ranks = [-int(text) for text in re.findall(r"exitcode\s*: (-?\d+)", output)]
    if "forcefully exiting via" in output:
        # The agent itself killed a rank that did not answer, after another had failed: the first failure counts.
        ranks = ranks[:1]
    # A rank that lost its peer is sent SIGTERM by the agent, so SIGKILL is the better witness.
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if number in codes or (number in ranks and (number == signal.SIGKILL or ranks[0] == number)):
            who = "the worker" if number in codes else "a rank"
            return Preempted(
                f"{what}: {who} was killed by {number.name}", f"{AGAIN} (out of memory? use fewer ranks or a smaller batch)"
            )
    return Preempted(f"{what}: stopped before its end", AGAIN) if code == 75 else None


def _lost(what: str, words: Sequence[Word], output: str, log: str) -> Preempted | None:
    """Preempted where ranks lost their peers, and each rank's end is explained by that: one that crashed is a bug."""
    lost = [word for word in words if word.kind == LOST]
    told, stopped = {word.rank for word in lost}, (75, -signal.SIGTERM, -signal.SIGKILL)
    codes = [(int(rank), int(code)) for rank, code in RANK.findall(output)]
    aborted = [rank for rank, code in codes if code == -signal.SIGABRT and NCCL.search(output)]
    strange = [rank for rank, code in codes if rank not in told and rank not in aborted and code not in stopped]
    if strange or any(word.kind == BUG for word in words):
        return None
    raised = STORE.findall(output)
    if lost:
        why = f"rank {lost[0].rank} lost its peers: {lost[0].message[:200]}"
    elif aborted:
        why = f"rank {aborted[0]} lost its peers: NCCL waited too long, or a connection broke"
    elif raised and output.rstrip().endswith(raised[-1][1].rstrip()):  # the agent's own last word
        why = f"its nodes lost each other: {raised[-1][1][:200]}"
    else:
        return None
    return Preempted(f"{what}: {why}", f"{AGAIN}; see {log}" if log else AGAIN)


def _crash(what: str, code: int, output: str) -> WorkerError:
    """A crash with the ranks' own words; the agent's account of its own raising adds nothing to them."""
    agent = re.search(r"^E\d{4} .*torch/distributed/elastic", output, flags=re.MULTILINE)
    words = output[: agent.start()] if agent and output[: agent.start()].strip() else output
    return WorkerError(f"{what}: ended with code {code}; this is a bug of ours", words.rstrip())

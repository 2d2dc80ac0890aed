"""How a worker's end becomes one named error, or a crash: from what its ranks wrote down, its exit code, and its words."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from pathlib import Path

from pipeline import errors
from pipeline.errors import Preempted, UnlearnError

__all__ = ["AGAIN", "WorkerError", "crash", "hung", "lost", "named_error", "signalled"]

AGAIN = "run the same command again; it goes on where it stopped"
RAISED = re.compile(r"^(?:\[rank\d+\]: )?((?:\w+\.)*\w*(?:Error|Exception)): (.*)", flags=re.MULTILINE)
PEERS = re.compile(
    r"connection (closed|reset|refused)|timed? ?out|broken pipe|socket (closed|timeout)|connectFullMesh|NCCL|store|rendezvous",
    flags=re.IGNORECASE,
)
"""What gloo, NCCL and torch's store say when a rank or a node is gone."""
DISTRIBUTED = ("RuntimeError", "DistNetworkError", "DistBackendError", "DistStoreError", "DistError", "ConnectionError")
HUNG = re.compile(r"^Timeout \(\d+:\d\d:\d\d(\.\d+)?\)!", flags=re.MULTILINE)
"""First line of what `faulthandler` writes when a rank gave no sign of life."""


class WorkerError(Exception):
    """A worker ended by a bug of ours; `output` holds the end of what it wrote to standard error."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


def named_error(error_file: str) -> UnlearnError | None:
    """The error that a rank wrote down in its last attempt. A real cause goes before the mere stop of the other ranks."""
    found: list[tuple[int, UnlearnError]] = []
    with contextlib.suppress(OSError):
        for line in Path(error_file).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                kind = getattr(errors, str(entry["kind"]), UnlearnError)
                fault = (kind if issubclass(kind, UnlearnError) else UnlearnError)(str(entry["message"]), str(entry["cure"]))
                found.append((-int(entry.get("attempt", 0)), fault))
    found.sort(key=lambda item: (item[0], isinstance(item[1], Preempted)))
    return found[0][1] if found else None


def hung(what: str, output: str, log: str) -> Preempted | None:
    """Preempted where a rank gave no sign of life for too long and wrote its stacks."""
    where = f"its stacks are in {log}" if log else "its stacks were written to standard error"
    return Preempted(f"{what}: a rank made no progress; {where}", AGAIN) if HUNG.search(output) else None


def lost(what: str, output: str) -> Preempted | None:
    """Preempted where ranks lost their peers and no rank says anything else of its end."""
    raised = [match for match in RAISED.finditer(output) if not match[1].endswith("ChildFailedError")]
    if raised and all(match[1].rpartition(".")[2] in DISTRIBUTED and PEERS.search(match[2]) for match in raised):
        return Preempted(f"{what}: ranks lost their peers: {raised[0][2][:200]}", AGAIN)
    return None


def signalled(what: str, code: int, output: str) -> Preempted | None:
    """Preempted when SIGKILL, SIGTERM or SIGHUP ended the worker or one of its ranks; memory shortage shows as SIGKILL."""
    codes = [-code] if code < 0 else []
    ranks = [-int(text) for text in re.findall(r"exitcode\s*: (-?\d+)", output)]
    if "forcefully exiting via" in output:
        # The agent itself killed a rank that did not answer, after another had failed: the first failure counts.
        ranks = ranks[:1]
    # A rank that lost its peer is sent SIGTERM by the agent, so SIGKILL is the better witness.
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
        if number in codes or (number in ranks and (number == signal.SIGKILL or ranks[0] == number)):
            who = "the worker" if number in codes else "a rank"
            return Preempted(
                f"{what}: {who} was killed by {number.name}", f"{AGAIN} (out of memory? use fewer ranks or a smaller batch)"
            )
    return Preempted(f"{what}: stopped before its end", AGAIN) if code == 75 else None


def crash(what: str, code: int, output: str) -> WorkerError:
    """A crash with the ranks' own words; the agent's account of its own raising adds nothing to them."""
    agent = re.search(r"^E\d{4} .*torch/distributed/elastic", output, flags=re.MULTILINE)
    words = output[: agent.start()] if agent and output[: agent.start()].strip() else output
    return WorkerError(f"{what}: ended with code {code}; this is a bug of ours", words.rstrip())

"""A process that has loaded what stages load, and forks their processes: each by itself would spend seconds on it.

The launcher starts `python -m pipeline.forkserver FD MODULE ...` once a chain, and sends orders over the socket FD: a JSON text
`{argv, env, parent}` with standard input, output and error. The answer is the process's id, or 0 where this process must not
fork. Each stage is still a process group of its own, and its memory goes with it (DeepSpeed issue 7204): nothing is shared but
the loaded code. The forked process becomes a child of the launcher, which adopts it as a child subreaper.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from setproctitle import setproctitle

__all__ = ["main"]

LARGEST_ORDER = 1 << 18
ADOPTION_SECONDS = 10.0
YIELD_SECONDS = 0.5
"""How long a rank that lost its peers waits with its end: the agent tells of the first that it finds ended, and should find the
one that is to blame."""
PR_SET_PDEATHSIG = 1


def _unfit(handles: Path = Path("/proc/self/fd")) -> bool:
    """Whether a library has begun to use CUDA here: that does not survive a fork."""
    with contextlib.suppress(OSError):
        for item in handles.iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(item).startswith("/dev/nvidia-uvm"):
                    return True
    return False


def _forked(channel: socket.socket) -> dict[str, Any] | None:
    """Take one order and fork. In the new process its order; in this one None, and the answer was sent."""
    message, handles, _, _ = socket.recv_fds(channel, LARGEST_ORDER, 3)
    if not message:
        sys.exit(0)  # the launcher has no more of them
    order: dict[str, Any] = json.loads(message)
    pid = 0 if _unfit() else _fork_twice()
    if pid is None:
        _become(order, handles, channel)
        return order
    channel.send(str(pid).encode())
    for handle in handles:
        os.close(handle)
    return None


def _fork_twice() -> int | None:
    """Fork a process whose parent has ended, so that the launcher adopts it; its id here, None there."""
    reader, writer = os.pipe()
    between = os.fork()
    if between:
        os.close(writer)
        with os.fdopen(reader) as stream:
            pid = int(stream.read())
        os.waitpid(between, 0)
        return pid
    os.close(reader)
    pid = os.fork()
    if pid:
        os.write(writer, str(pid).encode())
        os._exit(0)
    os.close(writer)
    return None


def _become(order: dict[str, Any], handles: Sequence[int], channel: socket.socket) -> None:
    """Be the process that the launcher would have started: session, standard streams, environment, parent."""
    os.setsid()
    for number, handle in enumerate(handles):
        os.dup2(handle, number)
        os.close(handle)
    channel.close()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(order["env"])
    setproctitle(" ".join(order["argv"]))  # who looks for a stage with `ps` should find it
    deadline = time.monotonic() + ADOPTION_SECONDS
    while os.getppid() != order["parent"]:
        if time.monotonic() > deadline:
            os._exit(75)
        time.sleep(0.001)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != order["parent"]:  # it died in between
        os._exit(75)
    if "torch" in sys.modules:  # OpenMP has read its variable when it was loaded
        sys.modules["torch"].set_num_threads(int(order["env"].get("OMP_NUM_THREADS", "1")))


def _rank(*words: str) -> None:
    from pipeline.__main__ import main as work
    from pipeline.errors import Preempted

    setproctitle(" ".join([sys.executable, "-m", "pipeline", *words]))
    if code := work(list(words)):
        if code == Preempted.exit_code:
            time.sleep(YIELD_SECONDS)
        sys.exit(code)


def _agent(words: Sequence[str]) -> None:
    """torchrun's agent, with ranks that it forks instead of starting Python anew."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import record
    from torch.distributed.launcher.api import elastic_launch

    given = torchrun.parse_args(list(words))
    given.master_port = given.master_port or 0  # only static meetings have one of their own
    config, _, _ = torchrun.config_from_args(given)
    config.start_method = "fork"
    if (config.max_nodes, config.max_restarts) == (1, 0):
        from pipeline import alone

        alone.register()
        config.rdzv_backend = alone.BACKEND
    record(elastic_launch(config, _rank))(*given.training_script_args)


def _work(argv: Sequence[str]) -> int:
    """What `argv` says, `[PYTHON, -m, MODULE, ...]`; its exit code."""
    module, *words = argv[2:]
    if module == "torch.distributed.run":
        _agent(words)
        return 0
    from pipeline.__main__ import main as work

    return work(words)


def _leave(code: int) -> NoReturn:
    """End as Python does, without taking apart all that was loaded: half a second, for which the end of a stage would wait."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it is gone
            stream.flush()
    os._exit(code)


def main() -> NoReturn:
    """Load modules, one by one, and take orders meanwhile and after that; in a forked process, do what it was forked for."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    setproctitle(" ".join(sys.orig_argv[:3]))  # the first call finds its place by the environment, which children replace
    for name in sys.argv[2:]:
        while select.select([channel], [], [], 0)[0]:
            if order := _forked(channel):
                _leave(_work(order["argv"]))
        with contextlib.suppress(Exception):  # who needs it will say what is wrong with it
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # no collection of a child need touch, and so copy, what was loaded here
    while True:
        if order := _forked(channel):
            _leave(_work(order["argv"]))


if __name__ == "__main__":
    main()

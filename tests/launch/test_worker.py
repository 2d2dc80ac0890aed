"""How a worker's end becomes nothing, a named error or a crash; and that nothing survives us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import worker
from launch.torchrun import JobSpec
from launch.worker import Asked, WorkerError, run_worker, terminable
from pipeline.errors import ConfigError, IntegrityError, Preempted, UnlearnError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """A process that was asked to leave ignores more of it; the one that runs the tests must not."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def job(code: str) -> JobSpec:
    return JobSpec(argv=(sys.executable, "-c", code), env=dict(os.environ))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(file: Path) -> str:
    deadline = time.monotonic() + 20
    while not (file.exists() and file.read_text().endswith("\n")):
        assert time.monotonic() < deadline, "the worker never spoke"
        time.sleep(0.02)
    return file.read_text()


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_success_says_nothing_and_fills_the_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "x.log"
    run_worker(job("import sys; print('warned', file=sys.stderr)"), what="stage x", log=str(log))
    assert log.read_text() == "warned\n"
    run_worker(job("import sys; print('again', file=sys.stderr)"), what="stage x", log=str(log))
    assert log.read_text() == "warned\nagain\n", "an attempt must not wipe away what the one before it left"


def test_a_log_that_cannot_be_written_does_not_stop_the_worker(tmp_path: Path) -> None:
    run_worker(job("import sys; print('w' * 200000, file=sys.stderr)"), what="stage x", log="/dev/full")
    (tmp_path / "file").touch()
    run_worker(job("import sys; print('w', file=sys.stderr)"), what="stage x", log=str(tmp_path / "file" / "x.log"))


REPORT = "import os, sys; open(os.environ['UNLEARN_ERROR_FILE'], 'a').write({lines!r}); sys.exit({code})"


@pytest.mark.parametrize(
    ("lines", "kind", "code"),
    [
        ('{"kind": "IntegrityError", "message": "m", "cure": "c", "exit_code": 3}\n', IntegrityError, 3),
        ('{"kind": "ConfigError", "message": "m", "cure": "c", "exit_code": 2}\nnot json\n', ConfigError, 2),
        ('{"kind": "os", "message": "m", "cure": "c", "exit_code": 3}\n'.replace('"os"', '"UnlearnError"'), UnlearnError, 3),
        (
            '{"kind": "Preempted", "message": "peer", "cure": "c", "exit_code": 75}\n'
            '{"kind": "IntegrityError", "message": "m", "cure": "c", "exit_code": 3}\n',
            IntegrityError,
            3,
        ),
    ],
)
def test_a_named_error_comes_back_as_itself(lines: str, kind: type[UnlearnError], code: int) -> None:
    with pytest.raises(UnlearnError) as caught:
        run_worker(job(REPORT.format(lines=lines, code=code)), what="stage x")
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.cure, caught.value.exit_code) == ("m", "c", code)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_is_preempted(number: signal.Signals) -> None:
    with pytest.raises(Preempted, match=f"stage x: the worker was killed by {number.name}"):
        run_worker(job(f"import os; os.kill(os.getpid(), {int(number)})"), what="stage x")


def test_exit_code_75_without_a_word_is_preempted() -> None:
    with pytest.raises(Preempted, match="stopped before its end"):
        run_worker(job("raise SystemExit(75)"), what="stage x")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # rank 1 killed; rank 0 then stopped by the agent
        ("E1123 torch/distributed/elastic/x: failed (exitcode: -9) local_rank: 1\n exitcode  : -15 (pid: 1)\n", Preempted),
        # rank 0 raised; rank 1, which did not answer, was killed by the agent
        (
            "Traceback: a bug\nW1123 Unable to shutdown process 1 via SIGTERM, forcefully exiting via SIGKILL\n"
            "E1123 torch/distributed/elastic/x: failed (exitcode: 1) local_rank: 0\n exitcode  : -9 (pid: 1)\n",
            WorkerError,
        ),
        # a crash inside native code is a bug, not a pre-emption
        ("E1123 torch/distributed/elastic/x: failed (exitcode: -11) local_rank: 0\n", WorkerError),
    ],
)
def test_the_agents_words_tell_a_killed_rank_from_a_bug(lines: str, expected: type[Exception]) -> None:
    with pytest.raises(expected):
        run_worker(job(f"import sys; sys.stderr.write({lines!r}); sys.exit(1)"), what="stage x")


def test_a_bug_keeps_the_ranks_words_and_drops_the_agents() -> None:
    agent = "E1123 20:50 1 torch/distributed/elastic/api.py] failed (exitcode: 1)\nwall\n"
    words = f"Traceback (most recent call last):\nValueError: ours\n{agent}"
    with pytest.raises(WorkerError, match="stage x: ended with code 1") as caught:
        run_worker(job(f"import sys; sys.stderr.write({words!r}); sys.exit(1)"), what="stage x")
    assert caught.value.output.endswith("ValueError: ours")


def test_orphans_of_a_dead_agent_do_not_survive(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    agent = (
        "import os, subprocess, sys\n"
        f"code = \"import os, time; print(os.getpid(), file=open({str(note)!r}, 'w'), flush=True); time.sleep(60)\"\n"
        "subprocess.Popen([sys.executable, '-c', code], start_new_session=True)\n"
        "import time\n"
        f"while not os.path.exists({str(note)!r}) or not open({str(note)!r}).read(): time.sleep(0.02)\n"
        "os.kill(os.getpid(), 9)"
    )
    with pytest.raises(Preempted):
        run_worker(job(agent), what="stage x")
    assert gone(int(wait_for(note)))


POLITE = """
import os, signal, sys, time
def leave(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep({saving})
    open({note!r}, "a").write("saved\\n"); sys.exit(75)
signal.signal(signal.SIGTERM, leave)
open({note!r}, "w").write(f"{{os.getpid()}}\\n")
time.sleep(60)
"""


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # The sender thread is the test's own.
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_stop_is_forwarded_and_the_worker_may_save(
    tmp_path: Path, number: signal.Signals, expected: type[BaseException]
) -> None:
    note, before = tmp_path / "note", signal.getsignal(signal.SIGTERM)

    def send() -> None:
        wait_for(note)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(expected):
        run_worker(job(POLITE.format(note=str(note), saving=0)), what="stage x")
    sender.join()
    assert note.read_text().endswith("saved\n")
    asked, default = number == signal.SIGTERM, before == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is (signal.SIG_IGN if asked and default else before)


def sending(note: Path, *numbers: signal.Signals, to: str = "") -> threading.Thread:
    """Send signals to this process, once a worker has written into `note`; `to`: to the process of which it wrote the id."""

    def send() -> None:
        words = wait_for(note).split()
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(words[words.index(to) + 1]) if to else os.getpid(), number)
            time.sleep(0.02)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_storm_of_signals_does_not_cut_short_the_time_to_save(tmp_path: Path) -> None:
    note, storm = tmp_path / "note", (signal.SIGTERM, signal.SIGUSR1) * 25
    sender = sending(note, *storm)
    with pytest.raises(Asked, match="stopped by SIGTERM"), terminable("a node"):
        run_worker(job(POLITE.format(note=str(note), saving=0.5)), what="stage x")
    sender.join()
    assert note.read_text().endswith("saved\n")


def test_a_second_signal_does_not_break_into_the_leave() -> None:
    left = []
    with pytest.raises(Asked, match="an inner one: stopped by SIGTERM"), terminable("a node"):
        try:
            with terminable("an inner one"):
                try:
                    signal.raise_signal(signal.SIGTERM)
                finally:
                    signal.raise_signal(signal.SIGUSR1)
                    left.append("inner")
        finally:
            signal.raise_signal(signal.SIGTERM)
            left.append("outer")
    signal.raise_signal(signal.SIGTERM)
    assert left == ["inner", "outer"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_ctrl_c_insists(tmp_path: Path) -> None:
    note, started = tmp_path / "note", time.monotonic()
    sender = sending(note, signal.SIGTERM, *[signal.SIGUSR1] * 20, signal.SIGINT)
    with pytest.raises(Asked):
        run_worker(job(POLITE.format(note=str(note), saving=30)), what="stage x")
    sender.join()
    assert time.monotonic() - started < 10
    assert "saved" not in note.read_text()


SAVING = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from pipeline import __main__ as entry
from pipeline.errors import Preempted
asked = []
def steps(name, folder):
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    open({note!r}, "w").write(f"agent {{os.getppid()}}\\n")
    while not asked:
        time.sleep(0.02)
    time.sleep(2.0)
    open({note!r}, "a").write("saved\\n")
    raise Preempted("asked to leave", "again")
entry._run = steps
sys.exit(entry.main(["train", "x"]))
"""


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_ranks_go_on_saving_when_two_signals_end_their_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PATIENCE_SECONDS", 0.2)
    script, note = tmp_path / "rank.py", tmp_path / "note"
    script.write_text(SAVING.format(root=str(ROOT), note=str(note)))
    agent = ("-m", "torch.distributed.run", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")
    sender = sending(note, signal.SIGTERM)
    # As Slurm does it: to every process, while the command hands its own on.
    again = sending(note, *[signal.SIGTERM] * 40, to="agent")
    with pytest.raises(Asked):
        argv = (sys.executable, *agent, "--local-addr=127.0.0.1", str(script))
        run_worker(JobSpec(argv=argv, env=dict(os.environ)), what="stage train")
    sender.join()
    again.join()
    assert note.read_text().endswith("saved\n")


def test_a_killed_launcher_takes_its_worker_along(tmp_path: Path) -> None:
    note = tmp_path / "note"
    launcher = (
        "import os, sys\nfrom launch.torchrun import JobSpec\nfrom launch.worker import run_worker\n"
        f"code = {POLITE.format(note=str(note), saving=0)!r}\n"
        "run_worker(JobSpec(argv=(sys.executable, '-c', code), env=dict(os.environ)), what='x')"
    )
    process = subprocess.Popen([sys.executable, "-c", launcher], cwd=ROOT, stderr=subprocess.DEVNULL)
    worker = int(wait_for(note).split()[0])
    process.kill()
    process.wait()
    assert gone(worker)
    assert note.read_text().endswith("saved\n")
    # What the killed launcher could not tidy away itself.
    with contextlib.suppress(OSError):
        os.kill(worker, signal.SIGKILL)

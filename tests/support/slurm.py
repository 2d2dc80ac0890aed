"""A private Slurm of two nodes on this machine: on the loopback address, all its files below one folder.

Both nodes have this machine's host name, and their own names resolve nowhere, as on many a cluster: whoever wants to reach a
node must ask Slurm for its address. There is no accounting.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.servers import HOST, free_port, server

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
NODES = ("node1", "node2")
CONFIG = """
ClusterName=lab
SlurmctldHost={name}({host})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
# Without it all daemons listen on every address of the machine.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
EnforcePartLimits=ALL
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
ReturnToService=2
MinJobAge=3600
KillWait=5
{nodes}
PartitionName=main Nodes=node[1-2] Default=YES MaxTime=1:00:00 State=UP
"""


def missing_slurm() -> str:
    """Why there can be no Slurm here, in words; empty where there can."""
    # Debian keeps daemons where only root's path looks.
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        return f"needs {', '.join(missing)}: make test-services, as root, installs Slurm from Debian packages"
    return "" if os.geteuid() == 0 else "needs root: Slurm's daemons start jobs in the name of others"


class Slurm:
    """The cluster's files, its clients, and its nodes, which can be made to die."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, folder / "slurm.conf"
        for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        (folder / "munge").chmod(0o711)
        (folder / "munge" / "key").write_bytes(os.urandom(1024))
        (folder / "munge" / "key").chmod(0o400)
        name, nodes = socket.gethostname().split(".")[0], []
        for node in NODES:
            nodes.append(f"NodeName={node} NodeHostname={name} NodeAddr={HOST} Port={free_port()} CPUs=2 RealMemory=4000")
        text = CONFIG.format(name=name, host=HOST, port=free_port(), folder=folder, nodes="\n".join(nodes))
        self.config.write_text(text)
        self._daemons: dict[str, tuple[contextlib.ExitStack, int]] = {}

    def client(self, *command: str, check: bool = True) -> str:
        """What a client of Slurm prints."""
        env = {**os.environ, "SLURM_CONF": str(self.config)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
        return done.stdout.strip()

    def start(self, name: str, *command: str, ready: Callable[[], bool]) -> None:
        """Start a daemon in the foreground."""
        env = {"SLURM_CONF": str(self.config), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
        stack = contextlib.ExitStack()
        program = shutil.which(command[0], path=env["PATH"]) or command[0]
        pid = stack.enter_context(server([program, *command[1:]], self.folder / f"{name}.log", ready, env=env))
        self._daemons[name] = (stack, pid)

    def start_node(self, node: str) -> None:
        """Start a node's daemon; ready when the cluster would give it work."""
        self.start(node, "slurmd", "-D", "-N", node, ready=lambda: self._serves(node))

    def _serves(self, node: str) -> bool:
        """Whether the cluster gives a node work; one that was declared dead is let back in, if it is not already."""
        state = self.state_of(node)
        if state.startswith("down"):
            self.client("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        return state in ("idle", "alloc", "mix", "comp")

    def state_of(self, node: str) -> str:
        """A node's state, in one word."""
        return self.client("sinfo", "-h", "-N", "-n", node, "-o", "%t", check=False)

    def stop(self, name: str) -> None:
        """End a daemon."""
        self._daemons.pop(name)[0].close()

    def kill_node(self, node: str) -> None:
        """Make a node die with all that runs on it, and let the cluster know at once."""
        for pid in (self._daemons[node][1], *self._processes_of(node)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.client("scontrol", "update", f"nodename={node}", "state=down", "reason=killed")
        self.stop(node)

    def _processes_of(self, node: str) -> list[int]:
        """The steps' daemons of a node, and what they started; the environment of the latter names cluster and node."""
        daemons, tasks = [], []
        wanted = {f"SLURM_CONF={self.config}".encode(), f"SLURMD_NODENAME={node}".encode()}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                    tasks.append(int(folder.name))
                    parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                    if Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd"):
                        daemons.append(parent)
        return [*daemons, *tasks]

    def job(self, number: str) -> dict[str, str]:
        """What the controller says of a job."""
        line = self.client("scontrol", "show", "job", "-o", number).splitlines()[0]
        return dict(re.findall(r"(\w+)=(\S*)", line))

    def wait(self, number: str, *states: str, seconds: float = 60) -> dict[str, str]:
        """Wait until a job is in one of the states; a job that waits for its second try is let go soon."""
        end = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] not in states:
            # 22.05 holds whatever is queued again for two minutes. In the very second of its end a node would refuse it.
            if job["JobState"] == "PENDING" and job["Restarts"] != "0" and job["Reason"] in ("BeginTime", "None"):
                time.sleep(2)
                self.client("scontrol", "update", f"jobid={number}", "StartTime=now", check=False)
            if time.monotonic() > end:
                raise TimeoutError(f"job {number}: {job['JobState']} ({job['Reason']}), not {' or '.join(states)}")
            time.sleep(0.1)
        return job

    def close(self) -> None:
        """Cancel all jobs, wait for their processes, and end the daemons."""
        if "slurmctld" in self._daemons:
            self.client("scancel", "--user=root", check=False)
            end = time.monotonic() + 10
            while self.client("squeue", "-h", check=False) and time.monotonic() < end:
                time.sleep(0.1)
        for name in reversed(list(self._daemons)):
            self.stop(name)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """The cluster while the body runs."""
    slurm, munge = Slurm(folder), folder / "munge"
    given = [f"--{name}-file={munge / name}" for name in ("key", "log", "pid", "seed")]
    try:
        # --force: other users may write below the folder in which temporary folders lie.
        start = ("munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *given)
        slurm.start("munged", *start, ready=(munge / "socket").exists)
        slurm.start("slurmctld", "slurmctld", "-D", ready=lambda: "UP" in slurm.client("scontrol", "ping", check=False))
        for node in NODES:
            slurm.start_node(node)
        yield slurm
    finally:
        slurm.close()

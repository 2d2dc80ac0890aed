"""The argument list and environment of one worker process group: pure functions, nothing is started here.

Ranks meet on a port that the kernel chooses, on the loopback address, so that runs side by side never collide and an
odd host name does no harm.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

from pipeline.chain import StageSpec
from pipeline.config import LaunchConfig
from pipeline.errors import ConfigError
from pipeline.records import record

__all__ = [
    "JobSpec",
    "Meeting",
    "Resources",
    "agent_job",
    "count_gpus",
    "loading_environment",
    "resources",
    "stage_job",
    "worker_job",
]


@record
class Resources:
    """What this machine gives a stage."""

    ranks: int
    threads: int
    gpus: int
    cores: int


@record
class Meeting:
    """Where and how the agents of one attempt at a stage meet, and this node's part in it."""

    backend: str
    """`c10d` or `static`."""
    endpoint: str
    """HOST:PORT on the node that leads."""
    name: str
    """Of the attempt: agents of an earlier one must not meet it."""
    nodes: int
    min_nodes: int
    rank: int
    """Of this node; the one that leads has 0."""
    address: str
    """Of this node."""
    interface: str
    restarts: int


@record
class JobSpec:
    """One process to start: an argument list, never a shell line, and its whole environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


def count_gpus(env: Mapping[str, str]) -> int:
    """GPUs that the ranks may use: those of `nvidia-smi -L`, limited by CUDA_VISIBLE_DEVICES; none with a CPU torch."""
    tool = shutil.which("nvidia-smi", path=env.get("PATH"))
    if tool is None or _torch_is_for_cpu():
        return 0
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    present = sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0
    if "CUDA_VISIBLE_DEVICES" not in env:
        return present
    chosen = [item.strip() for item in env["CUDA_VISIBLE_DEVICES"].split(",") if item.strip()]
    # CUDA ignores every device after the first invalid one; -1 is the usual way to write "none".
    return min(present, chosen.index("-1") if "-1" in chosen else len(chosen))


def _torch_is_for_cpu() -> bool:
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def resources(launch: LaunchConfig, env: Mapping[str, str] | None = None) -> Resources:
    """Ranks and threads for this machine: all GPUs, else two ranks, else one on a single core.

    Raises:
        ConfigError: more ranks than GPUs; two ranks on one GPU cannot form an NCCL group.
    """
    gpus, cores = count_gpus(os.environ if env is None else env), len(os.sched_getaffinity(0))
    ranks = launch.ranks or gpus or min(2, cores)
    if gpus and ranks > gpus:
        raise ConfigError(f"launch.ranks: {ranks} ranks on {gpus} GPUs", "use at most one rank per GPU, or CUDA_VISIBLE_DEVICES=")
    return Resources(ranks=ranks, threads=launch.threads or max(1, cores // ranks), gpus=gpus, cores=cores)


def _environment(base: Mapping[str, str], machine: Resources, threads: int, interface: str = "lo") -> dict[str, str]:
    bin_folder = os.path.dirname(sys.executable)
    env = {
        **base,
        "OMP_NUM_THREADS": str(threads),
        # A file called torch.py in the user's folder must not shadow the real one.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        # Weights and data sets come from the configuration, never from a hub at run time.
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # ninja, which DeepSpeed's compiled ops ask for by name, lies beside the interpreter.
        "PATH": os.pathsep.join([bin_folder, base.get("PATH", os.defpath)]),
    }
    if not machine.gpus:
        env["DS_ACCELERATOR"] = "cpu"
        # Each step takes and returns hundreds of megabytes: in large pages the kernel clears them in a third of the time.
        env.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    # Left to themselves both libraries may choose an interface that other nodes cannot reach.
    if interface and not machine.gpus:
        env["GLOO_SOCKET_IFNAME"] = interface
    elif interface and interface != "lo":
        env["NCCL_SOCKET_IFNAME"] = env["GLOO_SOCKET_IFNAME"] = interface
    # The agent's own LOGLEVEL stays: launch.worker reads from its lines how a rank ended.
    env.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    return env


def loading_environment(machine: Resources, *, compiles: bool) -> dict[str, str]:
    """That of a process that loads what stages load, and computes nothing.

    Args:
        machine: ranks and cores.
        compiles: whether models are compiled; see `pipeline.__main__`.
    """
    env = _environment(os.environ, machine, machine.cores)
    # What asks for a GPU while it is loaded must not start CUDA, which would not survive a fork.
    env.update({"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "DS_ACCELERATOR": "cuda"} if machine.gpus else {})
    return env if compiles else {"TORCHDYNAMO_DISABLE": "1", **env}


def stage_job(spec: StageSpec, folder: str, machine: Resources, *, threads: int = 0) -> JobSpec:
    """The process that runs one stage: torchrun's agent with its ranks, or a single worker.

    Args:
        spec: the stage.
        folder: the run folder.
        machine: ranks and cores.
        threads: `launch.threads`; a stage with one process takes all cores unless this is set.
    """
    worker = ("-m", "pipeline", spec.name, folder)
    if not spec.distributed:
        return JobSpec(argv=(sys.executable, *worker), env=_environment(os.environ, machine, threads or machine.cores))
    agent = (
        *(sys.executable, "-m", "torch.distributed.run"),
        # Looks for the end of its ranks, which its command waits for, oftener than ten times a second.
        *("--nnodes=1", f"--nproc-per-node={machine.ranks}", "--max-restarts=0", "--monitor-interval=0.02"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--rdzv-id=unlearn", "--local-addr=127.0.0.1"),
    )
    return JobSpec(argv=(*agent, *worker), env=_environment(os.environ, machine, machine.threads))


def agent_job(spec: StageSpec, folder: str, machine: Resources, meeting: Meeting, *, extra: Mapping[str, str]) -> JobSpec:
    """The process that runs one stage on one of several nodes: torchrun's agent with this node's ranks.

    What a meeting of nodes needs was found by trying: with c10d each agent must be told whether it is the host, and its own
    address, or ranks advertise names that do not resolve; and gloo needs the interface, or it binds to the loopback.

    Args:
        spec: a stage that is a process group.
        folder: the run folder, on storage that all nodes see.
        machine: ranks and threads of this node.
        meeting: of this attempt.
        extra: variables of the cluster, laid over the others.
    """
    host, _, port = meeting.endpoint.rpartition(":")
    start = (sys.executable, "-m", "torch.distributed.run")
    common = (f"--nproc-per-node={machine.ranks}", f"--max-restarts={meeting.restarts}", f"--local-addr={meeting.address}")
    if meeting.backend == "static":
        nodes = f"--nnodes={meeting.nodes}"
        meet: tuple[str, ...] = (nodes, f"--node-rank={meeting.rank}", f"--master-addr={host}", f"--master-port={port}")
    else:
        least = f"{meeting.min_nodes}:" if meeting.min_nodes < meeting.nodes else ""
        # Agents start at about the same time; the last call is how long a smaller group waits for a node that is late.
        terms = f"is_host={int(meeting.rank == 0)},join_timeout=600,last_call_timeout=10"
        meet = (
            *(f"--nnodes={least}{meeting.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={meeting.endpoint}"),
            *(f"--rdzv-id={meeting.name}", f"--rdzv-conf={terms}"),
        )
    env = _environment(os.environ, machine, machine.threads, meeting.interface)
    # A batch system's warning must make the agent send its ranks SIGTERM, so that they save; by itself it would kill it.
    env["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    # By default all attempts share one store, and a rank that was started again can read the address that its peer had in the
    # attempt before: it then fails at once, or waits until the time limit (seen with torch 2.13).
    env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    worker = ("-m", "pipeline", spec.name, folder)
    return JobSpec(argv=(*start, *meet, *common, *worker), env={**env, **extra})


def worker_job(act: str, file: str, machine: Resources) -> JobSpec:
    """The single process that carries out an act: `check` a configuration file, or one of `pipeline.orders.ACTS`."""
    argv = (sys.executable, "-m", "pipeline", act, file)
    return JobSpec(argv=argv, env=_environment(os.environ, machine, machine.cores))

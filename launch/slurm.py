"""A stage, or an array of tasks, as a batch script that a person can read and send by hand: pure functions, nothing is sent.

What was found by trying, and what the scripts rest on:

- Slurm's warning (`--signal=USR1@T` without `B:`) reaches the processes that srun started, not the batch shell. They save
  and end with 75; srun ends with the highest code; then the shell queues the job again.
- SIGTERM, at the time limit or from `scancel`, reaches the shell too. It has a trap, so that it lives to read srun's code.
- `scontrol requeue` also brings back a job that was just cancelled, so the shell asks for the job's state first.
- `--no-kill` would let a job go on without a node that died; but when that was its first, the job stays RUNNING for ever,
  without its shell. So a node's death ends the job, and Slurm queues it again.
- From 22.05 on srun does not take `--cpus-per-task` from sbatch, and must be told again.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Sequence

from launch.cluster import ClusterConfig
from launch.spec import StageJob
from pipeline.errors import ConfigError
from pipeline.records import record

__all__ = ["TASK", "render", "render_array", "submit_words"]

TASK = "\x00"
"""In the words of an array's command: the number of the task. No word of a command line can hold it."""
EARLY_SECONDS = 60
"""Slurm may give its warning so much earlier than it was asked to."""
AGAIN = (75, 128 + 1, 128 + 9, 128 + 10, 128 + 15)
"""Codes after which a job goes on when it is run again: it saved its state, or SIGHUP, KILL, USR1 or TERM ended it."""
OWNED_BY_BASH = re.compile(
    r"BASH.*|SHELLOPTS|DIRSTACK|EPOCH.*|E?UID|PPID|GROUPS|HISTCMD|LINENO|OPTIND|S?RANDOM|SECONDS|FUNCNAME|PIPESTATUS|_"
)
OWNED_BY_SLURM = re.compile(r"SLURM_(JOB_ID|JOBID|RESTART_COUNT|NODEID|PROCID|ARRAY_.*)|SLURMD_NODENAME")
REQUEUE = """
# Another try, if it asks for one and the job was not cancelled: then it is neither running nor at its time limit.
job={job}
case $code in
{codes})
    facts=$(scontrol show job -o "$job")
    case ${{facts%% Command=*}} in
    *' JobState=RUNNING '* | *' Reason=TimeLimit '*)
        if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ]; then
            echo "ended with $code: queued again" && scontrol requeue "$job" && exit "$code"
        else
            echo "ended with $code: not queued again, after {requeues} times" >&2
        fi
        ;;
    esac
    ;;
esac
exit "$code"
"""


@record
class _Ask:
    """What a script asks of Slurm."""

    name: str
    log: str
    chdir: str
    nodes: int
    cpus: int
    gpus: int
    memory_gib: int
    minutes: int
    array: int = 0


def render(job: StageJob, cluster: ClusterConfig, *, folder: str, name: str, log: str, chdir: str, python: str) -> str:
    """The batch script of one stage.

    Args:
        job: the stage and what it asks for.
        cluster: the cluster.
        folder: the run folder, on any storage that the nodes see.
        name: of the run; the job is called NAME.STAGE.
        log: file that the job's output is added to.
        chdir: folder in which the job begins; relative paths of the run are relative to it.
        python: interpreter with this package on the nodes.

    Raises:
        ConfigError: a text with a line break or a control character, a variable that belongs to bash or to Slurm, or a time
            limit that the warning leaves nothing of.
    """
    ask = _Ask(
        name=f"{name}.{job.stage}",
        log=log,
        chdir=chdir,
        nodes=job.nodes,
        cpus=job.cpus_per_node,
        gpus=job.gpus_per_node,
        memory_gib=job.memory_gib,
        minutes=job.minutes,
    )
    needs = f" after {', '.join(job.needs)}" if job.needs else ""
    comment = f"Stage {job.stage} of run {name}{needs}: {job.title}."
    return _script(ask, cluster, comment, [python, "-P", "-m", "launch", "stage", folder, job.stage])


def render_array(
    cluster: ClusterConfig,
    *,
    name: str,
    title: str,
    command: Sequence[str],
    tasks: int,
    gpus: int,
    log: str,
    chdir: str,
    python: str,
) -> str:
    """The batch script of an `unlearn` command on one node, or of an array of `tasks` of them.

    Args:
        cluster: the cluster.
        name: of the job.
        title: what it does.
        command: the words after `unlearn`; `TASK` in a word stands for the number of the task.
        tasks: how many; 0: no array.
        gpus: of the node.
        log: see `render`; a name for each task, where there are several, is made of it.
        chdir: see `render`.
        python: see `render`.

    Raises:
        ConfigError: as `render`.
    """
    node = cluster.node
    ask = _Ask(
        name=name,
        log=log,
        chdir=chdir,
        nodes=1,
        cpus=node.cpus,
        gpus=gpus,
        memory_gib=node.memory_gib,
        minutes=cluster.slurm.minutes,
        array=tasks,
    )
    return _script(ask, cluster, f"{name}: {title}.", [python, "-P", "-m", "launch", *command])


def submit_words(file: str, after: Sequence[str], behind: Sequence[str] = ()) -> list[str]:
    """The command that sends a script.

    Args:
        file: the script.
        after: jobs that must have ended well; if one of them does not, this one is cancelled.
        behind: jobs that must have ended, in whatever way.
    """
    kinds = [f"{kind}:{':'.join(jobs)}" for kind, jobs in (("afterok", after), ("afterany", behind)) if jobs]
    return ["sbatch", "--parsable", *([f"--dependency={','.join(kinds)}", "--kill-on-invalid-dep=yes"] if kinds else []), file]


def _script(ask: _Ask, cluster: ClusterConfig, comment: str, command: Sequence[str]) -> str:
    _refuse_short(ask, cluster)
    environment = dict(sorted(cluster.environment.items()))
    texts = [ask.name, ask.log, ask.chdir, comment, cluster.container, *cluster.mounts, *cluster.modules]
    words = [word.replace(TASK, "") for word in command] if ask.array else command
    for text in [*texts, *words, *environment, *environment.values()]:
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
            raise ConfigError(f"{text!r}: a job file cannot hold line breaks or control characters", "choose another text")
    for variable in environment:
        if OWNED_BY_BASH.fullmatch(variable) or OWNED_BY_SLURM.fullmatch(variable):
            raise ConfigError(f"environment: {variable}: a variable that a job sets itself", "leave it out")
    # A login shell is one that surely knows `module`.
    lines = [f"#!/bin/bash{' -l' if cluster.modules else ''}", *(f"#SBATCH {word}" for word in _asked(ask, cluster))]
    lines += ["", f"# {comment}", "# Written by unlearn; it can be sent by hand.", ""]
    before = [f"module load {shlex.quote(module)} || exit 2" for module in cluster.modules]
    before += [f"export {variable}={shlex.quote(text)}" for variable, text in environment.items()]
    lines += [*before, ""] if before else []
    lines += ["trap : USR1 TERM", *_srun(ask, cluster, command), "code=$?"]
    job = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if ask.array else "$SLURM_JOB_ID"
    again = REQUEUE.format(codes=" | ".join(map(str, AGAIN)), job=job, requeues=cluster.slurm.requeues)
    return "\n".join(lines) + "\n" + again


def _refuse_short(ask: _Ask, cluster: ClusterConfig) -> None:
    """ConfigError for a job that would be warned as soon as it begins, and would be queued again without having done a thing."""
    least = -(-(cluster.slurm.grace_seconds + 2 * EARLY_SECONDS) // 60)
    if ask.minutes < least:
        message = f"{ask.name}: {ask.minutes} minutes, and told to leave {cluster.slurm.grace_seconds} s before their end"
        raise ConfigError(message, f"give it {least} minutes or more, or a smaller slurm.grace_seconds")


def _asked(ask: _Ask, cluster: ClusterConfig) -> list[str]:
    slurm = cluster.slurm
    log = _no_pattern(ask.log)
    words = {
        "job-name": ask.name,
        "chdir": ask.chdir,
        "output": f"{log.removesuffix('.log')}-%a.log" if ask.array else log,
        "open-mode": "append",
        "array": f"0-{ask.array - 1}" if ask.array else "",
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "reservation": slurm.reservation,
        "time": f"{ask.minutes // 60}:{ask.minutes % 60:02d}:00",
        "signal": f"USR1@{slurm.grace_seconds}",
        "nodes": str(ask.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(ask.cpus or ""),
        "gpus-per-node": str(ask.gpus or ""),
        "mem": f"{ask.memory_gib}G" if ask.memory_gib else "",
    }
    flags = ["--requeue", *(["--exclusive"] if slurm.exclusive else [])]
    return [f"--{name}={_directive(text)}" for name, text in words.items() if text] + flags


def _srun(ask: _Ask, cluster: ClusterConfig, command: Sequence[str]) -> list[str]:
    """The srun command, a line for each kind of word."""
    size = [f"--nodes={ask.nodes}", f"--ntasks={ask.nodes}", "--ntasks-per-node=1"]
    size += [f"--cpus-per-task={ask.cpus}"] if ask.cpus else ["--cpu-bind=none"]  # or a task might be bound to one core
    size += [f"--gpus-per-node={ask.gpus}"] if ask.gpus else []
    # Ranks find each other without MPI; how the nodes' parts end is judged by themselves, not by who was first.
    manner = ["--mpi=none", "--export=ALL", "--kill-on-bad-exit=0", "--wait=0"]
    manner += ["--label"] if ask.nodes > 1 else []
    inside = [f"--container-image={cluster.container}"] if cluster.container else []
    inside += [f"--container-mounts={','.join(cluster.mounts)}"] if cluster.mounts else []
    words = " ".join(_with_task(word) for word in command)
    options = [" ".join(map(shlex.quote, line)) for line in (size, manner, inside) if line]
    return ["srun \\", *(f"    {line} \\" for line in options), f"    {words}"]


def _with_task(word: str) -> str:
    before, mark, after = word.partition(TASK)
    if not mark:
        return shlex.quote(word)
    return f'{before and shlex.quote(before)}"$SLURM_ARRAY_TASK_ID"{after and shlex.quote(after)}'


def _no_pattern(path: str) -> str:
    """A path in which Slurm replaces nothing; one with a backslash it takes as it is, but for doubled backslashes."""
    return path.replace("\\", "\\\\") if "\\" in path else path.replace("%", "%%")


def _directive(text: str) -> str:
    """A value after `#SBATCH --name=`, by Slurm's own rules of quoting: in double quotes, with backslashes."""
    if re.fullmatch(r"[A-Za-z0-9_.,:/@+%=-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

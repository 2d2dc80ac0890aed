"""Slurm's clients as one function: it numbers jobs, keeps their states, and answers as the real ones do, word for word."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

FACTS = (
    "JobId={job} JobName=x UserId=root(0) JobState={state} Reason={reason} Dependency=(null) Requeue=1 Restarts={restarts} "
    "BatchFlag=1 ExitCode={code} RunTime=00:00:00 Command={file} WorkDir=/ StdOut=/x.log"
)


class FakeSlurm:
    """Takes the place of `launch.queue._client`."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, str]] = {}
        self.commands: list[list[str]] = []
        self.refuse: dict[str, str] = {}
        """Names of scripts, and what sbatch says of them."""
        self.away = ""
        """What scontrol and squeue say instead of an answer."""
        self.loses = ""
        """Name of a script that is taken, but whose number does not come back."""

    def __call__(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.commands.append([*words])
        code, out, err = getattr(self, f"_{words[0]}")(list(words[1:]))
        return subprocess.CompletedProcess(words, code, out, err)

    def set(self, job: str, state: str, **more: str) -> None:
        """Let a job come into a state."""
        self.jobs[job].update(state=state, **{"reason": "None", **more})

    def forget(self) -> None:
        """As some minutes after the jobs' ends."""
        self.jobs.clear()

    def files(self) -> list[str]:
        """Names of the scripts that were sent."""
        return [Path(words[-1]).name for words in self.commands if words[0] == "sbatch"]

    def _sbatch(self, words: list[str]) -> tuple[int, str, str]:
        name = Path(words[-1]).name
        assert Path(words[-1]).is_file()
        if name in self.refuse:
            return 1, "", f"sbatch: error: {self.refuse[name]}\n"
        job = str(100 + len(self.jobs))
        waits = any(word.startswith("--dependency") for word in words)
        self.jobs[job] = {
            **{"job": job, "state": "PENDING", "reason": "Dependency" if waits else "Resources"},
            **{"restarts": "0", "code": "0:0", "file": words[-1]},
        }
        return (1, "", "sbatch: error: Socket timed out") if name == self.loses else (0, f"{job};lab\n", "")

    def _scontrol(self, words: list[str]) -> tuple[int, str, str]:
        if self.away:
            return 1, "", self.away
        facts = self.jobs.get(words[-1])
        return (0, FACTS.format(**facts) + "\n", "") if facts else (1, "", "slurm_load_jobs error: Invalid job id specified\n")

    def _squeue(self, words: list[str]) -> tuple[int, str, str]:
        if self.away:
            return 1, "", self.away
        queued = [facts for facts in self.jobs.values() if facts["state"] in ("PENDING", "RUNNING")]
        if "--me" in words:
            return 0, "".join(f"{facts['job']} {facts['file']}\n" for facts in queued), ""
        return 1, "", "slurm_load_jobs error: Invalid job id specified\n"

    def _scancel(self, words: list[str]) -> tuple[int, str, str]:
        for job in words:
            if self.jobs[job]["state"] in ("PENDING", "RUNNING"):
                self.set(job, "CANCELLED")
        return 0, "", ""

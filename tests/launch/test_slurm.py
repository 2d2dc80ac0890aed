"""Batch scripts: whole files as they are kept in `golden/`, no text that smuggles in a command, and when a job is queued again.

`UPDATE_GOLDEN=1` writes the golden files anew.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.cluster import ClusterConfig, read_cluster
from launch.slurm import AGAIN, TASK, render, render_array, submit_words
from launch.spec import StageJob, chain_of_jobs
from pipeline.config import resolve
from pipeline.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden"
EXTRAS = {
    "modules": ["cuda/12.4", "nccl"],
    "container": "/images/unlearn 2.sqsh",
    "mounts": ["/data:/data", "/scratch:/scratch"],
    "environment": {"NCCL_IB_HCA": "mlx5", "NOTE": "it's $HOME; `x`"},
    "python": "/opt/unlearn/bin/python",
    "slurm": {
        "partition": "gpu",
        "account": "team",
        "qos": "high",
        "constraint": "h100&ib",
        "reservation": "night",
        "exclusive": True,
    },
}
# What a shell or Slurm might take for its own, and anything else that is not a control character.
TEXT = st.text(
    st.one_of(st.sampled_from("'\"\\$`;&|<>(){}[]*?!#~% \u2028=-aé"), st.characters(exclude_categories=["C"])), max_size=30
)
VARIABLES = st.from_regex(r"\A[A-Z][A-Z0-9_]{0,8}\Z").filter(
    lambda name: name not in ("PATH", "LC_ALL", "LANG") and _is_free(name)
)


def _is_free(name: str) -> bool:
    return not name.startswith(("BASH", "SLURM", "LD_", "EPOCH", "LC_")) and name not in (
        *("UID", "EUID", "PPID", "GROUPS", "RANDOM", "SRANDOM", "SECONDS", "LINENO", "HISTCMD", "OPTIND", "FUNCNAME"),
        *("DIRSTACK", "SHELLOPTS", "PIPESTATUS", "EXECIGNORE"),
    )


def job(cluster: ClusterConfig, stage: str = "train") -> StageJob:
    """The job of a small run's stage."""
    config = resolve(str(GOLDEN / "run.yaml"))
    return next(job for job in chain_of_jobs(config, cluster) if job.stage == stage)


def script(cluster: ClusterConfig, stage: str = "train", **over: Any) -> str:
    """Its script, in a folder whose name needs quotes."""
    folder = "/data/my runs/small-0123abcd"
    words = {"folder": folder, "name": "small-0123abcd", "log": f"{folder}/logs/slurm-{stage}.log", "chdir": "/data"}
    return render(job(cluster, stage), cluster, **{**words, "python": cluster.python or "/venv/bin/python", **over})


def golden(name: str, text: str) -> None:
    """Compare with the file that is kept."""
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text()


@pytest.mark.parametrize(
    ("name", "cluster", "over", "stage"),
    [
        ("minimal.sbatch", "", {}, "train"),
        ("two-nodes.sbatch", "two_nodes", {}, "train"),
        ("h100.sbatch", "h100", EXTRAS, "train"),
        ("h100-one-process.sbatch", "h100", EXTRAS, "shard"),
    ],
)
def test_whole_files(name: str, cluster: str, over: dict[str, Any], stage: str) -> None:
    golden(name, script(read_cluster(cluster, over), stage))


def test_whole_file_of_an_array() -> None:
    command = ["index", "s3://bucket/tars/{00..99}.tar", "--out", "/data/my runs", "--task", f"{TASK}/8"]
    words = {"name": "index", "title": "an eighth of the index", "command": command, "tasks": 8, "gpus": 0}
    given = {"log": "/data/100%/index.log", "chdir": "/data", "python": "/venv/bin/python"}
    golden("array.sbatch", render_array(read_cluster(), **words, **given))


def run_script(text: str, folder: Path, *, code: int = 0, facts: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script with clients that only write down what they were given."""
    clients = folder / "clients"
    clients.mkdir(exist_ok=True)
    programs = {
        "srun": f'printf "%s\\0" "$@" >{folder}/argv; env -0 >{folder}/env; exit {code}',
        "module": f'printf "%s\\0" "$@" >>{folder}/modules',
        "scontrol": f'printf "%s\\n" "$*" >>{folder}/scontrol; [ "$1" = requeue ] || cat {folder}/facts',
    }
    for name, body in programs.items():
        (clients / name).write_text(f"#!/bin/bash\n{body}\n")
        (clients / name).chmod(0o755)
    for name in ("argv", "env", "modules", "scontrol"):
        (folder / name).unlink(missing_ok=True)
    (folder / "facts").write_text(facts)
    (folder / "job.sbatch").write_text(text)
    argv = ["/bin/bash", str(folder / "job.sbatch")]
    assert subprocess.run(["/bin/bash", "-n", argv[1]], check=False).returncode == 0, text
    given = {"PATH": f"{clients}:/usr/bin:/bin", "SLURM_JOB_ID": "17", **env}
    return subprocess.run(argv, capture_output=True, text=True, env=given, check=False)


def words_of(file: Path) -> list[str]:
    """NUL-terminated words."""
    return file.read_bytes().decode().split("\0")[:-1] if file.exists() else []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    folder=TEXT,
    name=TEXT,
    python=TEXT,
    environment=st.dictionaries(VARIABLES, TEXT, max_size=3),
    modules=st.lists(TEXT, max_size=2),
)
def test_no_text_is_more_than_a_text(
    tmp_path: Path, folder: str, name: str, python: str, environment: dict[str, str], modules: list[str]
) -> None:
    cluster = dataclasses.replace(
        read_cluster("two_nodes"), environment=environment, modules=tuple(modules), container=folder, mounts=(name, python)
    )
    text = script(cluster, folder=folder, name=name, log=f"/{folder}", chdir=f"/{name}", python=python)
    done = run_script(text, tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    argv = words_of(tmp_path / "argv")
    assert argv[-7:] == [python, "-P", "-m", "launch", "stage", folder, "train"]
    assert argv[:3] == ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    inside = [f"--container-image={folder}", f"--container-mounts={name},{python}"]
    assert argv[-9:-7] == (inside if folder else ["--label", inside[1]])
    seen = dict(word.partition("=")[::2] for word in words_of(tmp_path / "env"))
    assert {variable: seen.get(variable) for variable in environment} == environment
    assert words_of(tmp_path / "modules") == [word for module in modules for word in ("load", module)]
    assert not (tmp_path / "scontrol").exists()


@settings(max_examples=100, deadline=None)
@given(name=TEXT, folder=TEXT)
def test_slurm_reads_the_lines_that_are_its_own_as_they_were_meant(name: str, folder: str) -> None:
    text = script(read_cluster(), name=name, log=f"/{folder}", chdir=f"/{folder}")
    found = dict(_directives(text))
    assert found["job-name"] == f"{name}.train"
    assert found["chdir"] == f"/{folder}"
    assert _file_name(found["output"]) == f"/{folder}"


def _directives(text: str) -> list[tuple[str, str]]:
    """What Slurm's own parser makes of the lines: a backslash before a character stands for that, quotes keep spaces."""
    found = []
    for line in text.split("\n"):
        if not line.startswith("#"):
            break
        if not line.startswith("#SBATCH "):
            continue
        word, quote, escaped = "", "", False
        for letter in line.removeprefix("#SBATCH "):
            assert quote or letter not in " \t", line
            if escaped or ((letter != "\\" and letter not in ("'", '"')) or (quote and letter not in ("\\", quote))):
                word, escaped = word + letter, False
            elif letter == "\\":
                escaped = True
            else:
                quote = "" if quote else letter
        assert not quote and not escaped, line
        found.append(word.removeprefix("--").partition("=")[::2])
    return found


def _file_name(pattern: str) -> str:
    """What Slurm makes of the name of an output file that has no pattern in it."""
    if "\\" in pattern:
        return pattern.replace("\\\\", "\0").replace("\\", "").replace("\0", "\\")
    assert pattern.replace("%%", "").count("%") == 0
    return pattern.replace("%%", "%")


RUNNING = "JobId=17 JobName=x JobState=RUNNING Reason=None Restarts=0 Command=/x\n"
LATE = "JobId=17 JobName=x JobState=COMPLETING Reason=TimeLimit Restarts=0 Command=/x\n"
CANCELLED = "JobId=17 JobName=x JobState=COMPLETING Reason=None Restarts=0 Command=/x JobState=RUNNING Reason=TimeLimit \n"


@pytest.mark.parametrize(
    ("code", "facts", "restarts", "again"),
    [
        (0, RUNNING, "", False),
        (75, RUNNING, "", True),
        (75, RUNNING, "19", True),
        (75, RUNNING, "20", False),
        (75, LATE, "", True),
        (75, CANCELLED, "", False),
        (75, "", "", False),
        (138, RUNNING, "", True),
        (137, LATE, "1", True),
        (139, RUNNING, "", False),
        (1, RUNNING, "", False),
        (3, LATE, "", False),
    ],
)
def test_when_a_job_is_queued_again(tmp_path: Path, code: int, facts: str, restarts: str, again: bool) -> None:
    env = {"SLURM_RESTART_COUNT": restarts} if restarts else {}
    done = run_script(script(read_cluster()), tmp_path, code=code, facts=facts, **env)
    said = (tmp_path / "scontrol").read_text().splitlines() if (tmp_path / "scontrol").exists() else []
    assert done.returncode == code
    assert ("requeue 17" in said) == again
    assert said == (["show job -o 17", *(["requeue 17"] if again else [])] if code in AGAIN else [])
    assert ("queued again" in done.stdout) == again
    assert ("not queued again, after 20 times" in done.stderr) == (restarts == "20")


def test_an_array_speaks_of_its_own_task(tmp_path: Path) -> None:
    """`scontrol requeue` with the array's number would begin all of its tasks again."""
    words = {
        "command": ["index", "x", "--task", f"{TASK}/3"],
        "tasks": 3,
        "gpus": 0,
        "log": "/x.log",
        "chdir": "/",
        "python": "py",
    }
    text = render_array(read_cluster(), name="index", title="a third", **words)
    env = {"SLURM_ARRAY_JOB_ID": "15", "SLURM_ARRAY_TASK_ID": "2"}
    run_script(text, tmp_path, code=75, facts=RUNNING, **env)
    assert words_of(tmp_path / "argv")[-5:] == ["launch", "index", "x", "--task", "2/3"]
    assert (tmp_path / "scontrol").read_text().splitlines() == ["show job -o 15_2", "requeue 15_2"]


def test_a_module_that_does_not_load_ends_the_job(tmp_path: Path) -> None:
    cluster = read_cluster("", {"modules": ["cuda"]})
    (tmp_path / "clients").mkdir()
    text = script(cluster).replace("module load", "false")
    assert run_script(text, tmp_path).returncode == 2
    assert not (tmp_path / "argv").exists()


@pytest.mark.parametrize("where", ["folder", "name", "log", "chdir", "python"])
@pytest.mark.parametrize("text", ["a\nb", "\x1b[1m", "a\rb", "\x85", "\udcff"])
def test_a_line_break_is_refused(where: str, text: str) -> None:
    with pytest.raises(ConfigError, match="line breaks or control characters"):
        script(read_cluster(), **{where: text})


@pytest.mark.parametrize("variable", ["UID", "BASH_ENV", "RANDOM", "SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURMD_NODENAME", "_"])
def test_variables_of_bash_and_slurm_are_refused(variable: str) -> None:
    with pytest.raises(ConfigError, match=f"environment: {variable}: a variable that a job sets itself"):
        script(read_cluster("", {"environment": {variable: "x"}}))


def test_a_warning_that_comes_at_the_start_is_refused() -> None:
    with pytest.raises(ConfigError, match="give it 4 minutes or more") as caught:
        script(read_cluster("", {"slurm": {"minutes": 3}}))
    assert "small-0123abcd.train: 3 minutes, and told to leave 120 s before" in caught.value.message
    script(read_cluster("", {"slurm": {"minutes": 3, "grace_seconds": 60}}))


def test_a_command_waits_for_the_jobs_before_it() -> None:
    assert submit_words("/a b", []) == ["sbatch", "--parsable", "/a b"]
    words = ["sbatch", "--parsable", "--dependency=afterok:1:2", "--kill-on-invalid-dep=yes", "/a b"]
    assert submit_words("/a b", ["1", "2"]) == words
    assert submit_words("/a b", ["1"], ["2", "3"])[2] == "--dependency=afterok:1,afterany:2:3"

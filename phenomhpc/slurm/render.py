"""The batch scripts, as pure text.  What is printed by --dry-run is what is submitted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from phenomhpc.errors import TASK_REQUEUE
from phenomhpc.runs import RunPaths
from phenomhpc.slurm.plan import Chunk, Submission

# Seconds between the signal and the end: time for a checkpoint.  Slurm may signal up to a minute early.
SIGNAL_LEAD_S = 120
SHORT_LEAD_S = 20
SHORT_LIMIT_MINUTES = 5
STEWARD_MEM_MB = 2048
STEWARD_MINUTES = 60


def _option(name: str, value: object) -> str:
    return f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={value}"


def _options(options: dict[str, object]) -> list[str]:
    return [_option(name, value) for name, value in options.items() if value is not None]


def _place(submission: Submission) -> dict[str, object]:
    cluster = submission.cluster
    return {"partition": cluster.partition, "account": cluster.account, "qos": cluster.qos}


def render(submission: Submission, chunk: Chunk, command: str) -> str:
    """The script of one chunk.  `command` is what each task runs (submitit's)."""
    paths, cluster = RunPaths(submission.run_root), submission.cluster
    attempt = paths.attempt(submission.attempt)
    limit = cluster.time_minutes
    lead = SHORT_LEAD_S if limit is not None and limit <= SHORT_LIMIT_MINUTES else SIGNAL_LEAD_S
    array = f"0-{chunk.size - 1}"
    if cluster.throttle:
        # The throttle is for the whole run: what other chunks may take is not this one's.
        array += f"%{max(1, cluster.throttle // len(submission.chunks))}"
    options = _options(
        {
            "job-name": submission.run_id,
            **_place(submission),
            "nodes": submission.num_nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": cluster.cpus_per_task,
            "gpus-per-node": cluster.gpus_per_node or None,
            "mem": f"{cluster.mem_mb}M" if cluster.mem_mb else None,
            "time": limit,
            "array": None if submission.gang else array,
            "signal": f"B:USR2@{lead}",
            "requeue" if cluster.requeue else "no-requeue": True,
            "open-mode": "append",
            "output": paths.log_file("batch-%j" if submission.gang else "batch-%A-%a", submission.attempt),
            "chdir": submission.run_root,
        }
    )
    stop_files = (
        [attempt.stop_file(node) for node in range(submission.num_tasks)]
        if submission.gang
        else [Path(f"{attempt.root}/stop-$task")]
    )
    log = paths.log_file("%t" if submission.gang else "$task", submission.attempt)
    cpus = f"--cpus-per-task={cluster.cpus_per_task} " if cluster.cpus_per_task else ""
    job = "$SLURM_JOB_ID" if submission.gang else "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    task = "0" if submission.gang else f"$(({chunk.offset} + SLURM_ARRAY_TASK_ID))"
    return f"""#!/bin/bash
{chr(10).join(options)}
# {submission.kind}, run {submission.run_id}, attempt {submission.attempt}, {_what(submission, chunk)}
export PYTHONPATH={shlex.quote(str(submission.code))} PYTHONUNBUFFERED=1 SUBMITIT_EXECUTOR=slurm
task={task}

# Slurm's warning (time limit, preemption) becomes a stop file: the task commits at its next boundary
# and leaves with {TASK_REQUEUE}.
stop() {{ touch {" ".join(_quoted(path) for path in stop_files)}; }}
trap stop USR2

srun --kill-on-bad-exit=1 --unbuffered {cpus}--open-mode=append --output={_quoted(log)} {command} &
step=$!
wait "$step"; code=$?
# A trapped signal ends `wait`, not the step.
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done
# Exactly this element goes back into the queue; the others are not touched.
if [ "$code" -eq {TASK_REQUEUE} ]; then scontrol requeue "{job}"; fi
exit "$code"
"""


def _quoted(path: Path) -> str:
    """Quoted for the shell, but for the script's own $task."""
    escaped = re.sub(r'(["`$\\])', r"\\\1", str(path)).replace("\\$task", "$task")
    return f'"{escaped}"'


def _what(submission: Submission, chunk: Chunk) -> str:
    if submission.gang:
        return f"a gang of {submission.num_tasks} node(s)"
    return f"tasks {chunk.offset} to {chunk.offset + chunk.size - 1} of {submission.num_tasks}"


def render_steward(submission: Submission, dependency: str | None) -> str:
    """The script of the one-CPU job that sees what became of an attempt and starts what comes next."""
    paths = RunPaths(submission.run_root)
    options = _options(
        {
            "job-name": f"steward-{submission.run_id}",
            **_place(submission),
            "nodes": 1,
            "ntasks": 1,
            "cpus-per-task": 1,
            "mem": f"{STEWARD_MEM_MB}M",
            "time": STEWARD_MINUTES,
            "dependency": dependency,
            "kill-on-invalid-dep": "yes" if dependency else None,
            "requeue": True,
            "open-mode": "append",
            "output": paths.log_file("steward", submission.attempt),
            "chdir": submission.run_root,
        }
    )
    command = f"{shlex.quote(submission.python)} -u -m phenomhpc.jobs.steward {shlex.quote(str(submission.run_root))}"
    return f"""#!/bin/bash
{chr(10).join(options)}
export PYTHONPATH={shlex.quote(str(submission.code))} PYTHONUNBUFFERED=1
exec {command}
"""

"""The batch scripts, as pure text.  What is printed by --dry-run is what is submitted."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from phenomhpc.errors import TASK_REQUEUE
from phenomhpc.runs import RunPaths
from phenomhpc.slurm.container import PYTHON, wrapping_of
from phenomhpc.slurm.inside import BEGAN, LEAD, LIMIT
from phenomhpc.slurm.plan import Submission
from phenomhpc.slurm.window import Chunk

# How long the other nodes of a gang may go on after the first has ended: to leave on their own, with their last words.
# A node whose task cannot be started has ended too: its peers wait for it in the gate, and must live to say so.
GANG_WAIT_S = 60
# The first word of the comment of every job of ours.
MARK = "phenomhpc"


def _option(name: str, value: object) -> str:
    return f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"


def _options(options: dict[str, object]) -> list[str]:
    return [_option(name, value) for name, value in options.items() if value is not None]


def _place(submission: Submission) -> dict[str, object]:
    cluster = submission.cluster
    return {"partition": cluster.partition, "account": cluster.account, "qos": cluster.qos}


def command_of(submission: Submission, chunk: Chunk) -> str:
    """What each task runs."""
    root = shlex.quote(str(submission.run_root))
    inside = wrapping_of(submission.cluster, submission.folders)
    python = PYTHON if submission.cluster.container else submission.python
    return f"{inside.before}{python} -u -m phenomhpc.jobs.slurm_task {root} {submission.attempt} {chunk.offset}"


def comment_of(attempt: int, chunk: Chunk) -> str:
    """Tells which part of a run a job is, even when its submitter was killed before it could write that down."""
    return f"{MARK} attempt={attempt} chunk={chunk.number} offset={chunk.offset} size={chunk.size}"


def render(submission: Submission, chunk: Chunk) -> str:
    """The script of one chunk."""
    paths, cluster = RunPaths(submission.run_root), submission.cluster
    attempt = paths.attempt(submission.attempt)
    array = f"0-{chunk.size - 1}"
    if chunk.throttle:
        array += f"%{chunk.throttle}"
    options = _options(
        {
            "job-name": submission.run_id,
            "comment": comment_of(submission.attempt, chunk),
            **_place(submission),
            "nodes": _nodes(submission),
            "no-kill": submission.elastic or None,
            "exclude": ",".join(submission.exclude) or None,
            # With it Slurm would give a range of nodes its least, however many are idle.
            "ntasks-per-node": None if submission.elastic else 1,
            "cpus-per-task": submission.cpus_per_task,
            "gpus-per-node": cluster.gpus_per_node or None,
            "mem": f"{cluster.mem_mb}M" if cluster.mem_mb else None,
            "time": cluster.time_minutes,
            "array": None if submission.gang else array,
            "signal": f"B:USR2@{submission.signal_lead_s}",
            "requeue" if cluster.requeue else "no-requeue": True,
            "open-mode": "append",
            "output": paths.log_file("batch-%j" if submission.gang else "batch-%A-%a", submission.attempt),
            "chdir": submission.run_root,
        }
    )
    stop_files = (
        f'"{_escaped(attempt.root)}/stop-"{{0..{submission.num_tasks - 1}}}'
        if submission.gang
        else (f'"{_escaped(attempt.root)}/stop-$task"')
    )
    log = f"{_escaped(paths.logs)}/{paths.log_file('%t' if submission.gang else '$task', submission.attempt).name}"
    # srun does not take this over from sbatch (Slurm 22.05 and later).
    cpus = f"--cpus-per-task={submission.cpus_per_task} " if submission.cpus_per_task else ""
    # A node that is asked to stop must not kill its peers, which are about to do the same.
    together = f"--kill-on-bad-exit=0 --wait={GANG_WAIT_S + math.ceil(cluster.gate_wait_s)} " if submission.gang else ""
    if submission.elastic:  # one that is lost has ended, and the others go on
        together = "--kill-on-bad-exit=0 --no-kill --wait=0 "
    together += wrapping_of(cluster, submission.folders).srun
    job = "$SLURM_JOB_ID" if submission.gang else "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    task = "0" if submission.gang else f"$(({chunk.offset} + SLURM_ARRAY_TASK_ID))"
    return f"""#!/bin/bash
{chr(10).join(options)}
# {submission.kind}, run {submission.run_id}, attempt {submission.attempt}, {_what(submission, chunk)}
{_environment(submission)}
export {BEGAN}=$(date +%s) {LIMIT}={(submission.limit_minutes or 0) * 60} {LEAD}={submission.signal_lead_s}
task={task}

# Slurm's warning (time limit, preemption) becomes a stop file: the task commits at its next boundary
# and leaves with {TASK_REQUEUE}.
stop() {{ touch {stop_files}; }}
trap stop USR2

srun --unbuffered {together}{cpus}--ntasks-per-node=1 --open-mode=append --output="{log}" {command_of(submission, chunk)} &
step=$!
wait "$step"; code=$?
# A trapped signal ends `wait`, not the step.
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done
# Exactly this element goes back into the queue; the others are not touched.
if {_wants_requeue(submission)}; then scontrol requeue "{job}"; fi
exit "$code"
"""


def _nodes(submission: Submission) -> str:
    return f"{submission.cluster.min_nodes}-{submission.num_nodes}" if submission.elastic else str(submission.num_nodes)


def _wants_requeue(submission: Submission) -> str:
    """The shell's condition.  A step that lost a node has that node's exit code: an elastic gang says it by a file as well."""
    by_code = f'[ "$code" -eq {TASK_REQUEUE} ]'
    if not submission.elastic:
        return by_code
    attempt = RunPaths(submission.run_root).attempt(submission.attempt)
    name = _escaped(attempt.rounds(0).requeue).replace("rounds-0", "rounds-${SLURM_RESTART_COUNT:-0}")
    return f'{by_code} || [ -e "{name}" ]'


def _escaped(path: Path) -> str:
    """For use inside the shell's double quotes."""
    return re.sub(r'(["`$\\])', r"\\\1", str(path))


def _what(submission: Submission, chunk: Chunk) -> str:
    if submission.gang:
        return f"a gang of {submission.num_tasks} node(s)"
    return f"tasks {chunk.offset} to {chunk.offset + chunk.size - 1} of {submission.num_tasks}"


def _environment(submission: Submission) -> str:
    """The code that was submitted comes first; what the submitting shell had on its path stays behind it."""
    return f"export PYTHONPATH={shlex.quote(str(submission.code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONUNBUFFERED=1"


def render_steward(submission: Submission, after: Sequence[str], begin_s: int = 0, *, any_of: bool = False) -> str:
    """The script of the one-CPU job that sees what became of an attempt and starts what comes next.

    after: ids of the jobs it waits for, until all have ended, or any (any_of: there is then room for more);
    begin_s: it starts no earlier than so many seconds from now.
    """
    paths = RunPaths(submission.run_root)
    options = _options(
        {
            "job-name": f"steward-{submission.run_id}",
            **_place(submission),
            "nodes": 1,
            "ntasks": 1,
            "cpus-per-task": 1,
            "mem": f"{submission.steward_mem_mb}M",
            "time": submission.steward_minutes,
            "begin": f"now+{begin_s}" if begin_s else None,
            "dependency": ("?" if any_of else ",").join(f"afterany:{job}" for job in after) or None,
            "requeue": True,
            "open-mode": "append",
            "output": paths.log_file("steward", submission.attempt),
            "chdir": submission.run_root,
        }
    )
    command = f"{submission.python} -u -m phenomhpc.jobs.steward {shlex.quote(str(submission.run_root))}"
    return f"""#!/bin/bash
{chr(10).join(options)}
{_environment(submission)}
exec {command}
"""


def wants_mail(mail_type: str | None, *, failed: bool) -> bool:
    """Is a mail asked for when a run ends so?"""
    words = set((mail_type or "").split(","))
    return "ALL" in words or ("FAIL" if failed else "END") in words


def render_notice(submission: Submission, code: int) -> str:
    """The script of the job whose own end, with the run's exit code, is what Slurm mails: once per run, whatever its tasks did."""
    options = _options(
        {
            "job-name": f"{submission.run_id}-{'failed' if code else 'finished'}",
            **_place(submission),
            "nodes": 1,
            "ntasks": 1,
            "cpus-per-task": 1,
            "mem": "64M",
            "time": 1,
            "mail-type": "FAIL" if code else "END",
            "mail-user": submission.cluster.mail_user,
            "no-requeue": True,
            "output": "/dev/null",
        }
    )
    return f"#!/bin/bash\n{chr(10).join(options)}\nexit {code}\n"

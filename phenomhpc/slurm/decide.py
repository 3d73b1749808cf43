"""From what was seen to what is done next: pure functions and one table.

| class | seen as | decision |
|---|---|---|
| node_fail | Slurm: NODE_FAIL, BOOT_FAIL, or a task that vanished without a word | next attempt |
| timeout, preempted | Slurm: TIMEOUT, PREEMPTED; event `preempted` | next attempt, which goes on from what was committed |
| oom | Slurm: OUT_OF_MEMORY; MemoryError | next attempt with twice the memory, where it was given |
| cancelled | Slurm: CANCELLED | stop, stays cancelled |
| bad_input, code_error, hang, no_progress | event `failed` | stop, with the message and the log |

Slurm requeues node failures and preempted jobs by itself; an attempt is counted only when its jobs are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from phenomhpc.runs import Event
from phenomhpc.slurm.queue import JobState


class FailureClass(StrEnum):
    """Why a task did not finish."""

    OOM = "oom"
    TIMEOUT = "timeout"
    NODE_FAIL = "node_fail"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    BAD_INPUT = "bad_input"
    HANG = "hang"
    NO_PROGRESS = "no_progress"
    CODE_ERROR = "code_error"


class Action(StrEnum):
    """What the steward does."""

    WAIT = "wait"
    FINISH = "finish"
    NEXT_ATTEMPT = "next_attempt"
    MORE_MEMORY = "more_memory"
    STOP = "stop"
    STAY_CANCELLED = "stay_cancelled"


DECISIONS: Mapping[FailureClass, Action] = {
    FailureClass.OOM: Action.MORE_MEMORY,
    FailureClass.TIMEOUT: Action.NEXT_ATTEMPT,
    FailureClass.NODE_FAIL: Action.NEXT_ATTEMPT,
    FailureClass.PREEMPTED: Action.NEXT_ATTEMPT,
    FailureClass.CANCELLED: Action.STAY_CANCELLED,
    FailureClass.BAD_INPUT: Action.STOP,
    FailureClass.HANG: Action.STOP,
    FailureClass.NO_PROGRESS: Action.STOP,
    FailureClass.CODE_ERROR: Action.STOP,
}
_SLURM_STATES = {
    "OUT_OF_MEMORY": FailureClass.OOM,
    "TIMEOUT": FailureClass.TIMEOUT,
    "DEADLINE": FailureClass.TIMEOUT,
    "NODE_FAIL": FailureClass.NODE_FAIL,
    "BOOT_FAIL": FailureClass.NODE_FAIL,
    "PREEMPTED": FailureClass.PREEMPTED,
    "CANCELLED": FailureClass.CANCELLED,
}
# Worst first: one task that must stop the run outweighs any that could go on.
_ORDER = (Action.STAY_CANCELLED, Action.STOP, Action.MORE_MEMORY, Action.NEXT_ATTEMPT)


@dataclass(frozen=True, kw_only=True)
class TaskView:
    """One task of an attempt: done, live, failed with a class and message, or gone without a trace."""

    task: int
    done: bool
    live: bool
    state: str = ""
    failure: FailureClass | None = None
    message: str = ""
    log: str = ""
    host: str = ""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do, and why, in words for a person."""

    action: Action
    reason: str = ""


def classify(last: Event | None, job: JobState | None) -> tuple[FailureClass, str]:
    """Why a task that is neither done nor live ended: its own last words first, then Slurm's."""
    if last is not None and last["event"] == "failed":
        return FailureClass(last["class"]), str(last.get("message", ""))
    state = job.state if job else ""
    if state in _SLURM_STATES:
        return _SLURM_STATES[state], f"Slurm says {state}{f' on {job.nodes}' if job and job.nodes else ''}"
    if last is not None and last["event"] == "preempted":
        return FailureClass.PREEMPTED, str(last.get("message", ""))
    if state in {"FAILED", "COMPLETED"}:
        return FailureClass.CODE_ERROR, f"ended as {state} without a word; its log may tell"
    return FailureClass.NODE_FAIL, "vanished: neither an event nor Slurm tells how it ended"


def view_tasks(
    logs: Sequence[str], done: Iterable[int], events: Sequence[Event], jobs: Mapping[int, JobState]
) -> list[TaskView]:
    """Every task of an attempt, from its completion marks, its events, and the states of the jobs by task.

    logs: the log file of each task, in order.
    """
    finished = set(done)
    last: dict[int, Event] = {}
    for entry in events:
        if entry["event"] in {"started", "preempted", "failed", "finished"}:
            last[entry["task"]] = entry
    views = []
    for task, log in enumerate(logs):
        job, event = jobs.get(task), last.get(task)
        live = task not in finished and job is not None and job.is_live
        failure, message = None, ""
        if task not in finished and not live:
            failure, message = classify(event, job)
        views.append(
            TaskView(
                task=task,
                done=task in finished,
                live=live,
                state=job.state if job else "",
                failure=failure,
                message=message,
                log=log,
                host=str(event.get("host", "")) if event else "",
            )
        )
    return views


def decide(tasks: Sequence[TaskView], attempt: int, max_attempts: int) -> Decision:
    """What comes after what was seen of attempt `attempt` (from 1)."""
    if any(task.live for task in tasks):
        return Decision(action=Action.WAIT)
    failed = [task for task in tasks if not task.done]
    if not failed:
        return Decision(action=Action.FINISH)
    by_action = {DECISIONS[task.failure]: task for task in reversed(failed) if task.failure is not None}
    action = next(candidate for candidate in _ORDER if candidate in by_action)
    task = by_action[action]
    log = f" ({task.log})" if task.log else ""
    words = f"{len(failed)} of {len(tasks)} task(s) ended early; task {task.task}: {task.failure}: {task.message}{log}"
    if action in (Action.NEXT_ATTEMPT, Action.MORE_MEMORY) and attempt >= max_attempts:
        return Decision(action=Action.STOP, reason=f"{words}; cluster.max_attempts={max_attempts} are used up")
    return Decision(action=action, reason=words)

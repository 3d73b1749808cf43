"""From what was seen to what is done next: pure functions and one table.

| class | seen as | decision |
|---|---|---|
| node_fail | Slurm: NODE_FAIL, BOOT_FAIL, a task that vanished, a gang whose nodes lost each other | next attempt |
| timeout, preempted | Slurm: TIMEOUT, PREEMPTED; event `preempted` | next attempt, which goes on from what was committed |
| oom | Slurm: OUT_OF_MEMORY; MemoryError | next attempt with twice the memory, where it was given |
| cancelled | Slurm: CANCELLED | stop, stays cancelled |
| bad_input, code_error, hang, no_progress | event `failed` | stop, with the message and the log |

Slurm requeues node failures and preempted jobs by itself; an attempt is counted only when its jobs are gone.
"""

from __future__ import annotations

import re
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
_ENDED = frozenset({"FAILED", "COMPLETED"})
# What a rank says when it was another one that went away: gloo's, NCCL's and the rendezvous store's words.
_LOST_PEER = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|DistNetworkError|DistStoreError|DistBackendError"
    r"|Rendezvous\w*Error|TCPStore",
    re.IGNORECASE,
)
# Worst first: one task that must stop the run outweighs any that could go on.
_ORDER = (Action.STAY_CANCELLED, Action.STOP, Action.MORE_MEMORY, Action.NEXT_ATTEMPT)


@dataclass(frozen=True, kw_only=True)
class TaskView:
    """One task of an attempt: done, live, failed with a class and message, or gone without a trace."""

    task: int
    done: bool
    live: bool
    state: str = ""
    reason: str = ""
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
        return _slurm_class(state, job)
    if last is not None and last["event"] == "preempted":
        return FailureClass.PREEMPTED, str(last.get("message", ""))
    if state in _ENDED:
        return FailureClass.CODE_ERROR, f"ended as {state} without a word; its log may tell"
    return FailureClass.NODE_FAIL, "vanished: neither an event nor Slurm tells how it ended"


def _slurm_class(state: str, job: JobState | None) -> tuple[FailureClass, str]:
    return _SLURM_STATES[state], f"Slurm says {state}{f' on {job.nodes}' if job and job.nodes else ''}"


def classify_gang(last: Mapping[int, Event], job: JobState | None) -> tuple[FailureClass, str]:
    """Why a gang ended.  A task's last words come second here: when a node dies, its peers fail of that.

    last: the newest event of each task that spoke.  In order: what Slurm says of the job; the first failure that is not
    about a lost peer; a stop on request; lost peers, or tasks that fell silent, which is what a dead node looks like.
    """
    state = job.state if job else ""
    if state in _SLURM_STATES:
        return _slurm_class(state, job)
    failed = sorted((event for event in last.values() if event["event"] == "failed"), key=lambda event: event["time"])
    for event in failed:
        if event["class"] != FailureClass.CODE_ERROR or not _LOST_PEER.search(str(event.get("message", ""))):
            return FailureClass(event["class"]), str(event.get("message", ""))
    if any(event["event"] == "preempted" for event in last.values()):
        return FailureClass.PREEMPTED, "asked to stop"
    if failed:
        return FailureClass.NODE_FAIL, f"the nodes lost each other: {failed[0].get('message', '')}"
    if state in _ENDED and not last:
        return FailureClass.CODE_ERROR, f"ended as {state} without a word; its log may tell"
    return FailureClass.NODE_FAIL, "vanished: neither an event nor Slurm tells how it ended"


def _last_words(events: Iterable[Event]) -> dict[int, Event]:
    return {
        event["task"]: event for event in events if event["event"] in {"started", "preempted", "failed", "finished"}
    }


def view_tasks(
    logs: Sequence[str], done: Iterable[int], events: Sequence[Event], jobs: Mapping[int, JobState]
) -> list[TaskView]:
    """Every task of an array's attempt, from its tallies, its events, and the states of the jobs by task.

    logs: the log file of each task, in order.
    """
    finished, last = set(done), _last_words(events)
    return [
        _view(task, log, task in finished, last.get(task), jobs.get(task), classify(last.get(task), jobs.get(task)))
        for task, log in enumerate(logs)
    ]


def view_gang(
    logs: Sequence[str], done: Iterable[int], events: Sequence[Event], jobs: Mapping[int, JobState]
) -> list[TaskView]:
    """Every task of a gang's attempt: they end for one reason, that of the job."""
    finished, last = set(done), _last_words(events)
    failure = classify_gang(last, jobs.get(0))
    return [
        _view(task, log, task in finished, last.get(task), jobs.get(task), failure) for task, log in enumerate(logs)
    ]


def _view(
    task: int, log: str, done: bool, last: Event | None, job: JobState | None, failure: tuple[FailureClass, str]
) -> TaskView:
    live = not done and job is not None and job.is_live
    ended = not done and not live
    return TaskView(
        task=task,
        done=done,
        live=live,
        state=job.state if job else "",
        reason=job.reason if job else "",
        failure=failure[0] if ended else None,
        message=failure[1] if ended else "",
        log=log,
        host=str(last.get("host", "")) if last else "",
    )


def decide(tasks: Sequence[TaskView], attempts: int, max_attempts: int) -> Decision:
    """What comes after what was seen of the newest attempt; `attempts` were submitted so far, this one included."""
    if any(task.live for task in tasks):
        return Decision(action=Action.WAIT)
    failed = [task for task in tasks if not task.done]
    if not failed:
        return Decision(action=Action.FINISH)
    by_action = {DECISIONS[task.failure]: task for task in reversed(failed) if task.failure is not None}
    action = next(candidate for candidate in _ORDER if candidate in by_action)
    task = by_action[action]
    words = f"{len(failed)} of {len(tasks)} task(s) ended early; task {task.task}: {task.failure}: {task.message}"
    words += f" (log: {task.log})" if task.log else ""
    if action in (Action.NEXT_ATTEMPT, Action.MORE_MEMORY) and attempts >= max_attempts:
        return Decision(action=Action.STOP, reason=f"{words}; cluster.max_attempts={max_attempts} are used up")
    return Decision(action=action, reason=words)

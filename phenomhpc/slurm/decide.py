"""From what was seen to what is done next: pure functions and one table.

| class | seen as | decision | counts |
|---|---|---|---|
| oom | Slurm: OUT_OF_MEMORY, its log; the kernel's count; MemoryError | next attempt with twice the memory, twice at most | yes |
| timeout | Slurm: TIMEOUT; stopped near the limit | next attempt, from what was committed | no |
| node_fail | Slurm: NODE_FAIL; killed by a signal; vanished; lost peers; the gate | next attempt; a sick node is excluded | yes |
| preempted | Slurm: PREEMPTED; stopped far from the limit | next attempt, from what was committed | no |
| hang | no sign of life: stacks dumped, killed by the guard | next attempt, from what was committed | yes |
| no_progress | two ends in a row (timeout, hang, a signal) at the same point | stop | - |
| bad_input | a unit: set aside inside the task; a setting: event `failed` | unit: none; setting: stop | - |
| code_error | event `failed`, or ended without a first word | stop, with the traceback and the log | - |
| cancelled | Slurm: CANCELLED; `phenomhpc cancel` | stays cancelled | - |

counts: against cluster.max_attempts.
Slurm requeues node failures and preempted jobs by itself, a task that was asked to stop is requeued by its script: these are
new starts of the same attempt.  An attempt ends when its jobs are gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from phenomhpc.errors import is_lost_peer
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
    NEXT_STAGE = "next_stage"
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
    FailureClass.HANG: Action.NEXT_ATTEMPT,
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
# Worst first: one task that must stop the run outweighs any that could go on.
_ORDER = (Action.STAY_CANCELLED, Action.STOP, Action.MORE_MEMORY, Action.NEXT_ATTEMPT)


# The environment's doing: they end an attempt and say nothing about it.
FREE = frozenset({FailureClass.PREEMPTED, FailureClass.TIMEOUT})
# How a task is called of whose end nothing is known, and one that ended and left no event.
VANISHED, WITHOUT_A_WORD = "vanished", "without a word"
# Event: an elastic gang that lost its first node ended, or requeued, its own job; Slurm then calls it cancelled.
HEAD_LOST = "head_lost"
# Ends that a run must not repeat at the same point; so is a crash, a task killed by a signal.
MUST_PROGRESS = frozenset({FailureClass.TIMEOUT, FailureClass.HANG})
MEMORY_FACTOR = 2
MAX_MORE_MEMORY = 2


@dataclass(frozen=True, kw_only=True)
class TaskView:
    """One task of an attempt: done, live, failed with a class and message, or still to be submitted (none of these).

    crashed: it was killed by a signal, which may be the node's doing or its own.
    """

    task: int
    done: bool
    live: bool
    state: str = ""
    reason: str = ""
    failure: FailureClass | None = None
    message: str = ""
    log: str = ""
    host: str = ""
    crashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do, and why, in words for a person.

    failure: the class that decided; classes: how many tasks ended early, by class; hosts: where those with node_fail ran;
    repeatable: may the next attempt end in the same way at the same point?
    """

    action: Action
    reason: str = ""
    failure: FailureClass | None = None
    hosts: tuple[str, ...] = ()
    repeatable: bool = True
    classes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class History:
    """What was decided before in this run: attempts that count, raises of memory, and the point at which the last attempt ended
    in a way that must not repeat itself ("": none did).
    """

    charged: int = 0
    more_memory: int = 0
    mark: str = ""


def history_of(events: Iterable[Event], attempt: int) -> History:
    """From the steward's `decided` events of the attempts before `attempt`, oldest first; a person's `retry` begins anew.

    Of each attempt the last one counts, and none of `attempt` itself: a steward that was killed before it acted decides again.
    """
    past: dict[int, Event] = {}
    for event in events:
        if event["event"] == "retried":
            past = {}
        elif event["event"] == "decided" and event["attempt"] < attempt:
            past[event["attempt"]] = event
    history = History()
    for event in past.values():
        if event["action"] not in (Action.NEXT_ATTEMPT, Action.MORE_MEMORY):
            continue
        classes = {FailureClass(name) for name in event.get("classes", ())}
        history = History(
            charged=history.charged + bool(classes - FREE),
            more_memory=history.more_memory + (event["action"] == Action.MORE_MEMORY),
            mark=history.mark if event.get("repeatable", True) else str(event["mark"]),
        )
    return history


def classify(last: Event | None, job: JobState | None) -> tuple[FailureClass, str]:
    """Why a task that is neither done nor live ended: its own last words first, then Slurm's."""
    if last is not None and last["event"] == "failed":
        return FailureClass(last["class"]), str(last.get("message", ""))
    state = job.state if job else ""
    if state in _SLURM_STATES:
        return _slurm_class(state, job)
    if last is not None and last["event"] == "preempted":
        return FailureClass.PREEMPTED, str(last.get("message", ""))
    if state in _ENDED and last is None:
        return FailureClass.CODE_ERROR, f"ended as {state} {WITHOUT_A_WORD}; its log may tell"
    if state in _ENDED:  # a guard that has begun tells how its work ends, unless it is killed itself
        return FailureClass.NODE_FAIL, f"ended as {state} {WITHOUT_A_WORD} since it began: killed from outside"
    return FailureClass.NODE_FAIL, f"{VANISHED}: neither an event nor Slurm tells how it ended"


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
        if event["class"] != FailureClass.CODE_ERROR or not is_lost_peer(str(event.get("message", ""))):
            return FailureClass(event["class"]), str(event.get("message", ""))
    if any(event["event"] == "preempted" for event in last.values()):
        return FailureClass.PREEMPTED, "asked to stop"
    if failed:
        return FailureClass.NODE_FAIL, f"the nodes lost each other: {failed[0].get('message', '')}"
    if state in _ENDED and not last:
        return FailureClass.CODE_ERROR, f"ended as {state} {WITHOUT_A_WORD}; its log may tell"
    return FailureClass.NODE_FAIL, f"{VANISHED}: neither an event nor Slurm tells how it ended"


def _last_words(events: Iterable[Event]) -> dict[int, Event]:
    return {
        event["task"]: event for event in events if event["event"] in {"started", "preempted", "failed", "finished"}
    }


def view_tasks(
    logs: Sequence[str],
    done: Iterable[int],
    events: Sequence[Event],
    jobs: Mapping[int, JobState],
    fed: int | None = None,
) -> list[TaskView]:
    """Every task of an array's attempt, from its tallies, its events, and the states of the jobs by task.

    logs: the log file of each task, in order; fed: the first so many tasks were submitted (None: all).
    """
    finished, last = set(done), _last_words(events)
    return [
        _view(task, log, task in finished, last.get(task), jobs.get(task), classify(last.get(task), jobs.get(task)))
        if fed is None or task < fed
        else TaskView(task=task, done=task in finished, live=False, log=log)
        for task, log in enumerate(logs)
    ]


def view_gang(
    logs: Sequence[str], done: Iterable[int], events: Sequence[Event], jobs: Mapping[int, JobState]
) -> list[TaskView]:
    """Every task of a gang's attempt: they end for one reason, that of the job.

    One tally stands for all, once the job does not run: a task is done only when the last step is committed.
    """
    finished, last, job = set(done), _last_words(events), jobs.get(0)
    if job is not None and job.state == "CANCELLED" and any(event["event"] == HEAD_LOST for event in events):
        job = None  # by the gang itself: its last words tell why
    if finished and (job is None or not job.is_running):
        finished = set(range(len(logs)))
    failure = classify_gang(last, job)
    return [_view(task, log, task in finished, last.get(task), job, failure) for task, log in enumerate(logs)]


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
        crashed=bool(ended and last and last["event"] == "failed" and last.get("crashed")),
    )


def decide(tasks: Sequence[TaskView], history: History, max_attempts: int, mark: str = "") -> Decision:
    """What comes after what was seen of the newest attempt.

    mark: how far the run has come (any text that changes with every commit).  A task that is still to be submitted is waited for.
    """
    if any(task.live or not (task.done or task.failure) for task in tasks):
        return Decision(action=Action.WAIT)
    failed = [task for task in tasks if not task.done]
    if not failed:
        return Decision(action=Action.FINISH)
    classes = Counter(str(task.failure) for task in failed)
    by_action = {DECISIONS[task.failure]: task for task in reversed(failed) if task.failure is not None}
    action = next(candidate for candidate in _ORDER if candidate in by_action)
    task = by_action[action]
    words = f"{len(failed)} of {len(tasks)} task(s) ended early; task {task.task}: {task.failure}: {task.message}"
    words += f" (log: {task.log})" if task.log else ""
    hosts = tuple(sorted({task.host for task in failed if task.failure == FailureClass.NODE_FAIL and task.host}))
    decision = Decision(
        action=action,
        reason=words,
        failure=task.failure,
        classes=classes,
        hosts=hosts,
        repeatable=not any(task.crashed or task.failure in MUST_PROGRESS for task in failed),
    )
    spent = _spent(decision, history, max_attempts, mark)
    if spent is None:
        return decision
    failure, why = spent
    return replace(decision, action=Action.STOP, reason=f"{words}; {why}", failure=failure or decision.failure)


def _spent(
    decision: Decision, history: History, max_attempts: int, mark: str
) -> tuple[FailureClass | None, str] | None:
    """Why an attempt that could be repeated is not, and the class that stands for it (None: its own); None where it is."""
    if decision.action not in (Action.NEXT_ATTEMPT, Action.MORE_MEMORY):
        return None
    if not decision.repeatable and mark and mark == history.mark:
        return FailureClass.NO_PROGRESS, f"no progress: the attempt before ended at the same point ({mark})"
    if decision.action == Action.MORE_MEMORY and history.more_memory >= MAX_MORE_MEMORY:
        return None, f"memory was doubled {MAX_MORE_MEMORY} times already; give cluster.mem_mb"
    if {FailureClass(name) for name in decision.classes} - FREE and history.charged + 1 >= max_attempts:
        return None, f"cluster.max_attempts={max_attempts} are used up"
    return None

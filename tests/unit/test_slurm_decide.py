"""From what was seen to what is done next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenomhpc.slurm.decide import (
    DECISIONS,
    Action,
    FailureClass,
    History,
    TaskView,
    decide,
    history_of,
    view_gang,
    view_tasks,
)
from phenomhpc.slurm.queue import JobState, parse_sacct, parse_signals, parse_squeue
from phenomhpc.slurm.record import SubmittedJobs, adopt


def event(name: str, task: int = 0, time: int = 0, **fields: Any) -> dict[str, Any]:
    return {"event": name, "task": task, "attempt": 1, "time": f"2026-01-01T00:00:{time:02d}", "host": "n1", **fields}


def failed(task: int, message: str, kind: str = "code_error", time: int = 1) -> dict[str, Any]:
    return event("failed", task, time, message=message, **{"class": kind})


def job(state: str, nodes: str = "n1") -> JobState:
    return JobState(job_id="7", index=0, state=state, nodes=nodes)


def array(events: Sequence[Mapping[str, Any]], state: str | None, done: Sequence[int] = ()) -> TaskView:
    jobs = {} if state is None else {0: job(state)}
    return view_tasks(["LOG"], done, [dict(entry) for entry in events], jobs)[0]


def gang(events: Sequence[Mapping[str, Any]], state: str | None, done: Sequence[int] = ()) -> list[TaskView]:
    jobs = {} if state is None else dict.fromkeys(range(2), job(state, "n[1-2]"))
    return view_gang(["LOG0", "LOG1"], done, [dict(entry) for entry in events], jobs)


def test_every_failure_class_has_one_decision() -> None:
    assert set(DECISIONS) == set(FailureClass)


@pytest.mark.parametrize(
    ("events", "state", "failure"),
    [
        ([event("started")], "NODE_FAIL", "node_fail"),
        ([event("started")], "TIMEOUT", "timeout"),
        ([event("started")], "OUT_OF_MEMORY", "oom"),
        ([event("started")], "PREEMPTED", "preempted"),
        ([event("started")], "CANCELLED", "cancelled"),
        ([event("started"), event("preempted", message="asked to stop")], "FAILED", "preempted"),
        ([event("started"), failed(0, "no plate", "bad_input")], "FAILED", "bad_input"),
        ([event("started"), failed(0, "KeyError: 'x'")], "FAILED", "code_error"),
        ([event("started"), failed(0, "MemoryError", "oom")], None, "oom"),
        # An older start's failure does not count once the task was started anew.
        ([event("started"), failed(0, "KeyError: 'x'"), event("started", time=2)], "NODE_FAIL", "node_fail"),
        ([], "FAILED", "code_error"),
        # Its guard was killed, or the job's script with all below it.
        ([event("started")], "FAILED", "node_fail"),
        ([event("started")], None, "node_fail"),
    ],
)
def test_a_task_ends_for_the_reason_it_gave_or_slurm_gives(
    events: list[dict[str, Any]], state: str | None, failure: str
) -> None:
    view = array(events, state)
    assert (view.done, view.live, view.failure) == (False, False, failure)
    assert view.message


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "REQUEUED", "COMPLETING", "SUSPENDED"])
def test_a_living_job_is_waited_for_whatever_its_task_said(state: str) -> None:
    view = array([event("started"), failed(0, "KeyError: 'x'")], state)
    assert view.live and view.failure is None
    assert decide([view], History(), 3).action == Action.WAIT


def test_a_tally_makes_a_task_done_whatever_slurm_says() -> None:
    view = array([event("started")], "NODE_FAIL", done=[0])
    assert view.done and view.failure is None
    assert decide([view], History(), 3).action == Action.FINISH


@pytest.mark.parametrize(
    ("events", "state", "failure"),
    [
        # The survivor of a dead node fails of that; the dead node says nothing.
        (
            [
                event("started", 0),
                event("started", 1),
                failed(0, "rank 0: RuntimeError: gloo: Connection closed by peer"),
            ],
            "FAILED",
            "node_fail",
        ),
        # The rank with a bug is the reason, though its peer complained first.
        (
            [failed(1, "rank 0: DistBackendError: NCCL error", time=1), failed(0, "rank 1: KeyError: 'x'", time=2)],
            "FAILED",
            "code_error",
        ),
        (
            [failed(0, "rank 0: no such store", "bad_input"), failed(1, "Connection reset by peer")],
            "FAILED",
            "bad_input",
        ),
        ([event("preempted", 0), event("started", 1)], "FAILED", "preempted"),
        ([event("preempted", 0), failed(1, "Connection closed by peer")], "FAILED", "preempted"),
        ([failed(0, "rank 0: KeyError: 'x'"), event("started", 1)], "NODE_FAIL", "node_fail"),
        ([failed(0, "rank 0: KeyError: 'x'"), event("started", 1)], "CANCELLED", "cancelled"),
        ([event("started", 0), event("started", 1)], "FAILED", "node_fail"),
        ([event("started", 0), event("started", 1)], None, "node_fail"),
        ([], "FAILED", "code_error"),
    ],
)
def test_a_gang_ends_for_one_reason(events: list[dict[str, Any]], state: str | None, failure: str) -> None:
    assert [view.failure for view in gang(events, state)] == [failure, failure]


@pytest.mark.parametrize(
    ("state", "action"),
    [("RUNNING", "wait"), ("COMPLETING", "wait"), ("PENDING", "finish"), ("FAILED", "finish"), (None, "finish")],
)
def test_one_tally_of_a_gang_is_enough_once_the_job_does_not_run(state: str | None, action: str) -> None:
    views = gang([event("finished", 1), event("started", 0)], state, done=[1])
    assert decide(views, History(), 3).action == action


def view(task: int, failure: str | None) -> TaskView:
    kind = None if failure is None else FailureClass(failure)
    return TaskView(task=task, done=failure is None, live=False, failure=kind, message="m", log="L", host=f"n{task}")


def test_a_task_that_was_not_submitted_yet_is_waited_for() -> None:
    views = view_tasks(["A", "B"], [0], [event("started")], {}, fed=1)
    assert [(seen.done, seen.live, seen.failure) for seen in views] == [(True, False, None), (False, False, None)]
    assert decide(views, History(), 3).action == Action.WAIT


@pytest.mark.parametrize(
    ("failure", "history", "action", "named"),
    [
        ("preempted", History(charged=9), "next_attempt", "preempted"),  # free of charge
        ("timeout", History(charged=9, mark="step 4"), "next_attempt", "timeout"),  # it gets on
        ("timeout", History(mark="step 8"), "stop", "no_progress"),
        ("hang", History(mark="step 8"), "stop", "no_progress"),
        ("crash", History(mark="step 8"), "stop", "no_progress"),
        ("crash", History(mark="step 4"), "next_attempt", "node_fail"),
        ("node_fail", History(mark="step 8"), "next_attempt", "node_fail"),  # the node's doing
        ("preempted", History(mark="step 8"), "next_attempt", "preempted"),
        ("hang", History(charged=1), "next_attempt", "hang"),
        ("hang", History(charged=2), "stop", "hang"),
        ("oom", History(), "more_memory", "oom"),
        ("oom", History(charged=1, more_memory=1), "more_memory", "oom"),
        ("oom", History(charged=1, more_memory=2), "stop", "oom"),
        ("bad_input", History(), "stop", "bad_input"),
        ("no_progress", History(), "stop", "no_progress"),
        ("cancelled", History(), "stay_cancelled", "cancelled"),
    ],
)
def test_what_happened_before_counts(failure: str, history: History, action: str, named: str) -> None:
    seen = view(0, "node_fail" if failure == "crash" else failure)
    decision = decide([replace(seen, crashed=failure == "crash")], history, 3, "step 8")
    assert (decision.action, decision.failure) == (action, named)
    assert decision.classes == {str(seen.failure): 1}
    assert decision.hosts == (("n0",) if seen.failure == FailureClass.NODE_FAIL else ())
    assert decision.repeatable == (failure not in {"timeout", "hang", "crash"})


def test_a_gang_that_ended_its_own_job_is_not_called_cancelled() -> None:
    """Its first node is gone, and with it whoever would have ended the job: Slurm says CANCELLED."""
    own = [event("head_lost", task=1, time=9)]
    assert {task.failure for task in gang([failed(1, "ValueError: x"), *own], "CANCELLED")} == {"code_error"}
    assert {task.failure for task in gang([event("preempted", task=1), *own], "CANCELLED")} == {"preempted"}
    assert {task.failure for task in gang([event("preempted", task=1)], "CANCELLED")} == {"cancelled"}
    assert decide(gang([event("finished", task=1), *own], "CANCELLED", done=[1]), History(), 3).action == "finish"


def decided(attempt: int, action: str, mark: str, *classes: str) -> dict[str, Any]:
    repeatable = "hang" not in classes
    return event(
        "decided", attempt=attempt, action=action, mark=mark, classes=dict.fromkeys(classes, 1), repeatable=repeatable
    )


def test_history_is_what_was_decided_since_a_person_last_stepped_in() -> None:
    events = [decided(1, "next_attempt", "a", "hang"), event("retried"), decided(2, "next_attempt", "b", "preempted")]
    assert history_of(events, 3) == History()
    events += [decided(3, "more_memory", "c", "oom", "preempted"), decided(4, "next_attempt", "d", "hang")]
    assert history_of(events, 5) == History(charged=2, more_memory=1, mark="d")
    assert history_of([*events, decided(5, "next_attempt", "e", "preempted")], 6).mark == "d"


def test_a_steward_that_was_killed_before_it_acted_decides_the_same_again() -> None:
    """What it had decided is on record, and is not taken for an attempt that ended at the same point."""
    ended = gang([event("started"), failed(0, "silent", "hang")], "FAILED")
    first = decided(1, "next_attempt", "step 201", "hang")
    for told in ([], [first], [first, first]):
        assert decide(ended, history_of(told, 1), 3, "step 201").action == Action.NEXT_ATTEMPT
    assert history_of([first, first], 2) == history_of([first], 2) == History(charged=1, mark="step 201")
    assert decide(ended, history_of([first, first], 2), 3, "step 201").failure == "no_progress"


def test_the_worst_task_decides() -> None:
    lost, bug, cancelled = FailureClass.NODE_FAIL, FailureClass.CODE_ERROR, FailureClass.CANCELLED
    assert decide([view(0, None), view(1, lost)], History(), 3).action == Action.NEXT_ATTEMPT
    assert decide([view(0, bug), view(1, lost)], History(), 3).action == Action.STOP
    assert decide([view(0, bug), view(1, cancelled)], History(), 3).action == Action.STAY_CANCELLED
    decision = decide([view(0, None), view(1, lost)], History(charged=2), 3)
    assert decision.action == Action.STOP
    assert "task 1: node_fail: m (log: L); cluster.max_attempts=3 are used up" in decision.reason
    assert decide([], History(), 3).action == Action.FINISH


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, "started", "preempted", "failed", "finished"]),
            st.sampled_from([None, "PENDING", "RUNNING", "COMPLETED", "FAILED", "NODE_FAIL", "SOMETHING_NEW"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_nothing_unknown_becomes_an_end_without_a_reason(seen: list[tuple[str | None, str | None, bool]]) -> None:
    events = [
        event(name, task, message="m", **{"class": "code_error"}) for task, (name, _, _) in enumerate(seen) if name
    ]
    jobs = {task: job(state) for task, (_, state, _) in enumerate(seen) if state}
    done = [task for task, (_, _, tally) in enumerate(seen) if tally]
    views = view_tasks(["L"] * len(seen), done, events, jobs)
    decision = decide(views, History(), 3)
    assert (decision.action == Action.FINISH) == (len(done) == len(seen))
    assert decision.reason or decision.action in {Action.WAIT, Action.FINISH}
    assert all(view.done or view.live or view.failure for view in views)


def test_squeue_and_sacct_are_read() -> None:
    text = "12_3|PENDING|Resources||run-a|phenomhpc attempt=1|/r/run-a\n14|RUNNING|None|n[1-2]|run|(null)|/r/we|ird\n"
    first, second = parse_squeue(text)
    assert (first.job_id, first.index, first.state, first.reason) == ("12", 3, "PENDING", "Resources")
    assert (first.comment, first.folder) == ("phenomhpc attempt=1", "/r/run-a")
    assert (second.job_id, second.index, second.nodes, second.folder) == ("14", None, "n[1-2]", "/r/we|ird")
    states = parse_sacct("12_3|CANCELLED by 0|n1\n12_[4-9]|PENDING|None assigned\n15|NODE_FAIL|n2\n")
    assert [(state.job_id, state.index, state.state) for state in states] == [
        ("12", 3, "CANCELLED"),
        ("15", None, "NODE_FAIL"),
    ]


def test_scontrol_tells_which_signal_ended_a_job() -> None:
    text = (
        "JobId=8 ArrayJobId=7 ArrayTaskId=0 JobName=r Requeue=1 ExitCode=0:9 RunTime=00:00:02\n"
        "JobId=9 ArrayJobId=7 ArrayTaskId=1 JobName=r Requeue=1 ExitCode=137:0 RunTime=00:00:02\n"
        "JobId=7 ArrayJobId=7 ArrayTaskId=2 JobName=r Requeue=1 ExitCode=1:0 RunTime=00:00:02\n"
        "JobId=10 JobName=r Requeue=1 ExitCode=0:15 RunTime=00:00:02\n"
    )
    assert parse_signals(text) == {("7", 0): 9, ("7", 1): 9, ("10", None): 15}


def test_elements_are_tasks_by_their_chunks_offset() -> None:
    jobs = SubmittedJobs(chunks=(("5", 0, 100), ("6", 100, 50)), num_tasks=150, gang=False)
    states = [JobState(job_id=name, index=index, state="RUNNING") for name, index in (("5", 7), ("6", 7), ("9", 1))]
    assert sorted(jobs.by_task(states)) == [7, 107]
    assert (jobs.job_of(99), jobs.job_of(100)) == ("5", "6")
    pair = SubmittedJobs(chunks=(("5", 0, 1),), num_tasks=2, gang=True)
    assert sorted(pair.by_task([JobState(job_id="5", index=None, state="RUNNING")])) == [0, 1]


def test_a_chunk_whose_submitter_was_killed_is_adopted_once_and_only_where_it_fits() -> None:
    jobs = SubmittedJobs(chunks=(("5", 0, 100),), num_tasks=150, gang=False)

    def stray(comment: str) -> JobState:
        return JobState(job_id="6", index=3, state="RUNNING", comment=comment)

    fits = stray("phenomhpc attempt=2 chunk=1 offset=100 size=50")
    adopted = adopt(jobs, 2, [stray(""), fits, fits])
    assert adopted.chunks == (("5", 0, 100), ("6", 100, 50))
    assert adopt(adopted, 2, [fits]) == adopted
    assert adopt(jobs, 3, [fits]) == jobs
    assert adopt(jobs, 2, [stray("phenomhpc attempt=2 chunk=2 offset=150 size=50")]) == jobs


def test_attempts_that_the_gate_refused_are_not_called_stuck_but_count() -> None:
    """Two sick nodes, one after the other: the second attempt, too, ends where it began."""
    words = {**failed(0, "n2: its fans", "node_fail"), "exit_code": 77}
    views = gang([event("started"), words, event("started", 1)], "FAILED")
    first = decide(views, History(), 3, "step 0")
    assert (first.action, first.repeatable) == (Action.NEXT_ATTEMPT, True)
    past = [
        event("decided", attempt=number, action=first.action, classes=first.classes, mark="step 0", repeatable=True)
        for number in (1, 2)
    ]
    assert history_of(past, 2) == History(charged=1, mark="")
    assert decide(views, history_of(past, 2), 3, "step 0").action == Action.NEXT_ATTEMPT
    assert decide(views, history_of(past, 3), 3, "step 0").action == Action.STOP
    hung = gang([event("started"), failed(0, "silent", "hang")], "FAILED")
    assert decide(hung, history_of(past, 2), 3, "step 0").action == Action.NEXT_ATTEMPT

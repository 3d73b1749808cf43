"""What became of a run's tasks, in words for a person."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from phenomhpc.errors import is_lost_peer
from phenomhpc.jobs.failures import rank_of
from phenomhpc.jobs.status import AT_WORK
from phenomhpc.runs import Event
from phenomhpc.slurm.decide import FailureClass, TaskView

# More hosts than this are counted, not named.
MAX_HOSTS = 3


def summary_of(views: Sequence[TaskView]) -> str:
    """`612 ok, 3 oom, 1 node_fail on n17, 2 running`: most telling first."""
    hosts: dict[str, set[str]] = defaultdict(set)
    counts: Counter[str] = Counter()
    for view in views:
        if view.failure is not None:
            counts[str(view.failure)] += 1
            if view.host:
                hosts[str(view.failure)].add(view.host)
    words = [(sum(view.done for view in views), "ok")]
    parts = [f"{count} {name}" for count, name in words if count]
    for name, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        where = hosts[name]
        named = f" on {', '.join(sorted(where))}" if 0 < len(where) <= MAX_HOSTS else ""
        parts.append(f"{count} {name}{named}")
    living = Counter(
        "running" if view.live and view.state in AT_WORK else "waiting"
        for view in views
        if not view.done and view.failure is None
    )
    parts += [f"{count} {name}" for name, count in sorted(living.items())]
    return ", ".join(parts)


def earlier_of(views: Mapping[int, Sequence[TaskView]], events: Sequence[Event], decided: Sequence[Event]) -> list[str]:
    """One line for every attempt that failed before the newest, and for starts that Slurm repeated within an attempt."""
    lines = []
    newest = max(views, default=0)
    for attempt, tasks in views.items():
        failed = [view for view in tasks if view.failure is not None]
        if attempt < newest and failed:
            then = [f"; then {event['action']}" for event in decided if event["attempt"] == attempt]
            first = min(failed, key=lambda view: (rank_of(view), view.task))
            lines.append(
                f"attempt {attempt}: {summary_of(tasks)} (task {first.task}: {first.message}){''.join(then[-1:])}"
            )
        repeated = _repeated(event for event in events if event["attempt"] == attempt)
        if repeated:
            counts = ", ".join(f"{count} {name} on {host}" for (name, host), count in sorted(repeated.items()))
            lines.append(f"attempt {attempt}: {sum(repeated.values())} start(s) that Slurm repeated: {counts}")
        lines += [
            f"attempt {attempt}: went on with {', '.join(event['nodes'])} after losing {', '.join(event['lost'])}: {event['why']}"
            for event in events
            if event["attempt"] == attempt and event["event"] == "round" and event["lost"]
        ]
    lines += [
        f"retried after attempt {event['attempt']}: {event['was']}: {event['message']}"
        for event in events
        if event["event"] == "retried"
    ]
    return lines


def _repeated(events: Iterable[Event]) -> Counter[tuple[str, str]]:
    """Why and where starts ended that another start of the same task followed; one that said nothing lost its node,
    one that blames another rank lost that one's."""
    last: dict[int, Event] = {}
    found: Counter[tuple[str, str]] = Counter()
    for event in events:
        task = event["task"]
        if event["event"] == "started" and task in last:
            before = last[task]
            if before.get("class") == FailureClass.CODE_ERROR and is_lost_peer(str(before.get("message", ""))):
                before = {**before, "class": FailureClass.NODE_FAIL}
            word = {"failed": before.get("class"), "preempted": before.get("reason") or "preempted"}.get(
                before["event"]
            )
            found[str(word or FailureClass.NODE_FAIL), str(before.get("host", "?"))] += 1
        if event["event"] in {"started", "failed", "preempted", "finished"}:
            last[task] = event
    return found

"""What went wrong with a training that went on all the same: from its events, in words for a person."""

from __future__ import annotations

from collections.abc import Sequence

from phenomhpc.runs import Event

_MAX_NAMED = 3


def alarms_of(events: Sequence[Event]) -> list[str]:
    """One line for each kind of trouble, over all attempts, the most urgent first.  events: oldest first."""
    by_kind: dict[str, list[Event]] = {}
    for event in events:
        by_kind.setdefault(str(event["event"]), []).append(event)
    lines = [*_full_disk(events), *_stragglers(events)]
    lines += _rollbacks(by_kind.get("spike", []), by_kind.get("rollback", []))
    lines += _unlike(by_kind.get("drift", []))
    return [*lines, *_skipped(by_kind.get("skipped", [])), *_replaced(by_kind.get("damaged", []))]


def _full_disk(events: Sequence[Event]) -> list[str]:
    """Whether saving has stopped, or had."""
    failed: list[int] = []
    saved: int | None = None
    open_since: int | None = None
    for event in events:
        if event["event"] == "alarm" and event.get("what") == "disk_full":
            failed.append(event["step"])
            open_since = event["step"] if open_since is None else open_since
        elif event["event"] == "checkpoint":
            saved, open_since = event["step"], None
    if not failed:
        return []
    if open_since is not None:
        since = "none is committed" if saved is None else f"the newest is of step {saved}"
        return [f"disk full: no checkpoint is saved since step {open_since}, {since}; free space"]
    return [f"disk full: no room for the checkpoint of {_steps(failed)}; that of step {saved} was saved"]


def _stragglers(events: Sequence[Event]) -> list[str]:
    """Those of the newest start: a later one may be on other nodes, and finds out anew."""
    slow: dict[int, Event] = {}
    for event in events:
        if event["event"] in {"started", "resumed", "round"}:
            slow.clear()
        elif event["event"] == "straggler":
            slow[event["rank"]] = event
        elif event["event"] == "straggler_over":
            slow.pop(event["rank"], None)
    return [
        f"straggler: rank {event['rank']} on {event['node']} is slower than the others by {event['share']:.0%} "
        f"({event['seconds']:.3g} s a step, most of it {event['part']}), seen at step {event['step']}"
        for event in slow.values()
    ]


def _rollbacks(spikes: Sequence[Event], rollbacks: Sequence[Event]) -> list[str]:
    if not spikes:
        return []
    steps = [step for event in spikes for step in event["steps"]]
    text = f"loss leaped at {_steps(steps)}"
    if not rollbacks:
        return [f"{text}; there was no checkpoint to go back to"]
    last = rollbacks[-1]
    skipped = sum(end - begin for begin, end in last["skip_ledger"])
    back = f"{len(rollbacks)} rollback(s), the last from step {last['reached']} to {last['step']}"
    return [f"{text}; {back}; {skipped} samples are left out"]


def _unlike(events: Sequence[Event]) -> list[str]:
    """Nodes that are not like the others, as the newest attempt that ended has them."""
    newest = max((event["attempt"] for event in events), default=0)
    last = {event["node"]: event["drift"] for event in events if event["attempt"] == newest}
    if not last:
        return []
    named = [f"{node}: {', '.join(words)}" for node, words in list(last.items())[:_MAX_NAMED]]
    more = f"; and {len(last) - _MAX_NAMED} more node(s)" if len(last) > _MAX_NAMED else ""
    return [f"{'; '.join(named)}{more}"]


def _skipped(events: Sequence[Event]) -> list[str]:
    steps = [step for event in events for step in event["steps"]]
    if not steps:
        return []
    return [f"no finite gradient in {len(steps)} step(s), which changed nothing; the last was step {max(steps)}"]


def _replaced(events: Sequence[Event]) -> list[str]:
    fields = {event["field"]: event["reason"] for event in events}
    if not fields:
        return []
    named = [f"{name} ({reason})" for name, reason in list(fields.items())[:_MAX_NAMED]]
    more = f" and {len(fields) - _MAX_NAMED} more" if len(fields) > _MAX_NAMED else ""
    return [f"damaged: {len(fields)} field(s) are replaced by others: {', '.join(named)}{more}"]


def _steps(steps: Sequence[int]) -> str:
    numbers = sorted(set(steps))
    shown = ", ".join(map(str, numbers[:_MAX_NAMED]))
    more = f" and {len(numbers) - _MAX_NAMED} more" if len(numbers) > _MAX_NAMED else ""
    return f"step{'s' if len(numbers) > 1 else ''} {shown}{more}"

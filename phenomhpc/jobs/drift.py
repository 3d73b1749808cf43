"""The fingerprints of a run: every node's is kept with the attempt, a run's here, too.

Those of a gang are compared before it starts, those of an array when its attempt has ended, by the steward.

attempts/NNN/nodes/HOST.json    {host, digest, values, python, silent, findings, ...}, written by that node itself
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from phenomhpc.errors import TASK_GATE_REFUSED, UsageError
from phenomhpc.nodes.facts import Finding, Fingerprint
from phenomhpc.nodes.fingerprint import take_fingerprint
from phenomhpc.nodes.hostlist import short
from phenomhpc.nodes.lock import Lock
from phenomhpc.nodes.lock_file import find_lock
from phenomhpc.nodes.trust import DRIFT, Trust, judge_drift, own_findings
from phenomhpc.runs import AttemptPaths, Event, canonical_json, commit, make_folder

if TYPE_CHECKING:
    from phenomhpc.config import AnyConfig

# The others wait meanwhile (cluster.gate_wait_s); what is not told by then is held against nobody.
LIMIT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a node knows of itself.  words: why there is no fingerprint, or no lock, one line each."""

    node: str
    seen: Fingerprint | None
    lock: Lock | None
    findings: tuple[Finding, ...] = ()
    words: tuple[str, ...] = field(default=())

    def said(self) -> dict[str, Any]:
        """What it tells the others, as JSON values."""
        return {"fingerprint": self.seen, "findings": [asdict(each) for each in self.findings], "words": self.words}


def look(node: str) -> Look:
    """This node's short fingerprint against its site.json.  Never raises: a node of which nothing is known is no wrong one."""
    words = []
    try:
        lock = find_lock(None)
    except UsageError as error:
        lock = None
        words.append(str(error))
    seen, why = take_fingerprint(short=True, env=sys.prefix, limit_s=LIMIT_S)
    if seen is None:
        words.append(f"no fingerprint: {why}")
    findings = own_findings(node, seen, lock) if seen is not None and lock is not None else ()
    return Look(node=node, seen=seen, lock=lock, findings=findings, words=tuple(words))


def keep(attempt: AttemptPaths, seen: Look) -> None:
    """Keep a node's fingerprint with the attempt."""
    file = attempt.node(seen.node)
    make_folder(file.parent)
    said = seen.said()
    commit(file, canonical_json({"node": seen.node, **(said.pop("fingerprint") or {}), **said}))


def keep_once(attempt: AttemptPaths, node: str, check_fence: Callable[[], None]) -> None:
    """The same for a task of an array, of which many run on one node: the first of them does it.  No failure may stop the work.

    A task that was replaced while its node was looked at writes nothing: check_fence raises FencedError.
    """
    with suppress(OSError):
        if not attempt.node(node).is_file():
            seen = look(node)
            check_fence()
            keep(attempt, seen)


@cache
def look_here() -> Look:
    """This machine, which does not change while a process runs here."""
    return look(short(socket.gethostname()))


def keep_here(attempt: AttemptPaths) -> None:
    """Keep the fingerprint of this machine with an attempt that runs here.  No failure may stop the work."""
    with suppress(OSError):
        keep(attempt, look_here())


def unlike(attempt: AttemptPaths) -> dict[str, tuple[str, ...]]:
    """How nodes of an attempt differ from the others and from their site.json, in words, by node; those that do not are left out.

    For arrays: their tasks do not depend on each other, so that nothing is refused.
    """
    kept = [json.loads(file.read_bytes()) for file in sorted(attempt.nodes.glob("*.json"))]
    nodes = {each["node"]: each for each in kept if "values" in each}
    own = {node: tuple(Finding(**raw) for raw in each["findings"]) for node, each in nodes.items()}
    try:
        lock = find_lock(None)
    except UsageError:
        lock = None
    trust = judge_drift(nodes, own, lock.drift if lock else None, allow=True, uses_gpus=False)
    return {node: words for node, words in trust.told.items() if words}


def compare_nodes(own: Look, told: Mapping[str, Mapping[str, Any]], config: AnyConfig) -> Trust:
    """What the nodes of a gang have against each other and their site.json; told: by node, what Look.said said."""
    nodes = {node: each["fingerprint"] for node, each in told.items() if each["fingerprint"] is not None}
    findings = {node: tuple(Finding(**raw) for raw in each["findings"]) for node, each in told.items() if node in nodes}
    uses_gpus = bool(config.cluster.gpus_per_node) and getattr(config, "device", "auto") != "cpu"
    policy = own.lock.drift if own.lock is not None else None
    trust = judge_drift(nodes, findings, policy, allow=config.cluster.allow_drift, uses_gpus=uses_gpus)
    words = {node: tuple(each["words"]) for node, each in told.items()}
    return Trust(
        problems={node: trust.problems.get(node, ()) for node in told},
        told={node: (*trust.told.get(node, ()), *words[node]) for node in told},
    )


def drift_words(events: Sequence[Event], failed_on: Collection[str], attempt: int) -> tuple[str, ...]:
    """What drift has to do with how a run stands, one line each.  failed_on: nodes on which tasks of the newest attempt failed.

    Refusals of any attempt; and of the newest one drift that the gate let pass, or that its array's nodes have, where every node
    on which something failed has it and some other node of the run has not: then it is the likely cause.
    """
    lines = []
    refused = {
        (event["attempt"], str(event["message"]))
        for event in events
        if event["event"] == "failed" and event.get("exit_code") == TASK_GATE_REFUSED and DRIFT in str(event["message"])
    }
    onward = "heal the node, or train all the same: submit --allow-drift, retry cluster.allow_drift=true"
    lines += [f"attempt {number} was refused: {message}; {onward}" for number, message in sorted(refused)]
    took_part = _drift_by_node([event for event in events if event["attempt"] == attempt])
    failed_on = {short(host) for host in failed_on}
    differing = {node for node, words in took_part.items() if words}
    if failed_on and failed_on <= differing and differing < set(took_part):
        for node in sorted(failed_on):
            words = ", ".join(took_part[node])
            lines.append(f"likely the cause: it failed on {node} only, which is not like the others: {words}")
    return tuple(lines)


def _drift_by_node(events: Sequence[Event]) -> dict[str, list[str]]:
    """What nodes that took part have against the others: a gang's by the gate, an array's by the steward."""
    told = [event for event in events if event["event"] in {"gate", "drift"}]
    found: dict[str, list[str]] = {}
    if not any(event["event"] == "gate" for event in told):
        found = {short(event["host"]): [] for event in events if event["event"] == "started"}
    return found | {
        short(each["node"]): [words for words in each.get("drift") or () if DRIFT in words] for each in told
    }

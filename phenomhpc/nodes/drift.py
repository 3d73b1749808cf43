"""The drift of a cluster: every node against the lock, and against the others.  Pure: fingerprints in, a report out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from phenomhpc.nodes.facts import RECORD, Finding, Fingerprint, facts_of
from phenomhpc.nodes.lock import Lock
from phenomhpc.nodes.majority import divergent
from phenomhpc.nodes.managed import against_lock

CLEAN, DRIFT, COULD_NOT_TELL = 0, 1, 4


@dataclass(frozen=True, kw_only=True)
class Report:
    """nodes: those that told; findings by node, what runs insist on first; silent: what a node could not tell, and why."""

    nodes: tuple[str, ...]
    findings: tuple[Finding, ...]
    silent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def verdict(self) -> Literal["clean", "drift", "unknown"]:
        """Drift that was seen counts, whatever else could not be told."""
        if self.findings:
            return "drift"
        return "unknown" if self.silent or not self.nodes else "clean"

    @property
    def exit_code(self) -> int:
        return {"clean": CLEAN, "drift": DRIFT, "unknown": COULD_NOT_TELL}[self.verdict]


def find_drift(
    nodes: Mapping[str, Fingerprint], lock: Lock | None, unreached: Mapping[str, str] | None = None
) -> Report:
    """The report.  unreached: nodes without a fingerprint, and why.

    Without a lock nodes are compared with each other only, for which it takes two.  A host that the lock does not know is
    compared with nothing, and named.
    """
    silent = {node: [why] for node, why in (unreached or {}).items()}
    findings: list[Finding] = []
    covered: set[str] = set()
    for node, seen in nodes.items():
        for section, why in (seen.get("silent") or {}).items():
            silent.setdefault(node, []).append(f"{section}: {why}")
        if lock is None:
            continue
        classes = lock.classes().get(node)
        if classes is None:
            silent.setdefault(node, []).append("the lock knows no host of this name")
            continue
        told = against_lock(node, {**seen, "classes": classes}, lock)
        findings += told.findings
        covered |= told.covered
        for path in told.unreadable:
            silent.setdefault(node, []).append(f"{path}: not readable by this user")
    if lock is None and len(nodes) == 1:
        silent.setdefault(next(iter(nodes)), []).append("there is no lock and no other node to compare with")
    compared = nodes if lock is None else {node: seen for node, seen in nodes.items() if node in lock.classes()}
    strays = _effects(compared, findings)
    findings += [
        each
        for each in divergent(compared, lock.drift if lock else None, covered)
        if (each.node, each.fact) not in strays
    ]
    findings = _once(findings)
    findings.sort(key=lambda each: (each.node, each.level != "must", each.kind, each.fact))
    return Report(
        nodes=tuple(sorted(nodes)),
        findings=tuple(findings),
        silent={node: tuple(why) for node, why in sorted(silent.items())},
    )


def _once(findings: list[Finding]) -> list[Finding]:
    """A fact and the record of it are told once.

    What is wrong by a node's own record alone is as the others' record says: the record was changed, and is told.  What differs
    from the other nodes just as its record does is told as itself.
    """
    head = f"{RECORD}:"
    records = [each for each in findings if each.fact.startswith(head)]
    wronged = {(each.node, each.fact.removeprefix(head), each.expected) for each in records}
    itself = {(each.node, head + each.fact, each.found) for each in findings}
    return [
        each
        for each in findings
        if (each.node, each.fact, each.found) not in wronged and (each.node, each.fact, each.found) not in itself
    ]


def _effects(nodes: Mapping[str, Fingerprint], findings: list[Finding]) -> set[tuple[str, str]]:
    """(node, fact) of sysctls that a file sets which is itself reported, on its node."""
    files = {(each.node, each.fact.removeprefix("file:")) for each in findings if each.fact.startswith("file:")}
    found = set()
    for node, seen in nodes.items():
        facts = facts_of(seen)
        for name, said in ((seen.get("sysctls") or {}).get("files") or {}).items():
            if (node, said["path"]) in files and f"sysctl:{name}" in facts:
                found.add((node, f"sysctl:{name}"))
    return found

"""May these nodes train together?  What runs insist on is a problem, the rest is told.  Pure; jobs/gate.py decides by it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from phenomhpc.nodes.facts import ABSENT, Finding, Fingerprint, is_silent, level_of
from phenomhpc.nodes.lock import Drift, Lock
from phenomhpc.nodes.majority import divergent
from phenomhpc.nodes.managed import expected_values, matches

DRIFT = "drift: "


@dataclass(frozen=True, kw_only=True)
class Trust:
    """By node, one phrase each.  problems: the node is refused; told: it differs, and may take part."""

    problems: Mapping[str, tuple[str, ...]]
    told: Mapping[str, tuple[str, ...]]


def own_findings(node: str, seen: Fingerprint, lock: Lock) -> tuple[Finding, ...]:
    """What a compute node's values have against its own site.json.

    Its own, so that in the middle of a rolling update a node is measured by what it is meant to be now.  The Python
    environment counts only where the run uses the site's; somebody's own is compared between the nodes.
    """
    env = (seen.get("python") or {}).get("path")
    ours = lock.python is not None and env == os.path.realpath(lock.python.env_path)
    wanted = expected_values(lock, ("compute",))
    if lock.python is not None and lock.python.environment:
        wanted["python.environment"] = lock.python.environment
    findings = []
    for fact, value in wanted.items():
        found = seen["values"].get(fact, ABSENT)
        level = level_of(fact, lock.drift)
        if level is None or is_silent(fact, seen) or matches(fact, found, value):
            continue
        if ours or not fact.startswith("python."):
            findings.append(
                Finding(
                    node=node, kind="managed", fact=fact, found=found, expected=value, level=level, words="site.json"
                )
            )
    return tuple(findings)


def judge_drift(
    nodes: Mapping[str, Fingerprint],
    own: Mapping[str, tuple[Finding, ...]],
    policy: Drift | None,
    *,
    allow: bool,
    uses_gpus: bool,
) -> Trust:
    """The nodes of one run: what each has against its site.json (own_findings), and against the others.

    allow: nothing is a problem.  uses_gpus: without them the driver and its kin are only told.
    """
    problems: dict[str, list[str]] = {node: [] for node in nodes}
    told: dict[str, list[str]] = {node: [] for node in nodes}
    said = {(each.node, each.fact) for findings in own.values() for each in findings}
    beside = [each for each in divergent(_alike(nodes), policy) if (each.node, each.fact) not in said]
    for each in [*(each for findings in own.values() for each in findings), *beside]:
        refused = each.level == "must" and not allow and (uses_gpus or not each.fact.startswith("nvidia."))
        (problems if refused else told)[each.node].append(f"{DRIFT}{each}")
    return Trust(
        problems={node: tuple(words) for node, words in problems.items()},
        told={node: tuple(words) for node, words in told.items()},
    )


def _alike(nodes: Mapping[str, Fingerprint]) -> dict[str, Fingerprint]:
    """All of one kind: the nodes of a run are compared with each other, whatever else they serve as."""
    return {node: {**seen, "classes": None} for node, seen in nodes.items()}

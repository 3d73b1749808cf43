"""Which nodes differ from the others, fact by fact.  Pure; nothing says what is right, so most of the nodes do."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

from phenomhpc.nodes.facts import (
    ABSENT,
    Finding,
    Fingerprint,
    changed_distributions,
    facts_of,
    is_shipped,
    is_silent,
    level_of,
)
from phenomhpc.nodes.lock import Drift


def divergent(
    nodes: Mapping[str, Fingerprint], policy: Drift | None, covered: Collection[str] = ()
) -> tuple[Finding, ...]:
    """Outliers among nodes of the same classes, by node and fact.

    Where no value is that of more than half of the nodes, each of them differs, and `expected` names what there is.
    covered: facts for which something else says what is right.  A node that could not tell a fact is no part of it.
    """
    groups: dict[tuple[str, ...], dict[str, Fingerprint]] = defaultdict(dict)
    for node, seen in nodes.items():
        groups[tuple(sorted(seen.get("classes") or ()))][node] = seen
    return tuple(finding for _, group in sorted(groups.items()) for finding in _within(group, policy, covered))


def _within(group: Mapping[str, Fingerprint], policy: Drift | None, covered: Collection[str]) -> list[Finding]:
    told = {node: facts_of(seen) for node, seen in group.items()}
    findings: list[Finding] = []
    for fact in sorted({fact for facts in told.values() for fact in facts} - set(covered)):
        level = level_of(fact, policy)
        values = {node: facts.get(fact, ABSENT) for node, facts in told.items() if not is_silent(fact, group[node])}
        if level is None or len(set(values.values())) < 2:
            continue
        usual, times = Counter(values.values()).most_common(1)[0]
        clear = 2 * times > len(values)
        for node, value in values.items():
            if clear and value == usual:
                continue
            expected = usual if clear else " or ".join(sorted(set(values.values()) - {value}))
            like = next(other for other, theirs in values.items() if (theirs == usual if clear else theirs != value))
            words = "" if clear else "no value is that of most nodes"
            if fact == "python.environment":
                words = "; ".join(each for each in (_environments(group[node], group[like]), words) if each)
            finding = Finding(
                node=node, kind="divergent", fact=fact, found=value, expected=expected, level=level, words=words
            )
            findings.append(finding)
    changed = {each.node for each in findings if each.fact == "python.environment"}
    return [each for each in findings if not (each.node in changed and is_shipped(each.fact, group[each.node]))]


def _environments(one: Fingerprint, other: Fingerprint) -> str:
    mine, theirs = ((each.get("python") or {}).get("distributions") or {} for each in (one, other))
    return changed_distributions(mine, theirs)

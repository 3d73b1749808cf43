"""Storage Scale (GPFS): what its mm commands say, compared with the lock.  Pure: their -Y text in, differences out.

Configuration is compared by attribute and node class, never by text.  Verified against a simulator (tests/mmfs), never run
on Storage Scale; the forms are those of IBM's manuals and of what others' tools read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from phenomhpc.nodes.lock import Gpfs
from phenomhpc.nodes.probe import parse_colons

DEFAULT = "default"
_SIZE = re.compile(r"^(\d+)\s*([KMGTP]?)(?:i?B)?$", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
# TIPS: it could be set better; DISABLED: the component is not in use (mmhealth, IBM's manual).
_WELL = frozenset({"HEALTHY", "TIPS", "DISABLED"})


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An attribute of a node class; found None: not set; wanted None: it overrides what the lock says for all nodes."""

    attribute: str
    node_class: str
    found: str | None
    wanted: str | None

    def __str__(self) -> str:
        where = "" if self.node_class == DEFAULT else f" of {self.node_class}"
        if self.wanted is None:
            return f"{self.attribute}{where} is {self.found}, which overrides the lock's value for all nodes"
        return f"{self.attribute}{where} is {self.found or 'not set'}, not {self.wanted}"


def parse_config(text: str) -> dict[tuple[str, str], str]:
    """{(attribute, node class): value} of `mmlsconfig -Y`; `default` for all nodes.

    Raises ValueError for text of another form.
    """
    rows = [row for row in parse_colons(text) if "configParameter" in row]
    if not rows:
        raise ValueError("no line of mmlsconfig -Y is in it")
    found = {}
    for row in rows:
        for where in row.get("nodeList", "").split(",") if row.get("nodeList") else [DEFAULT]:
            found[row["configParameter"], where.strip()] = row["value"]
    return found


def parse_states(text: str) -> dict[str, str]:
    """{node: state} of `mmgetstate -a -Y`.  Raises ValueError for text of another form."""
    found = {row["nodeName"]: row["state"] for row in parse_colons(text) if "nodeName" in row and "state" in row}
    if not found:
        raise ValueError("no line of mmgetstate -Y is in it")
    return found


def parse_health(text: str) -> dict[tuple[str, str, str], str]:
    """{(node, component, entity): status} of `mmhealth node show -Y`.  Raises ValueError for text of another form."""
    rows = [row for row in parse_colons(text) if row["section"] == "State" and "status" in row]
    if not rows:
        raise ValueError("no State line of mmhealth node show -Y is in it")
    return {(row["node"], row["component"], row["entityname"]): row["status"] for row in rows}


def wanted_config(gpfs: Gpfs) -> dict[tuple[str, str], str]:
    """What the lock says, in the same form."""
    said = {(name, where): value for where, attributes in gpfs.attributes.items() for name, value in attributes.items()}
    return {**said, ("pagepool", gpfs.pagepool_class): f"{gpfs.pagepool_mb}M"}


def compare_config(
    found: Mapping[tuple[str, str], str], wanted: Mapping[tuple[str, str], str]
) -> tuple[Difference, ...]:
    """Differences in the attributes that the lock names; all others are left alone.

    Names of attributes are the same in any case of letters; sizes are the same in any unit.
    """
    by_name = {(name.lower(), where): value for (name, where), value in found.items()}
    names = {name.lower(): name for name, _ in wanted}
    said = {(name.lower(), where) for name, where in wanted}
    differences = [
        Difference(attribute=name, node_class=where, found=by_name.get((name.lower(), where)), wanted=value)
        for (name, where), value in wanted.items()
        if same_value(by_name.get((name.lower(), where)), value) is False
    ]
    differences += [
        Difference(attribute=names[name], node_class=where, found=value, wanted=None)
        for (name, where), value in by_name.items()
        if name in names and where != DEFAULT and (name, where) not in said
    ]
    return tuple(sorted(differences, key=lambda each: (each.node_class, each.attribute)))


def same_value(found: str | None, wanted: str) -> bool:
    """Do two texts say the same?"""
    if found is None:
        return False
    sizes = _bytes(found), _bytes(wanted)
    return sizes[0] == sizes[1] if None not in sizes else found.strip().lower() == wanted.strip().lower()


def _bytes(text: str) -> int | None:
    match = _SIZE.match(text.strip())
    return int(match[1]) * 1024 ** _POWERS[match[2].upper()] if match else None


def change_commands(differences: Sequence[Difference]) -> tuple[tuple[str, ...], ...]:
    """The mmchconfig commands that make it so, one for each node class, for one delegate to run.

    An override that the lock does not have is taken back to the default (mmchconfig: attribute=DEFAULT).
    """
    by_class: dict[str, list[str]] = {}
    for each in differences:
        by_class.setdefault(each.node_class, []).append(f"{each.attribute}={each.wanted or 'DEFAULT'}")
    return tuple(
        ("mmchconfig", ",".join(words), *(() if where == DEFAULT else ("-N", where)))
        for where, words in by_class.items()
    )


def not_active(states: Mapping[str, str], nodes: Sequence[str] = ()) -> dict[str, str]:
    """Nodes whose daemon is not active, and its state; of `nodes`, where given, also those that are not told of."""
    short = {name.partition(".")[0]: state for name, state in states.items()}
    asked = [name.partition(".")[0] for name in nodes] or list(short)
    return {name: short.get(name, "not told") for name in asked if short.get(name) != "active"}


def unwell(health: Mapping[tuple[str, str, str], str]) -> tuple[str, ...]:
    """Components that are not well, one phrase each.  A node as a whole is only told where none of its components says why."""
    bad = {key: status for key, status in health.items() if status.upper() not in _WELL}
    parts = {node for node, component, _ in bad if component != "NODE"}
    return tuple(
        f"{node}: {component} {entity} is {status}" if entity != node else f"{node}: {component} is {status}"
        for (node, component, entity), status in sorted(bad.items())
        if component != "NODE" or node not in parts
    )

"""Rounds: who trains together in one start of a gang.  A round that is decided fences all rounds before it.

    a node's wish (its addresses, whom it cannot reach)  ->  members.json, written once, by the first who knows enough

Only whole files that appear by rename or link: no locks, which shared file systems do each in their own way, and nothing that
grows with time.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phenomhpc.commit import commit, commit_first
from phenomhpc.runs.paths import RoundsPaths
from phenomhpc.runs.records import canonical_json


@dataclass(frozen=True, kw_only=True)
class Member:
    """One node of a round: its rank in the job, where its agent listens (UDP), where rank 0 would serve the round's store (TCP).

    lost: ranks that it does not hear of.
    """

    rank: int
    host: str
    address: str
    port: int
    store_port: int
    lost: tuple[int, ...] = ()


def write_wish(files: RoundsPaths, number: int, member: Member) -> None:
    """Say that a node wants to take part in a round; a later wish replaces an earlier one."""
    commit(files.wish(number, member.rank), canonical_json(asdict(member)))


def read_wishes(files: RoundsPaths, number: int) -> list[Member]:
    """The wishes for a round, by rank."""
    folder = files.round(number)
    try:
        # Listing makes an NFS client look at the server, where asking for one name may be answered from memory.
        entries = sorted(
            entry for entry in folder.iterdir() if entry.name.startswith("node-") and entry.suffix == ".json"
        )
    except FileNotFoundError:
        return []
    return sorted((_member(json.loads(entry.read_bytes())) for entry in entries), key=lambda member: member.rank)


def decide_round(files: RoundsPaths, number: int, members: list[Member]) -> tuple[Member, ...]:
    """Decide a round, or read how it was decided; its members by rank."""
    commit_first(files.members(number), canonical_json([asdict(member) for member in members]))
    return read_round(files, number) or ()


def read_round(files: RoundsPaths, number: int) -> tuple[Member, ...] | None:
    """The members of a round; None while it is not decided."""
    try:
        return tuple(_member(value) for value in json.loads(files.members(number).read_bytes()))
    except FileNotFoundError:
        return None


def newest_round(files: RoundsPaths) -> int:
    """Number of the newest round that is decided; 0 where there is none."""
    numbers = (int(entry.name) for entry in _folders(files.root))
    return max((number for number in numbers if files.members(number).exists()), default=0)


def _folders(root: Path) -> list[Path]:
    try:
        return [entry for entry in root.iterdir() if entry.name.isdigit()]
    except FileNotFoundError:
        return []


def close_rounds(files: RoundsPaths, *, host: str, code: int, words: str) -> None:
    """No further round; the first to say so is heard."""
    commit_first(files.closed, canonical_json({"host": host, "code": code, "words": words}))


def read_closed(files: RoundsPaths) -> dict[str, Any] | None:
    """Which node closed the rounds, with which exit code and words; None while they are open."""
    try:
        value: dict[str, Any] = json.loads(files.closed.read_bytes())
    except FileNotFoundError:
        return None
    return value


def _member(value: dict[str, Any]) -> Member:
    return Member(**{**value, "lost": tuple(value["lost"])})

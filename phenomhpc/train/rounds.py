"""The rendezvous of a gang: its nodes agree on the shared folder who trains together, and do so again when one is lost.

torch's own rendezvous keeps its state in a server on one node, which may be the one that is lost, or in a file that every sign
of life lengthens and that is locked at each look (docs/architecture.md).  Here a round costs a few small files, and between two
rounds nothing is written; who is alive is the business of `peers`.

A node that was cut off must not come back on its own: before it asks for another round, Slurm has to count it among the nodes of
this start of the job (`standing`), and the members of the round that goes on without it have to answer.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from torch._C._distributed_c10d import HashStore
from torch.distributed.elastic.rendezvous.api import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from phenomhpc.errors import DONE, TASK_REQUEUE, FencedError, NodesLost, StopRequested, WorkError
from phenomhpc.runs import RoundsPaths
from phenomhpc.runs.rounds import Member, decide_round, newest_round, read_closed, read_round, read_wishes, write_wish
from phenomhpc.train.peers import Address, Peers

Standing = Callable[[], bool | None]
# What Slurm says where nobody asks it.
always_standing: Final[Standing] = lambda: True  # noqa: E731
# The first round: every node has passed the gate, some later than others.
FIRST_CALL_S: Final = 60.0
# Any later one: a node that is neither here nor called lost is waited for so long.
LAST_CALL_S: Final = 5.0
# Without enough nodes, or without Slurm's word, a node gives up after so long.
JOIN_S: Final = 600.0
ANSWER_S: Final = 5.0
_POLL_S: Final = 0.1


@dataclass(kw_only=True)
class Rounds(RendezvousHandler):
    """One node's part in the rounds of a start.

    hosts: of all nodes, by rank; least: with fewer there is no round; number, members: of the round it is in.
    """

    files: RoundsPaths
    run_id: str
    rank: int
    hosts: tuple[str, ...]
    least: int
    peers: Peers
    standing: Standing = always_standing
    number: int = 0
    members: tuple[Member, ...] = ()
    lost: tuple[int, ...] = ()
    _looked: float = 0.0
    _waiting: int = 0

    # -- what torch's agent asks --------------------------------------------------------------------------------------

    def next_rendezvous(self) -> RendezvousInfo:
        """Take part in the next round that has room for this node.

        Raises NodesLost when fewer than `least` are left, FencedError when Slurm does not count this node among the job's any
        more or never says, WorkError when the others have ended.
        """
        deadline = time.monotonic() + JOIN_S
        before = self.members
        if self.number:
            self._require_standing(deadline)
        while True:
            self._require_open()
            number = newest_round(self.files) + 1
            if self.number and number > self.number + 1:  # the others went on without this node
                self._require_answers(read_round(self.files, number - 1) or (), deadline)
            members = self._take_part(number, deadline)
            if self.rank in {member.rank for member in members}:
                break
            self._require_standing(deadline)
        self.number, self.members = number, members
        self.lost = tuple(member.rank for member in before if member.rank not in {each.rank for each in members})
        self.peers.watch({member.rank: _address(member) for member in members if member.rank != self.rank})
        place = [member.rank for member in members].index(self.rank)
        first = members[0]
        return RendezvousInfo(HashStore(), place, len(members), RendezvousStoreInfo(first.address, first.store_port))

    def num_nodes_waiting(self) -> int:
        """Nodes that want a further round.  Looked up once a second at most: this is a shared file system."""
        if time.monotonic() - self._looked > 1.0:
            self._looked = time.monotonic()
            self._waiting = len(read_wishes(self.files, self.number + 1))
        return self._waiting

    def is_closed(self) -> bool:
        return read_closed(self.files) is not None

    def set_closed(self) -> None:
        """Not asked for by the agent; the guard closes, which knows the exit code."""

    def shutdown(self) -> bool:
        return True

    def get_backend(self) -> str:
        return "phenomhpc"

    def get_run_id(self) -> str:
        return self.run_id

    # -- one round ----------------------------------------------------------------------------------------------------

    def _take_part(self, number: int, deadline: float) -> tuple[Member, ...]:
        """Say that this node is here until the round is decided; its members."""
        wish = self._wish()
        write_wish(self.files, number, wish)
        before = read_round(self.files, number - 1)
        expected = frozenset(range(len(self.hosts)) if before is None else (member.rank for member in before))
        began, least_since, present = time.monotonic(), 0.0, 0
        call_s = FIRST_CALL_S if number == 1 else LAST_CALL_S
        while (members := read_round(self.files, number)) is None:
            self._require_open()
            lost = self.peers.lost()
            if lost != wish.lost:
                wish = replace(wish, lost=lost)
                write_wish(self.files, number, wish)
            wishes = read_wishes(self.files, number)
            now = time.monotonic()
            if len(wishes) != present:
                present, least_since = len(wishes), now
            called = now - least_since > call_s
            chosen = choose(wishes, expected, self.least, called=called)
            if chosen:
                return decide_round(self.files, number, chosen)
            self._require_enough(wishes, expected, called and now - began > FIRST_CALL_S, now > deadline)
            time.sleep(_POLL_S)
        return members

    def _wish(self) -> Member:
        address = self.peers.address
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
            store_port = probe.getsockname()[1]
        return Member(
            rank=self.rank, host=self.hosts[self.rank], address=address, port=self.peers.port, store_port=store_port,
            lost=self.peers.lost(),
        )  # fmt: skip

    # -- reasons to leave ---------------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        closed = read_closed(self.files)
        if closed is None:
            return
        words = f"{closed['host']} has ended with code {closed['code']}: {closed['words']}"
        if closed["code"] == DONE:
            raise FencedError(words)
        raise StopRequested(words) if closed["code"] == TASK_REQUEUE else WorkError(f"Rendezvous closed: {words}")

    def _require_enough(self, wishes: Sequence[Member], expected: frozenset[int], late: bool, over: bool) -> None:
        here = {member.rank for member in wishes}
        gone = expected - here if over or (late and self.number) else _lost(wishes) - here
        if over or len((expected | here) - gone) < self.least:
            names = ", ".join(self.hosts[rank] for rank in sorted(gone))
            left = f"{len(here)} of {len(self.hosts)} node(s) are left, at least {self.least} are needed"
            raise NodesLost(f"lost {names}: {left}" if names else left)

    def _require_standing(self, deadline: float) -> None:
        """Go on once Slurm says that this node belongs to the job.  No answer is no permission: so it is for a node cut off."""
        while (standing := self.standing()) is None:
            if time.monotonic() > deadline:
                raise FencedError(f"{self.hosts[self.rank]}: Slurm did not answer for {JOIN_S:.0f} s; this node leaves")
            time.sleep(1.0)
        if not standing:
            raise FencedError(
                f"{self.hosts[self.rank]}: Slurm does not count this node among the job's any more; it leaves"
            )

    def _require_answers(self, members: Sequence[Member], deadline: float) -> None:
        others = {member.rank: _address(member) for member in members if member.rank != self.rank}
        while not self.peers.reaches(others, ANSWER_S):
            self._require_open()
            if time.monotonic() > deadline:
                raise FencedError(
                    f"{self.hosts[self.rank]}: the others go on without this node and do not answer it; it leaves"
                )
            self._require_standing(deadline)


def _lost(wishes: Sequence[Member]) -> set[int]:
    return {rank for member in wishes for rank in member.lost}


def choose(wishes: Sequence[Member], expected: Collection[int], least: int, *, called: bool) -> list[Member]:
    """Who takes part, by rank; nobody while it is too early to tell.

    It is time when each of the expected ranks is here or called lost by one that is, or after the last call.  Of two that do not
    hear each other, the one whom fewer call lost stays, then the lower rank.
    """
    if not (called or {member.rank for member in wishes} | _lost(wishes) >= set(expected)):
        return []
    blamed = {member.rank: sum(member.rank in other.lost for other in wishes) for member in wishes}
    chosen: list[Member] = []
    for member in sorted(wishes, key=lambda member: (blamed[member.rank], member.rank)):
        if not any(member.rank in other.lost or other.rank in member.lost for other in chosen):
            chosen.append(member)
    return sorted(chosen, key=lambda member: member.rank) if len(chosen) >= least else []


def _address(member: Member) -> Address:
    return member.address, member.port

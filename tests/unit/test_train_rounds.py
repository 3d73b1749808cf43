"""Who trains together: pure choices, and agents' rounds over real files and datagrams on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from phenomhpc.errors import FencedError, NodesLost, PhenomError, StopRequested
from phenomhpc.runs import RoundsPaths
from phenomhpc.runs.rounds import Member, close_rounds, newest_round, read_round, write_wish
from phenomhpc.train import rounds as rounds_module
from phenomhpc.train.peers import Peers
from phenomhpc.train.rounds import Rounds, choose

HOSTS = ("a", "b", "c", "d")


def wish(rank: int, *lost: int) -> Member:
    return Member(rank=rank, host=HOSTS[rank], address="127.0.0.1", port=1, store_port=2, lost=lost)


def ranks(members: list[Member]) -> list[int]:
    return [member.rank for member in members]


def test_a_round_waits_for_everybody_who_is_not_called_lost() -> None:
    assert choose([wish(0), wish(1)], range(4), 2, called=False) == []
    assert choose([wish(0, 3), wish(1)], range(4), 2, called=False) == []
    assert ranks(choose([wish(0, 3), wish(1), wish(2)], range(4), 2, called=False)) == [0, 1, 2]
    assert ranks(choose([wish(0), wish(1)], range(4), 2, called=True)) == [0, 1]
    assert choose([wish(0)], range(4), 2, called=True) == []


def test_of_two_that_do_not_hear_each_other_one_stays() -> None:
    # Everybody has lost 2, which asks all the same, and calls all others lost.
    assert ranks(choose([wish(0, 2), wish(1, 2), wish(2, 0, 1)], range(3), 1, called=False)) == [0, 1]
    # One link: the lower rank stays.
    assert ranks(choose([wish(0), wish(1, 2), wish(2, 1)], range(3), 1, called=False)) == [0, 1]
    # Two halves: the one with the lowest rank.
    halves = [wish(0, 2, 3), wish(1, 2, 3), wish(2, 0, 1), wish(3, 0, 1)]
    assert ranks(choose(halves, range(4), 2, called=False)) == [0, 1]


class Node:
    """One agent's view of the rounds, in a thread of its own when it asks for one."""

    def __init__(self, files: RoundsPaths, rank: int, peers: Peers, least: int) -> None:
        self.standing: bool | None = True
        self.asked = 0
        self.rounds = Rounds(
            files=files, run_id="r", rank=rank, hosts=HOSTS[:3], least=least, peers=peers, standing=self._stands
        )
        self.error: PhenomError | None = None

    def _stands(self) -> bool | None:
        self.asked += 1
        return self.standing

    def ask(self) -> threading.Thread:
        def work() -> None:
            try:
                self.rounds.next_rendezvous()
            except PhenomError as error:
                self.error = error

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread


# Silence after which a node is lost: longer than a busy machine lets a thread wait.
LOST_S = 4.0
Gang = tuple[list[Node], list[ExitStack]]


@pytest.fixture
def gang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gang]:
    """Three nodes in their first round; closing a node's stack silences it."""
    monkeypatch.setattr(rounds_module, "LAST_CALL_S", 1.0)
    stacks = [ExitStack() for _ in range(3)]
    nodes = []
    for rank, stack in enumerate(stacks):
        peers = stack.enter_context(Peers(key="k", rank=rank, address="127.0.0.1", lost_after_s=LOST_S))
        nodes.append(Node(RoundsPaths(tmp_path), rank, peers, least=2))
    all_join(nodes)
    for node in nodes:
        others = {each.rank: (each.address, each.port) for each in node.rounds.members if each.rank != node.rounds.rank}
        assert node.rounds.peers.reaches(others, 90)
    yield nodes, stacks
    for stack in stacks:
        stack.close()


def all_join(nodes: list[Node]) -> None:
    threads = [node.ask() for node in nodes]
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive()


def until(condition: Callable[[], object], limit_s: float = 90) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_all_agree_on_the_first_round_and_hear_each_other(gang: Gang) -> None:
    nodes, _ = gang
    assert {node.rounds.number for node in nodes} == {1}
    assert {ranks(list(node.rounds.members)) == [0, 1, 2] for node in nodes} == {True}
    time.sleep(1.3 * LOST_S)
    assert [node.rounds.peers.lost() for node in nodes] == [(), (), ()]


def test_a_silent_node_is_done_without_and_comes_back_when_it_may(gang: Gang, tmp_path: Path) -> None:
    nodes, stacks = gang
    stacks[0].close()  # the first: whoever serves the store is no exception
    until(lambda: nodes[1].rounds.peers.lost() == nodes[2].rounds.peers.lost() == (0,))
    all_join(nodes[1:])
    assert [node.rounds.number for node in nodes] == [1, 2, 2]
    assert ranks(list(nodes[1].rounds.members)) == [1, 2]
    assert nodes[1].rounds.lost == (0,)
    assert nodes[1].asked == 1  # Slurm was asked before, and only then

    # Slurm does not answer the node that was cut off: it neither asks for a round nor writes anything.
    nodes[0].standing = None
    before = sorted(tmp_path.rglob("*"))
    with Peers(key="k", rank=0, address="127.0.0.1", lost_after_s=LOST_S) as peers:
        nodes[0].rounds.peers = peers
        thread = nodes[0].ask()
        until(lambda: nodes[0].asked >= 2)
        assert sorted(tmp_path.rglob("*")) == before
        # Then it says that the node still belongs to the job, and the others answer it.
        nodes[0].standing = True
        until(lambda: nodes[1].rounds.num_nodes_waiting() == 1)
        all_join(nodes[1:])
        thread.join(90)
        assert {node.rounds.number for node in nodes} == {3}
        assert ranks(list(nodes[2].rounds.members)) == [0, 1, 2]


def test_a_node_that_slurm_has_dropped_leaves(gang: Gang, tmp_path: Path) -> None:
    nodes, _ = gang
    nodes[2].standing = False
    before = sorted(tmp_path.rglob("*"))
    nodes[2].ask().join(90)
    assert isinstance(nodes[2].error, FencedError)
    assert sorted(tmp_path.rglob("*")) == before


def test_fewer_than_the_least_are_no_round(gang: Gang) -> None:
    nodes, stacks = gang
    stacks[1].close()
    stacks[2].close()
    until(lambda: nodes[0].rounds.peers.lost() == (1, 2))
    nodes[0].ask().join(90)
    assert isinstance(nodes[0].error, NodesLost)
    assert str(nodes[0].error) == "lost b, c: 1 of 3 node(s) are left, at least 2 are needed"


def test_a_round_that_was_closed_is_left_as_it_was_closed(gang: Gang, tmp_path: Path) -> None:
    nodes, _ = gang
    close_rounds(RoundsPaths(tmp_path), host="b", code=75, words="stopped as asked")
    close_rounds(RoundsPaths(tmp_path), host="c", code=1, words="came second")
    nodes[0].ask().join(90)
    assert isinstance(nodes[0].error, StopRequested)
    assert "b has ended with code 75: stopped as asked" in str(nodes[0].error)


def test_a_stranger_is_not_heard() -> None:
    with (
        Peers(key="mine", rank=0, address="127.0.0.1", lost_after_s=0.5) as mine,
        Peers(key="other", rank=1, address="127.0.0.1", lost_after_s=0.5) as other,
    ):
        assert not mine.reaches({1: ("127.0.0.1", other.port)}, 1.5)
    with (
        Peers(key="mine", rank=0, address="127.0.0.1", lost_after_s=0.5) as mine,
        Peers(key="mine", rank=1, address="127.0.0.1", lost_after_s=0.5) as same,
    ):
        assert mine.reaches({1: ("127.0.0.1", same.port)}, 60)


def test_the_newest_round_is_the_newest_that_was_decided(tmp_path: Path) -> None:
    files = RoundsPaths(tmp_path / "rounds")
    assert newest_round(files) == 0
    write_wish(files, 1, wish(0))
    assert newest_round(files) == 0 and read_round(files, 1) is None

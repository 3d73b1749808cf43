"""A short all-reduce across the nodes of a gang, one process per node, before training: does the network carry?

    python -m phenomhpc.train.allreduce     a Task as one JSON line on stdin; one JSON line on stdout

Started early, so that torch is loaded while the node is looked at; it waits for its line, and leaves when stdin closes.
It uses gloo on CPUs, and NCCL when every node sees a GPU (its first one; never run there).  Every wait has an end.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from phenomhpc.nodes.gate import bus_gbps, pair_rounds, slow_nodes
from phenomhpc.nodes.interface import interface_of
from phenomhpc.runs import commit

SIZES = (64 * 1024, 4 * 2**20)
GPU_SIZES = (*SIZES, 64 * 2**20, 256 * 2**20)
MOST_REPEATS = 5
MOST_ROUNDS = 4
# Bytes that two nodes exchange: what takes about PAIR_S at the speed of the first all-reduce, between these.
PAIR_BYTES = (64 * 1024, 4 * 2**20)
GPU_PAIR_BYTES = (2**20, 64 * 2**20)
PAIR_S = 0.1
PAIR_REPEATS = 2
# A suspicion is looked into again: on a busy machine a process may lose its core just then.
CONFIRMATIONS = 2
# Without a GPU, an exchange that is over in less is never called slow: that much a busy machine's scheduler takes.
JITTER_S = 0.02
# Trying to connect to the others: how long, and how many at once.
TRY_S = 5.0
MOST_TRIES = 64
# Once all are there, no answer of a peer takes longer.
ANSWER_S = 20
_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Task:
    """One node's part.  hosts: all nodes, by rank; meeting: a file in a folder that all of them see."""

    rank: int
    hosts: tuple[str, ...]
    meeting: str
    device: str
    join_s: float
    budget_s: float
    min_gbps: float | None = None


class PeerMissing(Exception):
    """The all-reduce could not begin; ranks: those that are not there."""

    def __init__(self, words: str, ranks: list[int]) -> None:
        super().__init__(words)
        self.ranks = ranks


def measure(task: Task) -> dict[str, Any]:
    """Meet, all-reduce, exchange in pairs; the figures are the same on every rank.

    Returns backend, joined_s, seconds, allreduce (AllReduce's fields by size), pairs ([rank, rank, Gbit/s]), plenty_gbps.
    Raises PeerMissing naming ranks, or what torch raises when the network fails in mid-work.
    """
    began = time.monotonic()
    address = socket.gethostbyname(task.hosts[task.rank])
    interface = interface_of(address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    store, backend = _meet(task)
    device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
    limit = timedelta(seconds=ANSWER_S)
    world = len(task.hosts)
    dist.init_process_group(backend, store=PrefixStore("gate", store), rank=task.rank, world_size=world, timeout=limit)
    met = time.monotonic()
    figures = _all_reduce(world, device, task.budget_s)
    pairs, plenty = _pairs(task, device, figures[0]["seconds"])
    _slowest(0.0, device)  # nobody leaves before all are done
    return {
        "backend": backend,
        "joined_s": met - began,
        "seconds": time.monotonic() - began,
        "allreduce": figures,
        "pairs": [[first, second, gbps] for (first, second), gbps in sorted(pairs.items())],
        "plenty_gbps": plenty,
    }


def _meet(task: Task) -> tuple[TCPStore, str]:
    """The store on the first node, when all are there and reach each other; NCCL if all of them see a GPU."""
    deadline = time.monotonic() + task.join_s
    limit = timedelta(seconds=task.join_s)
    world = len(task.hosts)
    if task.rank == 0:
        store = TCPStore("127.0.0.1", 0, world, True, limit, wait_for_workers=False)
        commit(Path(task.meeting), json.dumps({"host": task.hosts[0], "port": store.port}))
    else:
        host, port = _meeting(Path(task.meeting), task, deadline)
        try:
            store = TCPStore(host, port, world, False, limit, wait_for_workers=False)
        except RuntimeError as error:
            raise PeerMissing(f"{host}:{port} cannot be reached ({_first_line(error)})", [0]) from error
    on_gpu = task.device != "cpu" and torch.cuda.is_available()
    with _listening() as port:
        store.set(f"here-{task.rank}", json.dumps(["gpu" if on_gpu else "cpu", port]))
        here = _from_all(store, task, "here", deadline)
        # Who cannot reach whom: gloo itself would try for minutes, and not say whom.
        unreached = _unreached(task, [int(port) for _, port in here])
        store.set(f"reached-{task.rank}", json.dumps(unreached))
        reports = _from_all(store, task, "reached", time.monotonic() + ANSWER_S)
    lost = cut_off(reports)
    if lost:
        words = "; ".join(
            f"{task.hosts[rank]} cannot reach {', '.join(task.hosts[each] for each in report)}"
            for rank, report in enumerate(reports)
            if report
        )
        raise PeerMissing(words, lost)
    return store, "nccl" if all(kind == "gpu" for kind, _ in here) else "gloo"


def cut_off(unreached: list[list[int]]) -> list[int]:
    """The ranks that fail to reach others, or to be reached, most often; none when all reach all."""
    counts = [len(report) + sum(rank in other for other in unreached) for rank, report in enumerate(unreached)]
    most = max(counts)
    return [rank for rank, count in enumerate(counts) if count == most] if most else []


@contextmanager
def _listening() -> Iterator[int]:
    """A port of this node that others may try."""
    with socket.create_server(("", 0), backlog=MOST_TRIES) as server:
        yield server.getsockname()[1]


def _unreached(task: Task, ports: list[int]) -> list[int]:
    def fails(rank: int) -> bool:
        try:
            with socket.create_connection((task.hosts[rank], ports[rank]), timeout=TRY_S):
                return False
        except OSError:
            return True

    others = [rank for rank in range(len(task.hosts)) if rank != task.rank]
    with ThreadPoolExecutor(min(MOST_TRIES, len(others))) as pool:
        return [rank for rank, failed in zip(others, pool.map(fails, others), strict=True) if failed]


def _from_all(store: TCPStore, task: Task, name: str, deadline: float) -> list[Any]:
    """Every rank's value; raises PeerMissing naming those who gave none in time."""
    keys = [f"{name}-{rank}" for rank in range(len(task.hosts))]
    for key in keys:
        while not store.check([key]):
            if time.monotonic() > deadline:
                gone = [rank for rank, each in enumerate(keys) if not store.check([each])]
                names = ", ".join(task.hosts[rank] for rank in gone)
                raise PeerMissing(f"{names} did not come to the all-reduce within {task.join_s:g} s", gone)
            time.sleep(_POLL_S)
    return [json.loads(store.get(key)) for key in keys]


def _meeting(path: Path, task: Task, deadline: float) -> tuple[str, int]:
    # Listing the folder makes an NFS client look at the server, where asking for one name may be answered from memory.
    while path.name not in os.listdir(path.parent):  # noqa: PTH208
        if time.monotonic() > deadline:
            raise PeerMissing(f"{task.hosts[0]} did not come to the all-reduce within {task.join_s:g} s", [0])
        time.sleep(_POLL_S)
    value = json.loads(path.read_bytes())
    return value["host"], value["port"]


def _all_reduce(world: int, device: torch.device, budget_s: float) -> list[dict[str, float]]:
    """Each size, as long as it is likely to fit into the budget; every rank decides alike, from the slowest's time."""
    began = time.monotonic()
    figures: list[dict[str, float]] = []
    for size in GPU_SIZES if device.type == "cuda" else SIZES:
        buffer = torch.ones(size // 4, device=device)
        repeats = MOST_REPEATS
        if figures:
            left = budget_s - _slowest(time.monotonic() - began, device)
            expected = figures[-1]["seconds"] * size / figures[-1]["bytes"]
            if expected > left / 2:
                break
            repeats = max(1, min(MOST_REPEATS, int(left / 2 / expected)))
        else:
            _timed(buffer, device)  # connections are made at the first use
        seconds = min(_slowest(_timed(buffer, device), device) for _ in range(repeats))
        figures.append({"bytes": size, "seconds": seconds, "busbw_gbps": bus_gbps(size, seconds, world)})
    return figures


def _timed(buffer: torch.Tensor, device: torch.device) -> float:
    began = time.perf_counter()
    dist.all_reduce(buffer)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _slowest(value: float, device: torch.device) -> float:
    box = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return float(box.item())


def _pairs(task: Task, device: torch.device, first_s: float) -> tuple[dict[tuple[int, int], float], float | None]:
    """Bandwidth of pairs, Gbit/s in the slower direction, and what is plenty; suspicions are looked into again."""
    on_gpu = device.type == "cuda"
    least, most = GPU_PAIR_BYTES if on_gpu else PAIR_BYTES
    size = int(min(max(SIZES[0] * PAIR_S / first_s, least), most)) // 4 * 4
    plenty = None if on_gpu else size * 8e-9 / JITTER_S
    world = len(task.hosts)
    if world < 3:
        return {}, plenty
    rounds = pair_rounds(world, MOST_ROUNDS)
    seconds = torch.full((len(rounds), world), torch.inf, dtype=torch.float64, device=device)
    pairs: dict[tuple[int, int], float] = {}
    for _ in range(1 + CONFIRMATIONS):
        seconds = torch.minimum(seconds, _exchange(task.rank, rounds, size, device, world))
        pairs = {
            pair: size * 8e-9 / max(float(seconds[number, pair[0]]), float(seconds[number, pair[1]]))
            for number, pairs_of_round in enumerate(rounds)
            for pair in pairs_of_round
        }
        if not slow_nodes(pairs, world, task.min_gbps, plenty):
            break
    return pairs, plenty


def _exchange(
    rank: int, rounds: list[list[tuple[int, int]]], size: int, device: torch.device, world: int
) -> torch.Tensor:
    """Seconds f64[rounds, ranks] of each rank's exchange in each round, on every rank."""
    mine = torch.zeros((len(rounds), world), dtype=torch.float64, device=device)
    out, into = torch.ones(size // 4, device=device), torch.empty(size // 4, device=device)
    for number, pairs in enumerate(rounds):
        peer = next((sum(pair) - rank for pair in pairs if rank in pair), None)
        best = torch.inf
        for _ in range(PAIR_REPEATS):
            _slowest(0.0, device)  # nobody waits for a peer that is still busy with another
            if peer is None:
                continue
            began = time.perf_counter()
            both = [dist.P2POp(dist.isend, out, peer), dist.P2POp(dist.irecv, into, peer)]
            for work in dist.batch_isend_irecv(both):
                work.wait()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - began)
        mine[number, rank] = best if peer is not None else 0.0
    dist.all_reduce(mine)
    return mine


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def main() -> int:
    """Reads a Task, prints what was measured, or {"error": words, "ranks": those to blame}."""
    line = sys.stdin.readline()
    if not line.strip():
        return 0  # the gate was refused before
    raw = json.loads(line)
    task = Task(**{**raw, "hosts": tuple(raw["hosts"])})
    try:
        said = measure(task)
    except PeerMissing as error:
        said = {"error": str(error), "ranks": error.ranks}
    except Exception as error:
        words = " ".join(str(error).split())
        addresses = {socket.gethostbyname(host): rank for rank, host in enumerate(task.hosts) if rank != task.rank}
        ranks = [rank for address, rank in addresses.items() if f"[{address}]" in words or f"{address}:" in words]
        said = {"error": f"{type(error).__name__}: {words[:300]}", "ranks": ranks}
    print(json.dumps(said), flush=True)
    # Threads of the process group may still wait for a peer that is gone.
    os._exit(0)


def spoken(task: Task) -> str:
    """The line for stdin."""
    return json.dumps(asdict(task)) + "\n"


if __name__ == "__main__":
    sys.exit(main())

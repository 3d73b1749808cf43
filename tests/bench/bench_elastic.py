"""From a lost node to the next training step, on the tests' Slurm cluster: `make bench-elastic`.

Four nodes of one CPU rank each train a tiny model (`--nodes 2:4`) until a node loses its power or its network.  All clocks are
one machine's.  Beside the elastic rows: the same power cut in a gang of a fixed size, which Slurm requeues.

    noticed   the survivors leave their round        again   the first step behind the reloaded checkpoint
    round     they have agreed on a new one          lost    training since that checkpoint was committed, to be done again
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq

from phenomhpc.runs import RunPaths, read_events
from tests.cluster import Cluster
from tests.cluster.cluster import wait_until
from tests.slurm.test_jobs import TINY, Shell, make_shell

EVERY = 10
LIMIT_S = 300.0
# name, --nodes, rank of the node that is harmed, partition (else a power cut)
CASES = (
    ("a node's power is cut", "2:4", 2, False),
    ("a node's network is cut", "2:4", 2, True),
    ("the head's power is cut", "2:4", 0, False),
    ("the head's network is cut", "2:4", 0, True),
    ("a node's power is cut, --nodes 3", "3", 2, False),
)


def measure(shell: Shell, nodes: str, rank: int, partition: bool) -> dict[str, float]:
    """Seconds from the harm to each point; `lost`: from the last commit to the harm."""
    cluster = shell.cluster
    words = ["--nodes", nodes, "--gpus-per-node", "1", "optim.steps=100000", f"checkpoint.every_steps={EVERY}"]
    run = shell.submit("pretrain", "--store", "store", *words, *TINY, wait=False)
    wait_until("it has committed", lambda: len(of(run, "checkpoint")) >= 3, LIMIT_S)
    host = next(str(event["host"]) for event in of(run, "started") if event["task"] == rank)
    number = int(host.removeprefix("n"))
    harmed = time.time()
    (cluster.partition if partition else cluster.power_cut)(number)
    try:
        wait_until("it goes on", lambda: [at for at in resumed(run) if at > harmed], LIMIT_S)
        again = min(at for at in resumed(run) if at > harmed)
        wait_until("a step is written down", lambda: [at for at in steps(run) if at > again], LIMIT_S)
        first = min(at for at in steps(run) if at > again)
        rounds = [event for event in of(run, "round") if seconds(event) > harmed]
        committed = max(seconds(event) for event in of(run, "checkpoint") if seconds(event) <= again)
    finally:
        shell.type("cancel", run.id)
        (cluster.heal if partition else cluster.power_on)(number)
        cluster.wait_idle(120)
    figures = {"again": first - harmed, "lost": max(0.0, harmed - committed)}
    if rounds:
        agreed = seconds(rounds[0])
        figures |= {"round": agreed - harmed, "noticed": agreed - harmed - rounds[0]["seconds"]}
    return figures


def of(run: RunPaths, name: str) -> list[dict[str, object]]:
    return [event for event in read_events(run) if event["event"] == name]


def seconds(event: dict[str, object]) -> float:
    return datetime.fromisoformat(str(event["time"])).timestamp()


def resumed(run: RunPaths) -> list[float]:
    return [seconds(event) for event in of(run, "resumed")]


def steps(run: RunPaths) -> list[float]:
    """When the steps that were written down ended."""
    files = run.metrics.glob("*.parquet") if run.metrics.is_dir() else ()
    return [at.timestamp() for file in files for at in pq.read_table(file, columns=["time"])["time"].to_pylist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", type=int, action="append", help="number of a case, from 0; default: all")
    arguments = parser.parse_args()
    repeats, cases = arguments.repeats, [CASES[number] for number in arguments.case or range(len(CASES))]
    with Cluster(Path(tempfile.mkdtemp(prefix="phcb"))) as cluster, tempfile.TemporaryDirectory() as folder:
        shell = make_shell(cluster, Path(folder))
        shell.type("convert", "--plates", "raw", "--store", "store", "shard_mb=1")
        print("| case | noticed | round | again | lost |\n|---|---|---|---|---|")
        for name, nodes, rank, partition in cases:
            found = [measure(shell, nodes, rank, partition) for _ in range(repeats)]
            cells = [
                f"{statistics.median(each[key] for each in found):.1f}" if key in found[0] else "-"
                for key in ("noticed", "round", "again", "lost")
            ]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Killing what is at work for a run, on any node: for tests that kill -9 whatever they draw."""

from __future__ import annotations

import random
import re
import signal
import time
from dataclasses import dataclass

from phenomhpc.runs import RunPaths, read_events, read_outcome
from tests.cluster import ClusterError
from tests.slurm.provoking import Lab

# How often a steward, too, is killed at its work, which is to start the next attempt.
STEWARD_SHARE = 0.15
_STEP = re.compile(r"^slurmstepd: \[(\d+)\.(\w+)\]")


@dataclass(frozen=True, kw_only=True)
class Victim:
    """A process of a run: the number of its node, its id there, and what it is."""

    node: int
    pid: int
    kind: str


def processes_of(lab: Lab, names: tuple[str, ...]) -> list[Victim]:
    """Every process below Slurm's own for the jobs of these names, on all nodes."""
    # %A: every element of an array has an id of its own, which its steps are called by.
    lines = lab.cluster.run(["squeue", "-h", "-o", "%A|%j"]).stdout.splitlines()
    jobs = {line.split("|")[0] for line in lines if line.split("|")[1] in names}
    found = []
    for node in range(1, lab.cluster.spec.nodes + 1):
        there = lab.cluster.processes_on(node)
        kinds: dict[int, str] = {}
        for process in there:
            step = _STEP.match(process.argv[0]) if process.argv else None
            if step and step[1] in jobs:
                kinds[process.pid] = (
                    "slurmstepd of the batch script" if step[2] == "batch" else "slurmstepd of the task"
                )
        for _ in there:  # parents may be listed behind their children
            for process in there:
                if process.parent in kinds and process.pid not in kinds:
                    kinds[process.pid] = _kind(process.argv, kinds[process.parent])
        found += [Victim(node=node, pid=pid, kind=kind) for pid, kind in sorted(kinds.items())]
    return found


def _kind(argv: tuple[str, ...], parent: str) -> str:
    """What a process is, by its command and by what its parent is."""
    if "phenomhpc.jobs.steward" in argv:
        return "steward"
    if parent == "slurmstepd of the batch script":
        return "batch script"
    if parent in ("batch script", "srun"):
        return "srun"
    return {"slurmstepd of the task": "guard", "guard": "child of the guard"}.get(parent, "what that began")


def kill(lab: Lab, victims: list[Victim], draw: random.Random) -> Victim | None:
    """kill -9 of one of them, each kind as likely as another; None where it was gone already."""
    kinds = sorted({victim.kind for victim in victims})
    if not kinds:
        return None
    kind = draw.choice(kinds)
    victim = draw.choice([victim for victim in victims if victim.kind == kind])
    try:
        lab.cluster.signal_on(victim.node, victim.pid, signal.SIGKILL)
    except ClusterError:
        if any(process.pid == victim.pid for process in lab.cluster.processes_on(victim.node)):
            raise
        return None
    return victim


def kill_steward(lab: Lab, run: RunPaths, draw: random.Random) -> list[str]:
    """Kill the steward that comes after an attempt, at its work; then a person looks, and the run goes on."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and read_outcome(run) is None:
        found = [victim for victim in processes_of(lab, (f"steward-{run.id}",)) if victim.kind == "steward"]
        if found:
            time.sleep(draw.uniform(0, 1.0))
            victim = kill(lab, found, draw)
            lab.status(run)
            return [victim.kind] if victim else []
        time.sleep(0.1)
    return []


def story(run: RunPaths, events: int = 60, lines: int = 25) -> str:
    """What a run's last events and the ends of its newest logs say."""
    told = [f"{event['time']} {event['event']} {event}" for event in read_events(run)][-events:]
    logs = sorted((run.root / "logs").iterdir(), key=lambda path: path.stat().st_mtime)[-3:]
    ends = [f"== {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) for log in logs]
    return "\n".join([*told, *ends])

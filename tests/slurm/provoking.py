"""What tests of failures share: a laboratory of small plates, a shell that logs out, and eyes on a run and on its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.runs import Event, RunPaths, read_events, read_outcome
from tests.cluster import Cluster, ClusterError
from tests.cluster.cluster import wait_until
from tests.slurm.test_jobs import Shell

# The machine is shared with tests that compute: waits are long, and end when what they wait for is there.
LIMIT_S = 420.0
TINY = (
    "model=mae_vit_tiny", "optim=cpu", "optim.global_batch=16", "optim.micro_batch=8", "log_every_steps=1",
    "cluster.gpus_per_node=1", "cluster.mem_mb=3000",
)  # fmt: skip


class Lab(Shell):
    """A folder on the shared file system; whoever submits has logged out when `leave` returns."""

    def leave(self, *words: str, env: Mapping[str, str] | None = None) -> RunPaths:
        """Submit in a session of its own; the run, when no process of that session exists any more."""
        process = subprocess.Popen(
            self.cluster.command(["phenomhpc", "submit", *words], self.folder),
            env=self.cluster.environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        out, err = process.communicate(timeout=LIMIT_S)
        if process.returncode:
            raise ClusterError(f"submit {' '.join(words)}: exit code {process.returncode}\n{out}\n{err}")
        assert not _of_session(process.pid), "the submitting shell is still there"
        return RunPaths(
            self.folder / "runs" / next(line.split()[1] for line in out.splitlines() if "submitted:" in line)
        )

    def pretrain(self, *words: str, steps: int, every: int = 5, env: Mapping[str, str] | None = None) -> RunPaths:
        sizes = [f"optim.steps={steps}", f"checkpoint.every_steps={every}"]
        return self.leave("pretrain", "--store", "store", *TINY, *sizes, *words, env=env)

    def convert(self, *words: str, plates: Path | str = "raw", env: Mapping[str, str] | None = None) -> RunPaths:
        store = f"store-{time.monotonic_ns()}"
        return self.leave("convert", "--plates", str(plates), "--store", store, "shard_mb=1", *words, env=env)

    def ended(self, run: RunPaths, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The outcome, once there is one."""
        wait_until(f"{run.id} has ended", lambda: read_outcome(run) is not None, limit_s)
        outcome = read_outcome(run)
        assert outcome is not None
        return outcome

    def event(self, run: RunPaths, what: str, fits: Callable[[Event], bool] = lambda _: True) -> Event:
        """The first event of a kind that fits, once it is there."""
        found: list[Event] = []

        def there() -> bool:
            found.extend(event for event in read_events(run) if event["event"] == what and fits(event))
            return bool(found)

        wait_until(f"event {what} of {run.id}", there, LIMIT_S)
        return found[0]

    def job_of(self, run: RunPaths) -> str:
        """The newest job of a run that is not its steward's."""
        return str([event["job_id"] for event in read_events(run) if event["event"] == "started"][-1])


def make_lab(cluster: Cluster, folder: Path) -> Lab:
    """Two experiments of two small plates, converted here and now."""
    spec = SyntheticSpec(
        plate_rows=2, plate_columns=4, field_px=96, num_genes=6, genes_per_pathway=2, num_unexpressed=0, control_share=0.3,
        plates_per_experiment=2,
    )  # fmt: skip
    write_plates(folder / "raw", spec, silent(), workers=1)
    lab = Lab(cluster, folder)
    lab.type("init", "--yes")
    lab.type("convert", "--plates", "raw", "--store", "store", "shard_mb=1", "runs=here")
    return lab


def of_kind(run: RunPaths, what: str) -> list[Event]:
    """A run's events of one kind, oldest first."""
    return [event for event in read_events(run) if event["event"] == what]


def number_of(host: str) -> int:
    """Number of the node of this name."""
    return int(host.removeprefix("n"))


@dataclass(frozen=True, kw_only=True)
class Crew:
    """A run's processes on a node, by their ids there: the guard, and those below it that do the work."""

    cluster: Cluster
    node: int
    guard: int
    work: tuple[int, ...]

    def signal(self, name: signal.Signals, *, guard: bool = False) -> None:
        """Signal the work, and the guard where asked for; what is gone already is gone."""
        for pid in ((self.guard,) if guard else ()) + self.work:
            try:
                self.cluster.signal_on(self.node, pid, name)
            except ClusterError:
                if any(process.pid == pid for process in self.cluster.processes_on(self.node)):
                    raise


def crew_of(cluster: Cluster, run: RunPaths, node: int) -> Crew | None:
    """The run's processes on a node; None where there are none, or no work yet."""
    there = cluster.processes_on(node)
    ours = {process.pid for process in there if _is_task(process.argv, run)}
    guards = [process.pid for process in there if process.pid in ours and process.parent not in ours]
    if not guards:
        return None
    below = {guards[0]}
    for _ in there:  # parents may be listed behind their children
        below |= {process.pid for process in there if process.parent in below}
    work = tuple(sorted(below - {guards[0]}))
    return Crew(cluster=cluster, node=node, guard=guards[0], work=work) if work else None


def _is_task(argv: tuple[str, ...], run: RunPaths) -> bool:
    return (
        "phenomhpc.jobs.slurm_task" in argv
        and any(Path(word).name == run.id for word in argv)
        and "srun" not in argv[0]
    )


def _of_session(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == leader:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found

"""What to ask of Slurm: a pure function of the job's plan, its settings and the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from phenomhpc.config import ClusterConfig
from phenomhpc.errors import UsageError
from phenomhpc.slurm.facts import ClusterFacts, Partition
from phenomhpc.slurm.refuse import problems_of
from phenomhpc.slurm.window import Chunk, Limits, Window, next_chunk, window_of

# Without a cluster to ask (a dry run), Slurm's own default.
DEFAULT_MAX_ARRAY_SIZE = 1001
# Seconds between the signal and the end: time for a checkpoint.  Slurm may signal up to a minute early.
SIGNAL_LEAD_S = 120
SHORT_LEAD_S = 20
SHORT_LIMIT_MINUTES = 5
# The steward plans, seals and draws pictures with the model on a CPU.
STEWARD_MINUTES = 60
STEWARD_MEM_MB = 4096


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One attempt of one run, as it will be asked for.  Everything a script needs and nothing else."""

    run_id: str
    run_root: Path
    kind: str
    attempt: int
    num_tasks: int
    gang: bool
    limits: Limits
    window: Window
    limit_minutes: int | None
    cluster: ClusterConfig
    python: str
    code: Path
    cpus_per_task: int | None
    signal_lead_s: int
    steward_minutes: int
    steward_mem_mb: int
    exclude: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()

    @property
    def num_nodes(self) -> int:
        """Nodes of one job."""
        return self.num_tasks if self.gang else 1

    @property
    def elastic(self) -> bool:
        """A gang that may go on with fewer nodes."""
        return self.gang and self.cluster.elastic

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """The arrays that it is submitted as, as long as nothing of others takes room; the later ones wait for the first."""
        if self.gang:
            return (Chunk(number=0, offset=0, size=1),)
        found: list[Chunk] = []
        fed = 0
        while (
            chunk := next_chunk(
                self.window, self.limits, num_tasks=self.num_tasks, fed=fed, number=len(found), living=0, queued=0
            )
        ) is not None:
            found.append(chunk)
            fed += chunk.size
        return tuple(found)

    @property
    def gpu_hours(self) -> float | None:
        """GPU hours asked for; None without a time limit."""
        if self.cluster.time_minutes is None:
            return None
        return self.num_tasks * (self.cluster.gpus_per_node or 0) * self.cluster.time_minutes / 60


def plan_submission(
    *,
    run_root: Path,
    kind: str,
    attempt: int,
    num_tasks: int,
    gang: bool,
    cluster: ClusterConfig,
    python: str,
    code: Path,
    facts: ClusterFacts | None,
    exclude: tuple[str, ...] = (),
    folders: tuple[Path, ...] = (),
) -> Submission:
    """The attempt as Slurm will see it; folders: what its tasks must see, should they run in a container.

    Raises UsageError listing everything that the cluster would refuse."""
    if facts is not None:
        problems = problems_of(cluster, num_tasks if gang else 1, facts)
        if problems:
            raise UsageError("; ".join(problems))
    limits = limits_of(facts, cluster)
    partition = facts.partition(cluster.partition) if facts else None
    return Submission(
        run_id=run_root.name,
        run_root=run_root,
        kind=kind,
        attempt=attempt,
        num_tasks=num_tasks,
        gang=gang,
        limits=limits,
        window=window_of(1 if gang else num_tasks, limits, cluster.throttle),
        limit_minutes=cluster.time_minutes or (partition.default_time_minutes if partition else None),
        cluster=cluster,
        python=python,
        code=code,
        cpus_per_task=cluster.cpus_per_task or _share_of_cpus(cluster, partition),
        signal_lead_s=_signal_lead_s(cluster, partition),
        steward_minutes=min(STEWARD_MINUTES, partition.max_time_minutes or STEWARD_MINUTES)
        if partition
        else STEWARD_MINUTES,
        exclude=exclude,
        folders=folders,
        steward_mem_mb=min(STEWARD_MEM_MB, partition.mem_mb_per_node) if partition else STEWARD_MEM_MB,
    )


def limits_of(facts: ClusterFacts | None, cluster: ClusterConfig) -> Limits:
    """What bounds arrays; without a cluster to ask, Slurm's own default."""
    if facts is None:
        return Limits(max_array_size=DEFAULT_MAX_ARRAY_SIZE)
    return Limits(
        max_array_size=facts.max_array_size,
        max_submit_jobs=facts.queue_limits.max_submit_jobs(cluster.account, cluster.qos),
        max_job_count=facts.max_job_count,
    )


def _share_of_cpus(cluster: ClusterConfig, partition: Partition | None) -> int | None:
    """A task's CPUs where none were asked for: the share of its GPUs; None, the cluster's default, without GPUs."""
    if partition is None or not partition.gpus_per_node or not cluster.gpus_per_node:
        return None
    return max(1, partition.cpus_per_node * cluster.gpus_per_node // partition.gpus_per_node)


def _signal_lead_s(cluster: ClusterConfig, partition: Partition | None) -> int:
    """A job that is short by its own limit, or by the partition's, is not to be stopped as soon as it starts."""
    limit = cluster.time_minutes or (partition.default_time_minutes if partition else None)
    return SHORT_LEAD_S if limit is not None and limit <= SHORT_LIMIT_MINUTES else SIGNAL_LEAD_S

"""One attempt of a run on Slurm: planned from what is left to do, submitted, recorded.  Callers hold the run's lock."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from fcntl import LOCK_EX, flock
from functools import lru_cache
from pathlib import Path

from phenomhpc.config import AnyConfig, PipelineConfig
from phenomhpc.errors import PhenomError
from phenomhpc.jobs.base import ArrayPlan, Plan, begin, has_next_stage, load
from phenomhpc.jobs.folders import bound_folders
from phenomhpc.jobs.pack import pace_of, pack
from phenomhpc.jobs.retried import code_of, in_scope, run_config
from phenomhpc.jobs.task import GANG_KIND
from phenomhpc.nodes.exclusions import active, excluded_nodes, read_ledger, record
from phenomhpc.runs import (
    Event,
    EventWriter,
    RunPaths,
    Unit,
    Units,
    commit,
    first_kind,
    open_attempt,
    read_provenance,
    read_task_events,
    walk_events,
    write_manifest,
)
from phenomhpc.slurm.facts import ClusterFacts, discover
from phenomhpc.slurm.nodes import is_sick, query_nodes
from phenomhpc.slurm.observe import Observation
from phenomhpc.slurm.plan import Submission, plan_submission
from phenomhpc.slurm.programs import LimitReachedError
from phenomhpc.slurm.queue import query_queue
from phenomhpc.slurm.record import SubmittedJobs, read_submitted, write_submitted
from phenomhpc.slurm.render import render
from phenomhpc.slurm.submit import cancel_jobs, chunk_to_feed, feed, submit_steward

# Keys of provenance.json: the cluster a run was submitted to, and what ties runs together.
CLUSTER, PIPELINE, STAGE, AFTER = "cluster", "pipeline", "stage", "after"
ALLOW_DRIFT = "allow_drift"  # the gate was told not to insist on what the site insists on
# Who writes the events of the run as a whole: a task number that no task has.
STEWARD_TASK = 9_999_999
# How soon a steward looks again when there is no job whose end would wake it.
LOOK_AGAIN_S = 60
FACTS_S = 600


@contextmanager
def steward_lock(paths: RunPaths) -> Iterator[None]:
    """One submitter or steward of a run at a time; the lock dies with its holder."""
    with paths.steward_lock.open("a") as file:
        flock(file, LOCK_EX)
        yield


def is_gang(config: AnyConfig) -> bool:
    """One job over all its nodes, or an array of independent tasks?"""
    return config.kind in ("pretrain", "run")


def submission_of(
    config: AnyConfig,
    paths: RunPaths,
    attempt: int,
    facts: ClusterFacts | None,
    num_tasks: int = 1,
    exclude: tuple[str, ...] = (),
) -> Submission:
    """What Slurm is asked for.  Raises UsageError listing everything that the cluster would refuse."""
    root = paths.root.absolute()
    return plan_submission(
        run_root=root,
        kind=config.kind,
        attempt=attempt,
        num_tasks=config.cluster.nodes if is_gang(config) else num_tasks,
        gang=is_gang(config),
        cluster=config.cluster,
        python=shlex.quote(sys.executable),
        code=code_of(RunPaths(root), attempt),
        facts=facts,
        exclude=exclude,
        folders=bound_folders(config, RunPaths(root)) if config.cluster.container else (),
    )


def exclusions(config: AnyConfig, facts: ClusterFacts | None) -> tuple[str, ...]:
    """Nodes that a submission leaves out: those asked for, and those of the ledger that the partition can spare."""
    asked = config.cluster.exclude
    if facts is None:
        return asked
    entries = active(read_ledger().entries, facts.name, datetime.now(UTC))
    if not entries:
        return asked
    partition = facts.partition(config.cluster.partition)
    nodes = query_nodes(partition=partition.name if partition else None)
    return excluded_nodes(facts.name, list(nodes), config.cluster.nodes if is_gang(config) else 1, asked).excluded


def exclude_sick(
    paths: RunPaths, config: AnyConfig, hosts: Sequence[str], emit: Callable[..., None], evidence: Mapping[str, object]
) -> None:
    """Put those of the nodes that Slurm too calls sick into the person's ledger, for cluster.exclude_hours; one event each.

    Raises UnreachableError when the controller does not answer, WorkError when the ledger cannot be written.
    """
    for node, state in query_nodes(names=hosts).items() if hosts else ():
        if is_sick(state):
            record(
                cluster=str(read_provenance(paths).get(CLUSTER)),
                node=node,
                reason=f"failed a task; Slurm calls it {state}",
                evidence=evidence,
                hours=config.cluster.exclude_hours,
            )
            emit(node=node, reason=f"Slurm calls it {state}")


def units_of(plan: Plan, config: AnyConfig, events: Iterable[Event] = ()) -> Units:
    """The manifest's units: of a gang one, that stands for all of it.

    events: of earlier attempts, whose pace tells how long the units take.
    """
    if isinstance(plan, ArrayPlan):
        cluster = config.cluster
        return pack(plan.units, cluster.max_tasks, target_s=60 * cluster.task_minutes, pace=pace_of(events))
    return Units.of([Unit(unit_id=GANG_KIND, kind=GANG_KIND)])


def what_is_left(config: AnyConfig, paths: RunPaths) -> Plan:
    """What is missing, and was asked for: a retry may have chosen among it."""
    plan = load(config.kind).plan(config, paths)
    if isinstance(plan, ArrayPlan) and not plan.following:
        return replace(plan, units=in_scope(paths, plan.units))
    return plan


def stage_follows(paths: RunPaths, config: AnyConfig) -> bool:
    """Does another stage follow when the newest attempt is done?"""
    manifest = paths.attempt(paths.last_attempt()).manifest
    return has_next_stage(config.kind, first_kind(manifest) if manifest.is_file() else None)


def submit_next(paths: RunPaths, config: AnyConfig, facts: ClusterFacts | None, *, mem_mb: int | None = None) -> None:
    """Plan what is left and submit it as the run's next attempt; with nothing left, only the steward, which ends the run.

    mem_mb: in place of the configured memory.  Raises LimitReachedError when not even the steward finds room in the queue:
    whoever calls then has to call `feed_attempt` later.
    What holds when killed: an attempt without slurm.json was never submitted; with one, `feed_attempt` submits the rest.
    """
    begin(config, paths)
    units = units_of(what_is_left(config, paths), config, walk_events(paths))
    attempt, token = open_attempt(paths)
    write_manifest(paths.attempt(attempt).manifest, units, token=token)
    num_tasks = units.num_tasks
    submission = _submission(paths, config, attempt, facts, num_tasks, mem_mb)
    chunks = submission.chunks
    if chunks:
        commit(paths.attempt(attempt).script, render(submission, chunks[0]))
    jobs = SubmittedJobs(chunks=(), num_tasks=submission.num_tasks, gang=submission.gang)
    write_submitted(paths.attempt(attempt), jobs)
    gpus = (config.cluster.gpus_per_node or 0) * submission.num_nodes
    events = EventWriter(paths, attempt, STEWARD_TASK, token)
    events.emit(
        "submitted", gpus=gpus, num_units=len(units), num_tasks=submission.num_tasks, num_nodes=submission.num_nodes,
        gang=submission.gang, limit_minutes=submission.limit_minutes, mem_mb=mem_mb or config.cluster.mem_mb,
        cpus=submission.cpus_per_task, exclude=list(submission.exclude),
    )  # fmt: skip
    queued = query_queue(paths.root).num_queued if submission.limits.max_submit_jobs is not None else 0
    try:
        jobs = feed(submission, jobs, living=0, queued=queued)
        if config.cluster.steward:
            steward = submit_steward(submission, jobs.job_ids, any_of=jobs.fed < jobs.num_tasks)
            write_submitted(paths.attempt(attempt), replace(jobs, steward=steward))
    except LimitReachedError:
        raise
    except PhenomError:
        withdraw(paths, attempt)
        raise


def withdraw(paths: RunPaths, attempt: int) -> None:
    """Take back what of an attempt was submitted: it then counts as one that never was."""
    submitted = read_submitted(paths.attempt(attempt))
    if submitted is not None:
        cancel_jobs(submitted.job_ids)
        paths.attempt(attempt).slurm.unlink()


@lru_cache(maxsize=1)
def _facts(period: int) -> ClusterFacts | None:
    return discover()


def recent_facts() -> ClusterFacts | None:
    """What the cluster is, asked for no more often than every FACTS_S seconds: a steward that waits for room looks every few."""
    return _facts(int(time.monotonic() // FACTS_S))


def feed_attempt(paths: RunPaths, config: AnyConfig, seen: Observation) -> bool:
    """Submit what of the newest attempt has room in the queue by now; was there anything?  Without room Slurm is not asked."""
    assert seen.submitted is not None
    if seen.submitted != read_submitted(paths.attempt(seen.attempt)):  # a job was adopted
        write_submitted(paths.attempt(seen.attempt), seen.submitted)
    facts, num_tasks = recent_facts(), seen.submitted.num_tasks
    shape = submission_of(config, paths, seen.attempt, facts, num_tasks)
    if chunk_to_feed(shape, seen.submitted, living=len(seen.live), queued=seen.queued) is None:
        return False
    submission = _submission(paths, config, seen.attempt, facts, num_tasks, memory_of(paths, seen.attempt))
    return feed(submission, seen.submitted, living=len(seen.live), queued=seen.queued) != seen.submitted


def _submission(
    paths: RunPaths, config: AnyConfig, attempt: int, facts: ClusterFacts | None, num_tasks: int, mem_mb: int | None
) -> Submission:
    if mem_mb is not None:
        cluster = config.cluster.model_copy(update={"mem_mb": mem_mb})
        config = config.model_copy(update={"cluster": cluster})
    return submission_of(config, paths, attempt, facts, num_tasks, exclusions(config, facts))


def memory_of(paths: RunPaths, attempt: int) -> int | None:
    """The memory that an attempt was submitted with, MiB; None: the cluster's default."""
    asked = [
        event["mem_mb"] for event in read_task_events(paths, attempt, STEWARD_TASK) if event["event"] == "submitted"
    ]
    return asked[-1] if asked else None


def submit_watch(paths: RunPaths, after: tuple[str, ...], *, soon: bool = False, any_of: bool = False) -> None:
    """Submit only a steward: it looks when the jobs `after` (or any of them) have ended; where there are none, in a while, or
    `soon`.  Raises LimitReachedError."""
    config = run_config(paths)
    submission = submission_of(config, paths, paths.last_attempt(), discover())
    submit_steward(submission, after, 0 if after or soon else LOOK_AGAIN_S, any_of=any_of)


def parent_of(paths: RunPaths) -> RunPaths | None:
    """The pipeline that a run is a stage of."""
    parent = read_provenance(paths).get(PIPELINE)
    return RunPaths(Path(parent)) if parent else None


def stage_paths(pipeline: RunPaths, config: PipelineConfig, stage: str) -> RunPaths:
    """Where the run of a stage lies, or will: its name follows from the pipeline's, so that it is made once."""
    return RunPaths(Path(config.runs).absolute() / f"{pipeline.id}.{stage}")


def stage_runs_of(paths: RunPaths, config: AnyConfig) -> dict[str, RunPaths]:
    """The runs of a pipeline's stages that were made, in order; none of another kind of job."""
    if not isinstance(config, PipelineConfig):
        return {}
    runs = {stage: stage_paths(paths, config, stage) for stage in config.stages}
    return {stage: run for stage, run in runs.items() if run.run_yaml.is_file()}

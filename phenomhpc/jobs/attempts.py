"""One attempt of a run on Slurm: planned from what is left to do, submitted, recorded.  Callers hold the run's lock."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path

from phenomhpc.config import AnyConfig, PipelineConfig, load_run_config
from phenomhpc.jobs import slurm_task
from phenomhpc.jobs.base import ArrayPlan, Plan, load
from phenomhpc.jobs.pack import pack
from phenomhpc.jobs.task import GANG_KIND
from phenomhpc.runs import EventWriter, RunPaths, Unit, open_attempt, read_provenance, write_manifest
from phenomhpc.slurm.facts import ClusterFacts, discover
from phenomhpc.slurm.plan import Submission, plan_submission
from phenomhpc.slurm.submit import submit_attempt, submit_steward

# Keys of provenance.json: the cluster a run was submitted to, and what ties runs together.
CLUSTER, PIPELINE, STAGE, AFTER = "cluster", "pipeline", "stage", "after"
# Who writes the events of the run as a whole: a task number that no task has.
STEWARD_TASK = 99999
# How soon a steward looks again when there is no job whose end would wake it.
LOOK_AGAIN_S = 60


@contextmanager
def steward_lock(paths: RunPaths) -> Iterator[None]:
    """One submitter or steward of a run at a time; the lock dies with its holder."""
    with paths.steward_lock.open("a") as file:
        flock(file, LOCK_EX)
        yield


def is_gang(config: AnyConfig) -> bool:
    """One job over all its nodes, or an array of independent tasks?"""
    return config.kind == "pretrain"


def submission_of(
    config: AnyConfig, paths: RunPaths, attempt: int, facts: ClusterFacts | None, num_tasks: int = 1
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
        code=RunPaths(root).code,
        facts=facts,
    )


def units_of(plan: Plan, config: AnyConfig) -> list[Unit]:
    """The manifest's units: of a gang one, that stands for all of it."""
    if isinstance(plan, ArrayPlan):
        return pack(plan.units, config.cluster.max_tasks)
    return [Unit(unit_id=GANG_KIND, kind=GANG_KIND)]


def submit_next(paths: RunPaths, config: AnyConfig, facts: ClusterFacts | None, memory_factor: int = 1) -> None:
    """Plan what is left and submit it as the run's next attempt; with nothing left, only the steward, which ends the run."""
    if memory_factor > 1 and config.cluster.mem_mb:
        cluster = config.cluster.model_copy(update={"mem_mb": config.cluster.mem_mb * memory_factor})
        config = config.model_copy(update={"cluster": cluster})
    units = units_of(load(config.kind).plan(config, paths), config)
    attempt, token = open_attempt(paths)
    write_manifest(paths.attempt(attempt).manifest, units, token=token)
    num_tasks = len({unit.task for unit in units})
    jobs = submit_attempt(submission_of(config, paths, attempt, facts, num_tasks), slurm_task.main)
    EventWriter(paths, attempt, STEWARD_TASK, token).emit("submitted", jobs=jobs.job_ids, steward=jobs.steward)


def submit_watch(paths: RunPaths, after: tuple[str, ...], *, soon: bool = False) -> None:
    """Submit only a steward: it looks when the jobs `after` have ended; where there are none, in a while, or `soon`."""
    config = load_run_config(paths.run_yaml)
    submission = submission_of(config, paths, paths.last_attempt(), discover())
    submit_steward(submission, after, 0 if after or soon else LOOK_AGAIN_S)


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

"""Handing a job to Slurm: plan, submit, record; attempt after attempt, stage after stage."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

from phenomhpc.config import AnyConfig, PipelineConfig, dump, load_run_config
from phenomhpc.errors import PhenomError, UnreachableError
from phenomhpc.jobs import slurm_task
from phenomhpc.jobs.base import ArrayPlan, Plan, load
from phenomhpc.jobs.pack import pack
from phenomhpc.jobs.task import GANG_KIND
from phenomhpc.progress import Progress
from phenomhpc.runs import (
    RunPaths,
    Unit,
    collect_provenance,
    create_run,
    find_run,
    open_attempt,
    read_outcome,
    read_provenance,
    write_manifest,
    write_outcome,
)
from phenomhpc.slurm.facts import ClusterFacts, discover
from phenomhpc.slurm.plan import Submission, plan_submission
from phenomhpc.slurm.submit import script_of, snapshot_code, submit_attempt, submit_steward

WAIT_POLL_S = 2.0
# Keys of provenance.json that tie runs together.
PIPELINE, STAGE, AFTER = "pipeline", "stage", "after"


@contextmanager
def steward_lock(paths: RunPaths) -> Iterator[None]:
    """One submitter or steward of a run at a time; the lock dies with its holder."""
    with paths.steward_lock.open("a") as file:
        flock(file, LOCK_EX)
        yield


def submit_job(
    config: AnyConfig,
    *,
    command: Sequence[str],
    name: str | None = None,
    after: str | None = None,
    dry_run: bool = False,
    wait: bool = False,
    progress: Progress,
) -> int:
    """`phenomhpc submit KIND`: returns the exit code (under `wait` the run's).

    Raises UsageError for what the cluster would refuse, UnreachableError where there is no Slurm, before anything is made.
    """
    facts = discover()
    if dry_run:
        print(preview(config, facts, name))
        return 0
    if facts is None:
        here = shlex.join(["phenomhpc", *(word for word in command[1:] if word != "submit")])
        raise UnreachableError(f"Slurm: no sbatch on this machine; to run the same here and now: {here}")
    runs = Path(config.runs)
    other = find_run(runs, after) if after else None
    _check(config, facts, RunPaths(runs / (name or config.kind)), planned=other is None)
    provenance = collect_provenance(command) | ({AFTER: str(other.root)} if other else {})
    paths = create_run(runs, config.kind, dump(config), provenance, name=name)
    snapshot_code(paths)
    try:
        _start(paths, config, other, facts, progress)
    except PhenomError as error:
        if read_outcome(paths) is None:
            write_outcome(paths, state="failed", exit_code=error.exit_code, message=str(error))
        raise
    print(f"submitted: {paths.id}")
    progress.say(f"phenomhpc status {paths.id}   phenomhpc logs {paths.id} -f   phenomhpc cancel {paths.id}")
    return wait_for(paths, progress) if wait else 0


def _start(paths: RunPaths, config: AnyConfig, other: RunPaths | None, facts: ClusterFacts, progress: Progress) -> None:
    with steward_lock(paths):
        if other is not None:
            submit_waiting(paths, config, other)
        elif isinstance(config, PipelineConfig):
            from phenomhpc.jobs.steward import advance_pipeline

            advance_pipeline(paths, config, progress)
        else:
            submit_next(paths, config, facts=facts, progress=progress)


def _check(config: AnyConfig, facts: ClusterFacts, paths: RunPaths, *, planned: bool) -> None:
    """Everything that can be refused is refused before a run directory exists."""
    if isinstance(config, PipelineConfig):
        from phenomhpc.jobs.pipeline import check, stage_config

        check(config)
        first = stage_config(config, config.stages[0], {})
        _check(first, facts, paths, planned=planned)
        if "pretrain" in config.stages:
            _submission_of(stage_config(config, "pretrain", {}), paths, None, 1, facts)
    elif planned:
        _submission_of(config, paths, load(config.kind).plan(config, paths), 1, facts)
    else:
        _submission_of(config, paths, None, 1, facts)


def _submission_of(
    config: AnyConfig, paths: RunPaths, plan: Plan | None, attempt: int, facts: ClusterFacts | None, num_tasks: int = 1
) -> Submission:
    gang = config.kind == "pretrain"
    return plan_submission(
        run_root=paths.root.absolute(),
        kind=config.kind,
        attempt=attempt,
        num_tasks=config.cluster.nodes if gang else num_tasks,
        gang=gang,
        cluster=config.cluster,
        python=shlex.quote(sys.executable),
        code=paths.root.absolute() / "code",
        facts=facts,
    )


def _units_of(plan: Plan, config: AnyConfig) -> list[Unit]:
    if isinstance(plan, ArrayPlan):
        return pack(plan.units, config.cluster.max_tasks)
    return [Unit(unit_id=GANG_KIND, kind=GANG_KIND)]


def preview(config: AnyConfig, facts: ClusterFacts | None, name: str | None) -> str:
    """What would be submitted: the plan in words, then the very scripts."""
    paths = RunPaths(Path(config.runs).absolute() / (name or f"{config.kind}-DATE-TIME-XXXX"))
    if isinstance(config, PipelineConfig):
        from phenomhpc.jobs.pipeline import check, stage_config

        check(config)
        first = stage_config(config, config.stages[0], {})
        later = ", ".join(config.stages[1:])
        head = f"# pipeline: {' -> '.join(config.stages)}; each stage is planned when the one before has finished ({later})"
        return f"{head}\n{preview(first, facts, None)}"
    plan = load(config.kind).plan(config, paths)
    units = _units_of(plan, config)
    num_tasks = len({unit.task for unit in units})
    submission = _submission_of(config, paths, plan, 1, facts, num_tasks)
    cluster = config.cluster
    what = (
        f"{len(units)} {plan.noun} in {num_tasks} task(s)"
        if isinstance(plan, ArrayPlan)
        else f"{cluster.nodes} node(s)"
    )
    if isinstance(plan, ArrayPlan) and plan.num_done:
        what += f", {plan.num_done} done already"
    hours = submission.gpu_hours
    asked = f"{hours:g} GPU hours" if hours is not None else "no time limit given, so the partition's"
    where = (
        f"{facts.name}, partition {cluster.partition or 'default'}" if facts else "no Slurm here; defaults are assumed"
    )
    lines = [f"# {config.kind}: {what}; {len(submission.chunks)} job(s); asked for: {asked}; cluster: {where}"]
    lines += [script_of(submission, chunk) for chunk in submission.chunks] if units else ["# nothing is left to do"]
    return "\n".join(lines)


def submit_next(
    paths: RunPaths, config: AnyConfig, *, facts: ClusterFacts | None, progress: Progress, memory_factor: int = 1
) -> None:
    """Plan what is left and submit it as the run's next attempt; without anything left, end the run.

    The caller holds the steward's lock.
    """
    if memory_factor > 1 and config.cluster.mem_mb:
        cluster = config.cluster.model_copy(update={"mem_mb": config.cluster.mem_mb * memory_factor})
        config = config.model_copy(update={"cluster": cluster})
    plan = load(config.kind).plan(config, paths)
    units = _units_of(plan, config)
    attempt, token = open_attempt(paths)
    write_manifest(paths.attempt(attempt).manifest, units, token=token)
    if not units:
        from phenomhpc.jobs.steward import end_run

        end_run(paths, config, progress)
        return
    num_tasks = len({unit.task for unit in units})
    submission = _submission_of(config, paths, plan, attempt, facts, num_tasks)
    submit_attempt(submission, slurm_task.main)


def submit_waiting(paths: RunPaths, config: AnyConfig, other: RunPaths) -> None:
    """Submit only a steward, which starts the run when `other` has finished."""
    from phenomhpc.slurm.submit import read_submitted

    submitted = read_submitted(other.attempt(other.last_attempt())) if other.last_attempt() else None
    jobs = [job for job in ((submitted.steward, *submitted.job_ids) if submitted else ()) if job]
    submission = _submission_of(config, paths, None, 0, None)
    submit_steward(submission, f"afterany:{':'.join(jobs)}" if jobs else None)


def submit_stage(parent: RunPaths, stage: str, config: AnyConfig, progress: Progress) -> RunPaths:
    """Make and submit the run of a pipeline's stage, from the code the pipeline was submitted with."""
    provenance: dict[str, Any] = {**read_provenance(parent), PIPELINE: str(parent.root), STAGE: stage}
    for name in ("created", "kind"):
        provenance.pop(name)
    paths = create_run(Path(config.runs), config.kind, dump(config), provenance)
    snapshot_code(paths)
    with steward_lock(paths):
        submit_next(paths, config, facts=discover(), progress=progress)
    return paths


def wait_for(paths: RunPaths, progress: Progress) -> int:
    """Wait until the run has ended; its exit code.  Does the steward's step where no steward was asked for."""
    from phenomhpc.jobs.steward import step

    config = load_run_config(paths.run_yaml)
    said = ""
    while True:
        outcome = read_outcome(paths)
        if outcome is not None:
            message = str(outcome["message"])
            print(f"{outcome['state']}: {message}")
            return int(outcome["exit_code"])
        if not config.cluster.steward:
            said = _say_new(step(paths, progress), said, progress)
        time.sleep(WAIT_POLL_S)


def _say_new(words: str, said: str, progress: Progress) -> str:
    if words != said:
        progress.say(words)
    return words

"""The steward: sees what became of an attempt, and starts what comes next.  Idempotent; `status` does the same.

It runs as a one-CPU job behind an attempt's jobs, so that nobody has to stay logged in.  What it does is one step: observe,
classify, decide, act, under the run's lock.  Killed at any point, the next step sees the same and does the rest.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from phenomhpc.config import AnyConfig, PipelineConfig, load_run_config
from phenomhpc.errors import PhenomError
from phenomhpc.jobs.base import load
from phenomhpc.jobs.submit import AFTER, PIPELINE, STAGE, steward_lock, submit_next, submit_stage, submit_waiting
from phenomhpc.progress import Progress, lines
from phenomhpc.runs import (
    EventWriter,
    RunPaths,
    read_events,
    read_manifest,
    read_outcome,
    read_provenance,
    write_outcome,
)
from phenomhpc.slurm.decide import Action, Decision, TaskView, decide, view_tasks
from phenomhpc.slurm.facts import discover
from phenomhpc.slurm.queue import JobState, query_jobs
from phenomhpc.slurm.submit import read_submitted

# The steward's own events: a task number that no task has.
STEWARD_TASK = 99999


def observe(paths: RunPaths, attempt: int) -> list[TaskView]:
    """Every task of an attempt as the run directory and Slurm show it.  Raises UnreachableError when Slurm is silent."""
    from phenomhpc.jobs.task import GANG_KIND

    units = read_manifest(paths.attempt(attempt).manifest)
    submitted = read_submitted(paths.attempt(attempt))
    gang = any(unit.kind == GANG_KIND for unit in units)
    num_tasks = load_run_config(paths.run_yaml).cluster.nodes if gang else len({unit.task for unit in units})
    jobs: dict[int, JobState] = {}
    for (job_id, index), state in query_jobs(submitted.job_ids if submitted else []).items():
        task = submitted.task_of(job_id, index) if submitted else None
        if task is not None:
            jobs.update(dict.fromkeys(range(num_tasks), state) if gang else {task: state})
    logs = [str(paths.log_file(task, attempt)) for task in range(num_tasks)]
    return view_tasks(logs, done_tasks(paths, attempt), read_events(paths, attempt=attempt), jobs)


def done_tasks(paths: RunPaths, attempt: int) -> list[int]:
    """Tasks whose tally of this attempt is written."""
    import json

    done = []
    for path in paths.done.glob("*.json") if paths.done.is_dir() else ():
        if json.loads(path.read_bytes())["attempt"] == attempt:
            done.append(int(path.stem))
    return done


def step(paths: RunPaths, progress: Progress) -> str:
    """One step; returns what was done in words.  Raises UnreachableError when Slurm does not answer."""
    with steward_lock(paths):
        outcome = read_outcome(paths)
        if outcome is not None:
            return f"{outcome['state']}: {outcome['message']}"
        config = load_run_config(paths.run_yaml)
        attempt = paths.last_attempt()
        if isinstance(config, PipelineConfig):
            return "running: its stages are runs of their own"
        if not attempt:
            return _start_after(paths, config, progress)
        decision = decide(observe(paths, attempt), attempt, config.cluster.max_attempts)
        _act(decision, paths, config, attempt, progress)
        return f"{decision.action}: {decision.reason}" if decision.reason else str(decision.action)


def _act(decision: Decision, paths: RunPaths, config: AnyConfig, attempt: int, progress: Progress) -> None:
    if decision.action == Action.WAIT:
        return
    EventWriter(paths, attempt, STEWARD_TASK, "").emit("decided", action=str(decision.action), reason=decision.reason)
    if decision.action == Action.FINISH:
        end_run(paths, config, progress)
    elif decision.action in (Action.NEXT_ATTEMPT, Action.MORE_MEMORY):
        factor = 2**attempt if decision.action == Action.MORE_MEMORY else 1
        try:
            submit_next(paths, config, facts=discover(), progress=progress, memory_factor=factor)
        except PhenomError as error:
            record_end(paths, "failed", error.exit_code, str(error), progress)
    else:
        state = "cancelled" if decision.action == Action.STAY_CANCELLED else "failed"
        record_end(paths, state, 1, decision.reason, progress)


def end_run(paths: RunPaths, config: AnyConfig, progress: Progress) -> None:
    """All tasks are done: finish the job (seal, report), write the outcome, start the pipeline's next stage."""
    try:
        summary = load(config.kind).finish(config, paths, progress)
    except PhenomError as error:
        record_end(paths, "failed", error.exit_code, str(error), progress)
        return
    except Exception as error:
        record_end(paths, "failed", 1, f"finish: {type(error).__name__}: {error}", progress)
        traceback.print_exc()
        return
    set_aside = [list(entry) for entry in summary.set_aside]
    record_end(paths, "finished", summary.exit_code, summary.text, progress, set_aside=set_aside, report=summary.report)


def record_end(paths: RunPaths, state: str, code: int, message: str, progress: Progress, **fields: object) -> None:
    write_outcome(paths, state=state, exit_code=code, message=message, **fields)
    provenance = read_provenance(paths)
    parent = provenance.get(PIPELINE)
    if parent is None:
        return
    pipeline = RunPaths(Path(parent))
    with steward_lock(pipeline):
        if read_outcome(pipeline) is not None:
            return
        if state == "finished":
            config = load_run_config(pipeline.run_yaml)
            assert isinstance(config, PipelineConfig)
            advance_pipeline(pipeline, config, progress)
        else:
            words = f"stage {provenance[STAGE]}, run {paths.id}: {message}"
            write_outcome(pipeline, state=state, exit_code=code, message=words)


def advance_pipeline(paths: RunPaths, config: PipelineConfig, progress: Progress) -> None:
    """Submit the first stage that has not finished, or end the pipeline.  The caller holds the pipeline's lock."""
    from phenomhpc.jobs import pipeline

    finished = pipeline.finished_stages(config, paths)
    left = [stage for stage in config.stages if stage not in finished]
    if not left:
        summary = pipeline.finish(config, paths, progress)
        fields = {"set_aside": [list(entry) for entry in summary.set_aside], "report": summary.report}
        write_outcome(paths, state="finished", exit_code=summary.exit_code, message=summary.text, **fields)
        return
    try:
        run = submit_stage(paths, left[0], pipeline.stage_config(config, left[0], finished), progress)
    except PhenomError as error:
        write_outcome(paths, state="failed", exit_code=error.exit_code, message=f"stage {left[0]}: {error}")
        raise
    EventWriter(paths, 1, STEWARD_TASK, "").emit(pipeline.EVENT, stage=left[0], run=run.id, exit_code=None)


def _start_after(paths: RunPaths, config: AnyConfig, progress: Progress) -> str:
    """A run submitted with --after: start it, wait on, or end with the other."""
    other = read_provenance(paths).get(AFTER)
    if other is None:
        return "nothing was submitted"
    before = RunPaths(Path(other))
    outcome = read_outcome(before)
    if outcome is None:
        submit_waiting(paths, config, before)
        return f"waiting for {before.id}"
    if outcome["state"] != "finished":
        record_end(
            paths, "failed", 1, f"--after {before.id}: it ended as {outcome['state']}: {outcome['message']}", progress
        )
        return "failed"
    try:
        submit_next(paths, config, facts=discover(), progress=progress)
    except PhenomError as error:
        record_end(paths, "failed", error.exit_code, str(error), progress)
    return "started"


def main(root: str) -> int:
    """The steward's job."""
    paths = RunPaths(Path(root))
    try:
        print(step(paths, lines()), flush=True)
    except PhenomError as error:
        print(f"steward of {paths.id}: {error}", flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

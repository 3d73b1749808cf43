"""The steward: sees what became of an attempt, and starts what comes next.  Idempotent; `status` does the same.

It runs as a one-CPU job behind an attempt's jobs, so that nobody has to stay logged in.  What it does is one step: observe,
classify, decide, act, under the run's lock.  Killed at any point, the next step sees the same and does the rest.

A run that waits for another (--after), and a pipeline, have no jobs of their own: a step of theirs looks at the other run,
or at the current stage's.  A stage's step that finds it ended goes on with a step of the pipeline.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from phenomhpc.config import AnyConfig, PipelineConfig, dump
from phenomhpc.errors import PhenomError, UnreachableError, WorkError
from phenomhpc.jobs.announce import announce
from phenomhpc.jobs.attempts import (
    AFTER,
    PIPELINE,
    STAGE,
    STEWARD_TASK,
    exclude_sick,
    feed_attempt,
    memory_of,
    parent_of,
    stage_follows,
    stage_paths,
    stage_runs_of,
    steward_lock,
    submit_next,
    submit_watch,
)
from phenomhpc.jobs.base import ArrayPlan, load
from phenomhpc.jobs.drift import unlike
from phenomhpc.jobs.guard import progress_mark
from phenomhpc.jobs.retried import is_retried, read_retries, run_config
from phenomhpc.progress import Progress, lines
from phenomhpc.runs import (
    EventWriter,
    RunPaths,
    create_run,
    read_events_but_units,
    read_log,
    read_outcome,
    read_provenance,
    read_task_events,
    unit_ids,
    write_outcome,
)
from phenomhpc.slurm.decide import MEMORY_FACTOR, Action, Decision, decide, history_of
from phenomhpc.slurm.facts import discover
from phenomhpc.slurm.observe import Observation, observe, with_submitted
from phenomhpc.slurm.programs import LimitReachedError
from phenomhpc.slurm.queue import Queue, query_queue
from phenomhpc.slurm.record import read_submitted
from phenomhpc.slurm.submit import cancel_jobs, snapshot_code

PATIENCE_S = 30 * 60
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
# While a run does not fit into the queue, its steward stays as long as tasks end at least this often; then a successor waits
# behind the arrays without holding a CPU.
STAY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a step left behind: the run has ended, or goes on; `unfed` tasks are still to be submitted behind the `live` jobs.

    done: tasks that are tallied.
    """

    ended: bool
    words: str
    unfed: int = 0
    live: tuple[str, ...] = ()
    done: int = 0


def step(paths: RunPaths, progress: Progress, *, own_job: str | None = None, watch: bool = True) -> Standing:
    """One step; returns what the run is at.  own_job: the steward's own job, which is not to be waited for; watch: see to it
    that a steward looks again.

    Raises UnreachableError when Slurm does not answer; nothing was decided then.
    """
    config = run_config(paths)
    standing = Standing(ended=False, words="goes on")
    with steward_lock(paths):
        ended = read_outcome(paths) is not None
        if not ended:
            standing = _step(paths, config, progress, own_job, watch)
        outcome = read_outcome(paths)
    if outcome is None:
        return standing
    pipeline = parent_of(paths)
    if not ended and pipeline is None:  # of a pipeline's stages only the whole is told of
        announce(paths, config, outcome)
    if pipeline is not None and read_outcome(pipeline) is None:
        step(pipeline, progress, own_job=own_job)
    return Standing(ended=True, words=f"{outcome['state']}: {outcome['message']}")


def tend(paths: RunPaths, progress: Progress, *, own_job: str | None = None, queue: Queue | None = None) -> None:
    """The step of a run, of a pipeline's current stage, where no living steward will do it.  Raises UnreachableError.

    queue: asked of Slurm where not given.  A step asks again, under the lock: an older answer would miss what another
    steward has submitted since.
    """
    config = run_config(paths)
    for run in stage_runs_of(paths, config).values():
        if read_outcome(run) is None:
            tend(run, progress, own_job=own_job, queue=queue)
            return
    if not observe(paths, queue, own_job=own_job, accounting="never").stewards:
        step(paths, progress, own_job=own_job)


def _step(paths: RunPaths, config: AnyConfig, progress: Progress, own_job: str | None, watch: bool) -> Standing:
    standing = Standing(ended=False, words="goes on")
    if not _may_start(paths, config, progress, own_job):
        return standing
    if isinstance(config, PipelineConfig):
        advance(paths, config, progress)
        return standing
    queue = query_queue(paths.root)
    seen = observe(paths, queue, own_job=own_job, accounting="when_ended")
    if seen.submitted is None or is_retried(paths):  # never submitted, or its submitter was killed
        cancel_jobs([*seen.strays, *(seen.live if is_retried(paths) else ())])
        _try_next(paths, config, _memory_of_retry(paths))
        return standing
    if seen.unfed:
        before = seen.submitted.job_ids
        if feed_attempt(paths, config, seen):
            fed = with_submitted(queue, before, [paths])
            seen = observe(paths, fed, own_job=own_job, accounting="when_ended")
    decision = _decision(paths, config, seen)
    if decision.action != Action.WAIT:
        _act(decision, seen, paths, config, progress)
        return standing
    if watch and config.cluster.steward and not is_watched(seen.stewards, own_job):
        submit_watch(paths, seen.live, any_of=seen.unfed > 0)
    return replace(standing, unfed=seen.unfed, live=seen.live, done=sum(task.done for task in seen.tasks))


def is_watched(stewards: Sequence[str], own_job: str | None) -> bool:
    """Will another steward look after this one has left?

    Only a younger one counts: of two that leave at the same time each would rely on the other, and nobody would look again.
    """
    return any(own_job is None or int(job) > int(own_job) for job in stewards)


def _decision(paths: RunPaths, config: AnyConfig, seen: Observation) -> Decision:
    numbers = range(1, paths.last_attempt() + 1)
    told = (event for number in numbers for event in read_task_events(paths, number, STEWARD_TASK))
    history = history_of(told, seen.attempt)
    # How far the run has come takes reading what every unit left: only where it is compared with something.
    return decide(seen.tasks, history, config.cluster.max_attempts, run_mark(paths) if history.mark else "")


def run_mark(paths: RunPaths) -> str:
    """How far a run has come, in words that change with every commit."""
    return progress_mark(paths, [{"event": "unit", "unit_id": unit} for unit in unit_ids(read_log(paths))])


def _act(decision: Decision, seen: Observation, paths: RunPaths, config: AnyConfig, progress: Progress) -> None:
    mem_mb = None
    if decision.action == Action.FINISH and stage_follows(paths, config):
        decision = replace(decision, action=Action.NEXT_STAGE, reason="this stage is done, the next follows")
    if decision.action in (Action.NEXT_ATTEMPT, Action.MORE_MEMORY):
        mem_mb = memory_of(paths, seen.attempt)
        if decision.action == Action.MORE_MEMORY:
            mem_mb = MEMORY_FACTOR * (mem_mb or config.cluster.mem_mb or given_memory(paths, seen.attempt)) or None
    emit(
        paths, seen.attempt, "decided", action=str(decision.action), reason=decision.reason, classes=dict(decision.classes),
        failure=decision.failure, mark=run_mark(paths), repeatable=decision.repeatable, mem_mb=mem_mb,
    )  # fmt: skip
    tell_unlike(paths, seen.attempt)
    if decision.action == Action.FINISH:
        cancel_jobs(seen.live)  # of a gang that was requeued after its last step
        _finish(paths, config, progress)
    elif decision.action == Action.NEXT_STAGE:
        _try_next(paths, config)
    elif decision.action in (Action.NEXT_ATTEMPT, Action.MORE_MEMORY):
        cancel_jobs(seen.strays)
        _exclude(paths, config, seen, decision)
        _try_next(paths, config, mem_mb)
    else:
        state = "cancelled" if decision.action == Action.STAY_CANCELLED else "failed"
        write_outcome(paths, state=state, exit_code=1, message=decision.reason, failure=decision.failure)


def tell_unlike(paths: RunPaths, attempt: int) -> None:
    """Tell of nodes of an attempt that has ended which are not like the others; where there was a gate, it did.

    Fingerprints that cannot be read are said, and are no reason to stop.  The caller holds the run's lock.
    """
    if any(event["event"] == "gate" for event in read_events_but_units(paths, attempt=attempt)):
        return
    try:
        told = unlike(paths.attempt(attempt))
    except (OSError, ValueError, KeyError, TypeError) as error:  # damaged, or of another version
        print(f"steward of {paths.id}: nodes are not compared: {type(error).__name__}: {error}", flush=True)
        return
    for node, words in told.items():
        emit(paths, attempt, "drift", node=node, drift=words)
        print(f"steward of {paths.id}: {node}: {', '.join(words)}", flush=True)


def _memory_of_retry(paths: RunPaths) -> int | None:
    """A retry goes on with the memory that the attempts before it had come to, unless it says how much."""
    attempt = paths.last_attempt()
    if not is_retried(paths) or "mem_mb" in read_retries(paths)[-1].cluster:
        return None
    return memory_of(paths, attempt)


def given_memory(paths: RunPaths, attempt: int) -> int:
    """The memory that Slurm gave the tasks of an attempt where none was asked for, MiB; 0 where it does not say."""
    started = [event for event in read_events_but_units(paths, attempt=attempt) if event["event"] == "started"]
    return max((int(event.get("mem_mb", 0)) for event in started), default=0)


def _exclude(paths: RunPaths, config: AnyConfig, seen: Observation, decision: Decision) -> None:
    """Leave out the nodes that failed, for a while.  A ledger that cannot be written is said, and is no reason to stop."""
    jobs = seen.submitted.job_ids if seen.submitted else []
    evidence = {"run": paths.id, "attempt": seen.attempt, "jobs": jobs, "words": decision.reason}
    try:
        exclude_sick(
            paths, config, decision.hosts, lambda **fields: emit(paths, seen.attempt, "excluded", **fields), evidence
        )
    except WorkError as error:
        print(f"steward of {paths.id}: {error}", flush=True)


def _num_submitted(paths: RunPaths) -> int:
    """Attempts that count against cluster.max_attempts."""
    return sum(read_submitted(paths.attempt(number)) is not None for number in range(1, paths.last_attempt() + 1))


def emit(paths: RunPaths, attempt: int, event: str, **fields: object) -> None:
    """An event of the run as a whole; the caller holds its lock."""
    EventWriter(paths, attempt, STEWARD_TASK, "").emit(event, **fields)


def _try_next(paths: RunPaths, config: AnyConfig, mem_mb: int | None = None) -> None:
    try:
        submit_next(paths, config, discover(), mem_mb=mem_mb)
    except (UnreachableError, LimitReachedError):
        raise
    except PhenomError as error:
        write_outcome(paths, state="failed", exit_code=error.exit_code, message=str(error))


def _finish(paths: RunPaths, config: AnyConfig, progress: Progress) -> None:
    """All tasks are done: seal, report, and the outcome; of a retry of some units, first see whether others are missing."""
    try:
        missing = _missing(paths, config)
        if missing:
            raise WorkError(f"{missing} unit(s) that were not retried are still missing; phenomhpc retry {paths.id}")
        summary = load(config.kind).finish(config, paths, progress)
    except PhenomError as error:
        write_outcome(paths, state="failed", exit_code=error.exit_code, message=str(error))
    except Exception as error:
        traceback.print_exc()
        write_outcome(paths, state="failed", exit_code=1, message=f"finish: {type(error).__name__}: {error}")
    else:
        fields = {"set_aside": [list(entry) for entry in summary.set_aside], "report": summary.report}
        write_outcome(paths, state="finished", exit_code=summary.exit_code, message=summary.text, **fields)


def _missing(paths: RunPaths, config: AnyConfig) -> int:
    """Units that are missing although all tasks are done: only a retry of some of them leaves any."""
    retries = read_retries(paths)
    if not retries or retries[-1].only is None:
        return 0
    plan = load(config.kind).plan(config, paths)
    return len(plan.units) if isinstance(plan, ArrayPlan) else 0


# -- waiting for another run ------------------------------------------------------------------------------------------


def _may_start(paths: RunPaths, config: AnyConfig, progress: Progress, own_job: str | None) -> bool:
    """False while the run waits for another, or when that has ended without success and so has this one."""
    other = read_provenance(paths).get(AFTER)
    if other is None or paths.last_attempt():
        return True
    before = RunPaths(Path(other))
    if read_outcome(before) is None:
        tend(before, progress, own_job=own_job)
    outcome = read_outcome(before)
    if outcome is None:
        if config.cluster.steward and not is_watched(observe(paths, own_job=own_job).stewards, own_job):
            submit_watch(paths, jobs_ahead(before))
        return False
    if outcome["state"] != "finished":
        words = f"--after {before.id}: it ended as {outcome['state']}: {outcome['message']}"
        write_outcome(paths, state="failed", exit_code=1, message=words)
        return False
    return True


def jobs_ahead(paths: RunPaths) -> tuple[str, ...]:
    """Living jobs and stewards of a run (of a pipeline: of its current stage), whose end is worth a look."""
    config = run_config(paths)
    seen = observe(paths)
    ids = {*seen.live, *seen.stewards}
    for run in stage_runs_of(paths, config).values():
        if read_outcome(run) is None:
            ids |= set(jobs_ahead(run))
    return tuple(sorted(ids))


# -- pipelines --------------------------------------------------------------------------------------------------------


def advance(paths: RunPaths, config: PipelineConfig, progress: Progress) -> None:
    """Submit the first stage that was not, or end the pipeline.  The caller holds the pipeline's lock."""
    from phenomhpc.jobs import pipeline

    finished: dict[str, RunPaths] = {}
    for stage in config.stages:
        run = stage_paths(paths, config, stage)
        if not _num_submitted(run) and not _ended(run):
            _submit_stage(paths, config, stage, finished)
        outcome = read_outcome(run)
        if outcome is None:
            return
        if outcome["state"] != "finished":
            words = f"stage {stage}, run {run.id}: {outcome['message']}"
            write_outcome(paths, state=outcome["state"], exit_code=outcome["exit_code"], message=words)
            return
        finished[stage] = run
    summary = pipeline.finish(config, paths, progress)
    fields = {"set_aside": [list(entry) for entry in summary.set_aside], "report": summary.report}
    write_outcome(paths, state="finished", exit_code=summary.exit_code, message=summary.text, **fields)


def _ended(run: RunPaths) -> bool:
    return run.root.is_dir() and read_outcome(run) is not None


def _submit_stage(parent: RunPaths, config: PipelineConfig, stage: str, finished: dict[str, RunPaths]) -> None:
    """Make the run of a stage, from the code the pipeline was submitted with, and submit it; a refusal ends it."""
    from phenomhpc.jobs import pipeline

    run = stage_paths(parent, config, stage)
    settings = pipeline.stage_config(config, stage, finished)
    if not run.run_yaml.is_file():
        shutil.rmtree(run.root, ignore_errors=True)  # left by a steward that was killed while making it
        provenance = {**read_provenance(parent), PIPELINE: str(parent.root), STAGE: stage}
        for name in ("created", "kind", AFTER):
            provenance.pop(name, None)
        create_run(run.root.parent, settings.kind, dump(settings), provenance, name=run.id)
    snapshot_code(run)
    emit(parent, 1, pipeline.EVENT, stage=stage, run=run.id, exit_code=None)
    with steward_lock(run):
        _try_next(run, settings)


# -- the job ----------------------------------------------------------------------------------------------------------


def main(root: str) -> int:
    """The steward's job.  While Slurm does not answer, it asks again for half an hour; any other fault ends the run."""
    paths = RunPaths(Path(root))
    own_job = os.environ.get("SLURM_JOB_ID")
    answered = changed = time.monotonic()
    pause, before = FIRST_PAUSE_S, (-1, -1)
    while True:
        now = time.monotonic()
        try:
            standing = step(paths, lines(), own_job=own_job, watch=False)
            answered = now
            if (standing.done, standing.unfed) != before:
                before, changed, pause = (standing.done, standing.unfed), now, FIRST_PAUSE_S
            if not standing.ended and (not standing.unfed or now - changed > STAY_S):
                standing = step(paths, lines(), own_job=own_job)  # leaves a successor
            if standing.ended or not standing.unfed or now - changed > STAY_S:
                print(standing.words, flush=True)
                return 0
        except LimitReachedError as error:
            print(f"steward of {paths.id}: {error}; asking again", flush=True)
        except UnreachableError as error:
            print(f"steward of {paths.id}: {error}", flush=True)
            if now - answered > PATIENCE_S:
                return error.exit_code
        except Exception as error:
            traceback.print_exc()
            with steward_lock(paths):
                if read_outcome(paths) is None:
                    words = f"steward: {type(error).__name__}: {error} (log: {paths.log_file('steward', paths.last_attempt())})"
                    write_outcome(paths, state="failed", exit_code=1, message=words)
                    announce(paths, run_config(paths), {"state": "failed", "exit_code": 1, "message": words})
            return 1
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_PAUSE_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

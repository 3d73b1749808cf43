"""`phenomhpc submit`: everything that can be refused is refused first; then the run directory, then Slurm."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phenomhpc.config import AnyConfig, PipelineConfig, dump, load_run_config
from phenomhpc.errors import WRONG_USE, PhenomError, UnreachableError, UsageError, WorkError
from phenomhpc.jobs.attempts import (
    AFTER,
    CLUSTER,
    LOOK_AGAIN_S,
    is_gang,
    steward_lock,
    submission_of,
    submit_next,
    submit_watch,
    units_of,
    withdraw,
)
from phenomhpc.jobs.base import ArrayPlan, GangPlan, Plan, load
from phenomhpc.jobs.script_code import copy_script, describe_code
from phenomhpc.progress import Progress
from phenomhpc.runs import RunPaths, collect_provenance, create_run, find_run, read_outcome, write_outcome
from phenomhpc.slurm.facts import ClusterFacts, discover
from phenomhpc.slurm.programs import LimitReachedError
from phenomhpc.slurm.render import render, render_steward
from phenomhpc.slurm.submit import snapshot_code

WAIT_POLL_S = 1.0
# Flags of `submit JOB` that `JOB` here does not have: alone, and with a value behind them.
_SUBMIT_SWITCHES = {"--dry-run", "--wait"}
_SUBMIT_VALUES = {"--nodes", "--gpus-per-node", "--time", "--partition", "--account", "--qos", "--after"}


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
    """Submit a job; returns the exit code (under `wait` the run's).

    Raises UsageError for what the cluster would refuse, UnreachableError where there is no Slurm, before anything is made.
    """
    if dry_run:
        print(preview(config, *_facts_if_any(), name))
        return 0
    paths = submit_run(config, command=command, name=name, after=after, progress=progress)
    print(f"submitted: {paths.id}")
    progress.say(f"phenomhpc status {paths.id}   phenomhpc logs {paths.id} -f   phenomhpc cancel {paths.id}")
    return wait_for(paths, progress) if wait else 0


def submit_run(
    config: AnyConfig, *, command: Sequence[str], name: str | None = None, after: str | None = None, progress: Progress
) -> RunPaths:
    """Submit a job; returns its run.  Raises as submit_job does."""
    facts = discover()
    if facts is None:
        raise UnreachableError(
            f"Slurm: no sbatch on this machine; to run the same here and now: {here_command(command)}"
        )
    runs = Path(config.runs)
    other = find_run(runs, after) if after else None
    _check(config, facts, RunPaths(runs.absolute() / (name or config.kind)), planned=other is None)
    provenance = {
        **collect_provenance(command),
        CLUSTER: facts.name,
        **({AFTER: str(other.root)} if other else {}),
        **describe_code(config),
    }
    paths = create_run(runs, config.kind, dump(config), provenance, name=name)
    try:
        snapshot_code(paths)
        copy_script(provenance, paths.script_code, progress)
        _start(paths, config, other, facts, progress)
    except PhenomError as error:
        if isinstance(error, LimitReachedError) and paths.last_attempt():
            withdraw(paths, paths.last_attempt())
        if not any(paths.attempts.glob("*/slurm.json")):
            shutil.rmtree(paths.root, ignore_errors=True)  # Slurm took none of it: no run is left behind
        elif read_outcome(paths) is None:
            write_outcome(paths, state="failed", exit_code=error.exit_code, message=str(error))
        raise
    outcome = read_outcome(paths)
    if outcome is not None and outcome["state"] == "failed":  # of a pipeline, whose first stage was refused
        raise (UsageError if outcome["exit_code"] == WRONG_USE else WorkError)(str(outcome["message"]))
    return paths


def _start(paths: RunPaths, config: AnyConfig, other: RunPaths | None, facts: ClusterFacts, progress: Progress) -> None:
    from phenomhpc.jobs.steward import advance, jobs_ahead

    with steward_lock(paths):
        if other is not None:
            submit_watch(paths, jobs_ahead(other), soon=True)
        elif isinstance(config, PipelineConfig):
            advance(paths, config, progress)
        else:
            submit_next(paths, config, facts)


def here_command(command: Sequence[str]) -> str:
    """The same job without Slurm."""
    words: list[str] = []
    skip = False
    ours, behind = list(command[1:]), []
    if "--" in ours:  # a script's own words
        at = ours.index("--")
        ours, behind = ours[:at], ours[at:]
    for word in ours:
        if skip:
            skip = False
        elif word in _SUBMIT_VALUES:
            skip = True
        elif word != "submit" and word.split("=")[0] not in _SUBMIT_SWITCHES | _SUBMIT_VALUES:
            words.append(word)
    return shlex.join(["phenomhpc", *words, *behind])


def _check(config: AnyConfig, facts: ClusterFacts, paths: RunPaths, *, planned: bool) -> None:
    """Everything that can be refused is refused before a run directory exists."""
    if isinstance(config, PipelineConfig):
        from phenomhpc.jobs.pipeline import check, stage_config

        check(config)
        _check(stage_config(config, config.stages[0], {}), facts, paths, planned=planned)
        if "pretrain" in config.stages:
            submission_of(stage_config(config, "pretrain", {}), paths, 1, facts)
        return
    submission_of(config, paths, 1, facts)
    if planned:
        load(config.kind).plan(config, paths)


# -- dry run ----------------------------------------------------------------------------------------------------------


def _facts_if_any() -> tuple[ClusterFacts | None, str]:
    """What the cluster is, and in words what the plan is made for.  A dry run needs no Slurm."""
    try:
        facts = discover()
    except UnreachableError as error:
        return None, f"Slurm does not answer ({error}); its usual limits are assumed"
    if facts is None:
        return None, "no Slurm on this machine; its usual limits are assumed"
    return facts, f"cluster {facts.name}"


def preview(config: AnyConfig, facts: ClusterFacts | None, where: str, name: str | None = None) -> str:
    """What would be submitted: the plan in words, then the very scripts.  The run's ID is made at submission."""
    paths = RunPaths(Path(config.runs).absolute() / (name or f"{config.kind}-DATE-TIME-XXXX"))
    if isinstance(config, PipelineConfig):
        from phenomhpc.jobs.pipeline import check, stage_config

        check(config)
        first = stage_config(config, config.stages[0], {})
        head = f"# pipeline: {' -> '.join(config.stages)}; the steward plans and submits each when the one before has finished"
        return f"{head}\n{preview(first, facts, where, f'{paths.id}.{config.stages[0]}')}"
    # A gang's shape is a setting; looking into the store, which takes torch, is left to the submission.
    plan: Plan = GangPlan(num_nodes=config.cluster.nodes) if is_gang(config) else load(config.kind).plan(config, paths)
    units = units_of(plan, config)
    num_tasks = units.num_tasks
    submission = submission_of(config, paths, 1, facts, num_tasks)
    if isinstance(plan, ArrayPlan):
        done = f", {plan.num_done} are done already" if plan.num_done else ""
        arrays = f"in {len(submission.chunks)} array(s) of Slurm" if units else "nothing is left to do"
        what = f"{len(units)} {plan.noun}{done}: {num_tasks} task(s) {arrays}, one node each"
    else:
        what = f"one job of {submission.num_nodes} node(s), a task on each"
    gpus = f", {config.cluster.gpus_per_node} GPU(s) per node" if config.cluster.gpus_per_node else ""
    hours = submission.gpu_hours
    asked = (
        "; no time limit asked for" if hours is None else f"; {hours:g} GPU hours asked for at most" if hours else ""
    )
    lines = [f"# {config.kind}: {what}{gpus}{asked}", f"# {where}, partition {_partition_words(config, facts)}"]
    lines += [render(submission, chunk) for chunk in submission.chunks]
    if config.cluster.steward:
        after = [f"JOB{chunk.number + 1}" for chunk in submission.chunks]
        lines += ["# The steward, behind the job(s) above:", render_steward(submission, after)]
    return "\n".join(lines)


def _partition_words(config: AnyConfig, facts: ClusterFacts | None) -> str:
    partition = facts.partition(config.cluster.partition) if facts else None
    return partition.name if partition else config.cluster.partition or "(the default one)"


# -- waiting ----------------------------------------------------------------------------------------------------------


def wait_for(paths: RunPaths, progress: Progress) -> int:
    """Wait until the run has ended, say how far it is, and return its exit code."""
    outcome = until_ended(paths, progress)
    print(f"{outcome['state']}: {outcome['message']}")
    return int(outcome["exit_code"])


def until_ended(
    paths: RunPaths, progress: Progress, *, timeout_s: float | None = None, poll_s: float = WAIT_POLL_S
) -> dict[str, Any]:
    """Wait until the run has ended, say how far it is, and return its outcome.  Raises TimeoutError; the run goes on.

    Now and then the steward's step is done, should no steward live.
    """
    from phenomhpc.jobs.status import progress_of
    from phenomhpc.jobs.steward import tend

    steward = load_run_config(paths.run_yaml).cluster.steward
    every_s = LOOK_AGAIN_S if steward else WAIT_POLL_S * 3
    began = looked = time.monotonic()
    said = ""
    while True:
        outcome = read_outcome(paths)
        if outcome is not None:
            return outcome
        words = progress_of(paths)
        if words != said:
            progress.say(words)
            said = words
        if time.monotonic() - looked > every_s:
            try:
                tend(paths, progress)
            except UnreachableError as error:
                progress.say(f"{error}; asking again")
            looked = time.monotonic()
        left_s = poll_s if timeout_s is None else min(poll_s, began + timeout_s - time.monotonic())
        if left_s <= 0:
            raise TimeoutError(f"run {paths.id}: has not ended within {timeout_s:g} s; it goes on")
        time.sleep(left_s)

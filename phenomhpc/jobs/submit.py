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
    ALLOW_DRIFT,
    CLUSTER,
    LOOK_AGAIN_S,
    steward_lock,
    submit_next,
    submit_watch,
    withdraw,
)
from phenomhpc.jobs.preflight import Prepared, describe, prepare, refusal_of
from phenomhpc.jobs.script_code import copy_script, describe_code
from phenomhpc.progress import Progress
from phenomhpc.runs import RunPaths, collect_provenance, create_run, find_run, read_outcome, write_outcome
from phenomhpc.slurm.facts import ClusterFacts, discover
from phenomhpc.slurm.programs import LimitReachedError
from phenomhpc.slurm.render import render, render_steward
from phenomhpc.slurm.submit import snapshot_code

WAIT_POLL_S = 1.0
# Flags of `submit JOB` that `JOB` here does not have: alone, and with a value behind them.
_SUBMIT_SWITCHES = {"--dry-run", "--wait", "--require-clean"}
_SUBMIT_VALUES = {"--nodes", "--gpus-per-node", "--time", "--partition", "--account", "--qos", "--after"}
_SUBMIT_VALUES |= {"--exclude", "--mail-type", "--mail-user"}


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
    prepared = check(config, facts, RunPaths(runs.absolute() / (name or config.kind)), planned=other is None)
    for warning in prepared.warnings:
        progress.say(warning)
    provenance = {
        **collect_provenance(command),
        CLUSTER: facts.name,
        **({ALLOW_DRIFT: True} if config.cluster.allow_drift else {}),
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


def check(
    config: AnyConfig, facts: ClusterFacts | None, paths: RunPaths, *, planned: bool = True, light: bool = False
) -> Prepared:
    """The preflight of a run; of a pipeline, that of its first stage, and of what its training asks of Slurm."""
    if not isinstance(config, PipelineConfig):
        return prepare(config, facts, paths, planned=planned, light=light)
    from phenomhpc.jobs import pipeline

    pipeline.check(config)
    problems: list[str] = []
    first: Prepared | None = None
    for stage in dict.fromkeys((config.stages[0], *(["pretrain"] if "pretrain" in config.stages else []))):
        settings = pipeline.stage_config(config, stage, {})
        leading = stage == config.stages[0]
        where = RunPaths(paths.root.parent / f"{paths.id}.{stage}")
        try:
            prepared = prepare(settings, facts, where, planned=planned and leading, light=light)
            first = prepared if leading else first
        except UsageError as error:
            problems += [f"{stage}: {line.strip()}" for line in str(error).split("\n") if not line.endswith(":")]
    if first is None or problems:
        raise refusal_of(problems)
    return first


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
    """What would be submitted: the plan in words, then the very scripts.  The run's ID is made at submission.

    Raises what a submission would raise.
    """
    paths = RunPaths(Path(config.runs).absolute() / (name or f"{config.kind}-DATE-TIME-XXXX"))
    prepared = check(config, facts, paths, light=True)
    submission = prepared.submission
    lines = []
    if isinstance(config, PipelineConfig):
        order = " -> ".join(config.stages)
        lines.append(f"# pipeline: {order}; the steward plans and submits each when the one before has finished")
    lines += [f"# {line}" for line in (*describe(prepared), *prepared.warnings)]
    lines.append(f"# {where}, partition {_partition_words(prepared.config, facts)}")
    lines += [render(submission, chunk) for chunk in submission.chunks]
    if submission.cluster.steward:
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

"""Retrying a run that has ended without success: what is missing becomes a new attempt in the same run directory.

    outcome.json -> attempts/NNN/outcome.json,  attempts/NNN/retry.json,  event `retried`,  outcome.json removed,  steward's step

What holds when killed: before outcome.json is removed the run has ended as before, and can be retried again; after it, the
next step (a `status`, say) finds retry.json and carries it out.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from phenomhpc.config import AnyConfig, PipelineConfig, load_run_config
from phenomhpc.config.overrides import parse_override
from phenomhpc.errors import SET_ASIDE, WRONG_USE, UnreachableError, UsageError, WorkError
from phenomhpc.jobs.attempts import AFTER, is_gang, parent_of, stage_paths, steward_lock, submission_of
from phenomhpc.jobs.base import ArrayPlan, has_next_stage, load
from phenomhpc.jobs.retried import Retry, run_config, units_by_id, with_cluster, write_retry
from phenomhpc.jobs.script_code import copy_script, describe_code
from phenomhpc.jobs.status import on_slurm
from phenomhpc.jobs.steward import emit, step
from phenomhpc.jobs.why import unit_classes
from phenomhpc.progress import Progress
from phenomhpc.runs import (
    RunPaths,
    Unit,
    collect_provenance,
    read_events,
    read_outcome,
    read_provenance,
    set_outcome_aside,
)
from phenomhpc.slurm.decide import FailureClass
from phenomhpc.slurm.facts import discover
from phenomhpc.slurm.submit import copy_code

CURRENT = "current"
SUBMITTED = "submitted"
_CLUSTER = "cluster."


def retry_run(
    paths: RunPaths,
    progress: Progress,
    *,
    command: Sequence[str] = (),
    failed: bool = False,
    failure: str | None = None,
    code: str = SUBMITTED,
    time_minutes: int | None = None,
    overrides: Sequence[str] = (),
) -> str:
    """Resubmit what is missing of a run that has failed or was cancelled; returns in words what was done.

    failed: only units whose task failed, not those that were never tried; failure: only units whose last failure was of this
    class (bad_input: also those done with some input set aside); code: `submitted`, or `current` for a copy of what runs now;
    overrides: settings of cluster.*.  Of a pipeline, the stage it ended in is retried.
    Raises UsageError, before anything is changed, for a run in another state and for what cannot be; UnreachableError.
    """
    outcome = read_outcome(paths)
    _check_state(paths, outcome, failure)
    if code not in (SUBMITTED, CURRENT):
        raise UsageError(f"--code {code}: {SUBMITTED} (as the run was submitted) or {CURRENT} (as it is now)")
    if failure is not None and failure not in set(FailureClass):
        raise UsageError(f"--class {failure}: no such class; there are {', '.join(FailureClass)}")
    settings = _cluster_settings(overrides, time_minutes)
    config = load_run_config(paths.run_yaml)
    if isinstance(config, PipelineConfig):
        target = _stage_to_retry(paths, config)
        if target is None:
            if settings or failed or failure or code == CURRENT:
                raise UsageError(f"run {paths.id}: its next stage was never submitted; retry it without further wishes")
            _reopen(paths, None)
            return _carry_out(paths, progress, "its next stage")
        config = load_run_config(target.run_yaml)
    else:
        target = paths
    chosen = _choose(target, with_cluster(run_config(target), settings), failed=failed, failure=failure)
    retry = Retry(
        after=target.last_attempt(),
        cluster=settings,
        own_code=code == CURRENT,
        provenance={**collect_provenance(command), **describe_code(config)} if code == CURRENT else {},
        **chosen,
    )
    if retry.own_code:
        copy_code(target.attempt(retry.after).code)
        copy_script(retry.provenance, target.attempt(retry.after).script_code, progress)
    parent = parent_of(target)
    if parent is not None and read_outcome(parent) is not None:
        _reopen(parent, None)
    _reopen(target, retry)
    return _carry_out(target, progress, retry.what)


def _check_state(paths: RunPaths, outcome: Mapping[str, Any] | None, failure: str | None) -> None:
    if not on_slurm(paths):
        raise UsageError(f"run {paths.id}: was started here, not on Slurm; run the same command again to go on")
    if outcome is None:
        raise UsageError(
            f"run {paths.id}: has not ended; phenomhpc status {paths.id}, or first: phenomhpc cancel {paths.id}"
        )
    set_aside = outcome["exit_code"] == SET_ASIDE and failure == FailureClass.BAD_INPUT
    if outcome["state"] == "finished" and not set_aside:
        hint = "; what was set aside: --class bad_input" if outcome["exit_code"] == SET_ASIDE else ""
        raise UsageError(f"run {paths.id}: has finished, nothing is missing{hint}")
    other = read_provenance(paths).get(AFTER)
    if other is not None and not paths.last_attempt():
        before = RunPaths(Path(other))
        ended = read_outcome(before)
        if ended is not None and ended["state"] != "finished":
            raise UsageError(
                f"run {paths.id}: waits for {before.id}, which ended as {ended['state']}: retry that first"
            )


def _cluster_settings(overrides: Sequence[str], time_minutes: int | None) -> dict[str, Any]:
    settings: dict[str, Any] = {} if time_minutes is None else {"time_minutes": time_minutes}
    for text in overrides:
        override = parse_override(text)
        if not override.key.startswith(_CLUSTER):
            raise UsageError(
                f"retry: {text}: only cluster.* can change, e.g. cluster.mem_mb=64000; else submit a new run"
            )
        settings[override.key.removeprefix(_CLUSTER)] = override.value
    return settings


def _stage_to_retry(paths: RunPaths, config: PipelineConfig) -> RunPaths | None:
    """The first stage that has not finished; None where it was never made."""
    for stage in config.stages:
        run = stage_paths(paths, config, stage)
        outcome = read_outcome(run) if run.run_yaml.is_file() else None
        if outcome is None:
            return None
        if outcome["state"] != "finished":
            return run
    return None


def _choose(paths: RunPaths, config: AnyConfig, *, failed: bool, failure: str | None) -> dict[str, Any]:
    """Which units: `only`, `again` and `what` of the retry.  Raises UsageError for none, and for what the cluster would refuse."""
    facts = discover()
    if facts is None:
        raise UnreachableError("Slurm: no sbatch on this machine; retry where the run was submitted")
    submission_of(config, paths, max(1, paths.last_attempt()), facts)
    if not failed and failure is None:
        return {}
    classes = unit_classes(paths)
    if is_gang(config):
        found = set(classes.values())
        if failure is not None and found and failure not in found:
            raise UsageError(
                f"run {paths.id}: ended as {', '.join(sorted(found))}, not as {failure}; retry it without --class"
            )
        return {}
    plan = load(config.kind).plan(config, paths)
    missing = list(plan.units) if isinstance(plan, ArrayPlan) else []
    only = [unit.unit_id for unit in missing if _is_wanted(classes.get(unit.unit_id), failure)]
    again = _with_input_set_aside(paths, config, missing) if failure == FailureClass.BAD_INPUT else []
    what = f"what failed as {failure}" if failure else "what failed"
    if not only and not again:
        kinds = sorted({classes[unit.unit_id] for unit in missing if unit.unit_id in classes})
        there = f"failed: {', '.join(kinds)}" if kinds else "none failed"
        raise UsageError(f"run {paths.id}: no missing unit is {what} ({len(missing)} missing, {there})")
    return {"only": tuple(only), "again": tuple(again), "what": f"{len(only) + len(again)} unit(s): {what}"}


def _is_wanted(found: str | None, failure: str | None) -> bool:
    if failure is not None:
        return found == failure
    return found is not None and found != FailureClass.CANCELLED


def _with_input_set_aside(paths: RunPaths, config: AnyConfig, missing: Sequence[Unit]) -> list[str]:
    """Units of a conversion that were done without some of their input.  (What embedding sets aside has no pixels to try again.)"""
    if config.kind != "convert":
        return []
    last = {event["unit_id"]: event.get("set_aside") for event in read_events(paths) if event["event"] == "unit"}
    ids = {unit for unit, num in last.items() if num} - {unit.unit_id for unit in missing}
    units = units_by_id(paths, ids)
    return sorted(unit.unit_id for unit in units if not has_next_stage(config.kind, unit.kind))


def _reopen(paths: RunPaths, retry: Retry | None) -> None:
    """Keep how the run had ended, write down what is asked for, and let it go on."""
    with steward_lock(paths):
        outcome = read_outcome(paths)
        if outcome is None:  # another retry was faster
            raise UsageError(f"run {paths.id}: goes on already; phenomhpc status {paths.id}")
        if retry is not None:
            write_retry(paths.attempt(paths.last_attempt()), retry)
            shutil.rmtree(paths.surveys, ignore_errors=True)  # raw plates may have been mended since
        asked = {name: value for name, value in asdict(retry).items() if name in _TOLD} if retry else {}
        was, message = str(outcome["state"]), str(outcome["message"])
        emit(paths, paths.last_attempt(), "retried", was=was, message=message, **asked)
        set_outcome_aside(paths)


_TOLD = ("what", "cluster", "own_code")


def _carry_out(paths: RunPaths, progress: Progress, what: str) -> str:
    """The steward's step, which submits.  Raises what Slurm says against it; the run has then failed, as it had before."""
    standing = step(paths, progress)
    outcome = read_outcome(paths)
    if outcome is not None and outcome["state"] == "failed":
        raise (UsageError if outcome["exit_code"] == WRONG_USE else WorkError)(str(outcome["message"]))
    if standing.ended:
        return f"{paths.id}: {standing.words}"
    return f"{paths.id} goes on as attempt {paths.last_attempt()}: {what}"

"""Retries as they are written down, and what is refused before anything changes; the rest is tested on the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phenomhpc.config import ConvertConfig, dump
from phenomhpc.errors import UsageError
from phenomhpc.jobs.attempts import AFTER, CLUSTER, STEWARD_TASK
from phenomhpc.jobs.retried import Retry, code_of, in_scope, is_retried, read_retries, run_config, write_retry
from phenomhpc.jobs.retry import retry_run
from phenomhpc.progress import silent
from phenomhpc.runs import (
    EventWriter,
    RunPaths,
    Unit,
    create_run,
    open_attempt,
    read_outcome,
    set_outcome_aside,
    write_manifest,
    write_outcome,
)
from phenomhpc.slurm.submit import copy_code


def units(*numbers: int) -> list[Unit]:
    return [Unit(unit_id=f"p/{number}", kind="convert", task=number) for number in numbers]


def new_run(tmp_path: Path, name: str = "r", **provenance: Any) -> RunPaths:
    config = ConvertConfig(runs=str(tmp_path), plates=("p",), store="s")
    return create_run(tmp_path, "convert", dump(config), {CLUSTER: "phenom", **provenance}, name=name)


def attempt(paths: RunPaths, *numbers: int) -> int:
    number, token = open_attempt(paths)
    write_manifest(paths.attempt(number).manifest, units(*numbers), token=token)
    return number


def test_a_retry_is_read_as_it_was_written_and_is_open_until_the_next_attempt(tmp_path: Path) -> None:
    paths = new_run(tmp_path)
    assert read_retries(paths) == [] and not is_retried(paths)
    attempt(paths, 0, 1)
    retry = Retry(
        after=1, cluster={"mem_mb": 64000}, only=("p/1",), again=("p/0",), what="x", provenance={"commit": "c"}
    )
    write_retry(paths.attempt(1), retry)
    assert read_retries(paths) == [retry] and is_retried(paths)
    attempt(paths, 1)
    assert not is_retried(paths)


def test_cluster_settings_of_every_retry_hold_and_run_yaml_stays_as_it_was(tmp_path: Path) -> None:
    paths = new_run(tmp_path)
    before = paths.run_yaml.read_bytes()
    attempt(paths, 0)
    write_retry(paths.attempt(1), Retry(after=1, cluster={"mem_mb": 1000, "time_minutes": 5}))
    attempt(paths, 0)
    write_retry(paths.attempt(2), Retry(after=2, cluster={"mem_mb": 2000}))
    cluster = run_config(paths).cluster
    assert (cluster.mem_mb, cluster.time_minutes, cluster.max_attempts) == (2000, 5, 3)
    assert paths.run_yaml.read_bytes() == before


def test_code_of_a_retry_is_imported_by_the_attempts_behind_it(tmp_path: Path) -> None:
    paths = new_run(tmp_path)
    for number in (1, 2, 3):
        attempt(paths, 0)
        write_retry(paths.attempt(number), Retry(after=number, own_code=number == 2))
    own = paths.attempt(2).code
    assert [code_of(paths, number) for number in (1, 2, 3, 4)] == [paths.code, paths.code, own, own]
    copy_code(own)
    assert (own / "phenomhpc" / "jobs" / "retry.py").is_file()


def test_only_the_chosen_units_are_left_and_those_to_be_done_again_until_they_are(tmp_path: Path) -> None:
    paths = new_run(tmp_path)
    attempt(paths, 0, 1, 2, 3)
    assert in_scope(paths, units(1, 2)) == units(1, 2)
    write_retry(paths.attempt(1), Retry(after=1, only=("p/2",), again=("p/0", "p/3")))
    assert [unit.unit_id for unit in in_scope(paths, units(1, 2))] == ["p/2", "p/0", "p/3"]
    attempt(paths, 0, 2, 3)
    EventWriter(paths, 2, 0, "t").emit("unit", unit_id="p/0")
    assert [unit.unit_id for unit in in_scope(paths, units(1))] == ["p/3"]
    write_retry(paths.attempt(2), Retry(after=2))
    assert in_scope(paths, units(1)) == units(1)


def test_the_outcome_is_kept_beside_the_attempt_that_it_ended_with(tmp_path: Path) -> None:
    paths = new_run(tmp_path)
    attempt(paths, 0)
    write_outcome(paths, state="failed", exit_code=1, message="why")
    before = paths.outcome.read_bytes()
    set_outcome_aside(paths)
    assert read_outcome(paths) is None
    assert paths.attempt(1).outcome.read_bytes() == before


@pytest.mark.parametrize(
    ("outcome", "wishes", "said"),
    [
        (None, {}, "run r: has not ended; phenomhpc status r"),
        (("finished", 0), {}, "run r: has finished, nothing is missing$"),
        (("finished", 3), {}, "has finished, nothing is missing; what was set aside: --class bad_input"),
        (("failed", 1), {"failure": "ooom"}, "--class ooom: no such class; there are oom, timeout"),
        (("failed", 1), {"code": "newest"}, "--code newest: submitted .* or current"),
        (("failed", 1), {"overrides": ["workers=3"]}, r"workers=3: only cluster\.\* can change"),
        (("cancelled", 1), {"overrides": ["cluster.memory=3"]}, "cluster.memory=3.*nearest key: cluster.mem_mb"),
        (("cancelled", 1), {"overrides": ["cluster.mem_mb=-3"]}, "cluster.mem_mb=-3: input should be greater than 0"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_changes(
    tmp_path: Path, outcome: tuple[str, int] | None, wishes: dict[str, Any], said: str
) -> None:
    paths = new_run(tmp_path)
    attempt(paths, 0)
    EventWriter(paths, 1, STEWARD_TASK, "t").emit("submitted")
    if outcome is not None:
        write_outcome(paths, state=outcome[0], exit_code=outcome[1])
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=said) as refused:
        retry_run(paths, silent(), **wishes)
    assert "\n" not in str(refused.value)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_a_run_here_and_one_that_waits_for_a_failed_one_are_sent_elsewhere(tmp_path: Path) -> None:
    config = ConvertConfig(runs=str(tmp_path), plates=("p",), store="s")
    here = create_run(tmp_path, "convert", dump(config), {}, name="here")
    with pytest.raises(UsageError, match="run here: was started here, not on Slurm; run the same command again"):
        retry_run(here, silent())
    first = new_run(tmp_path, "first")
    write_outcome(first, state="failed", exit_code=1)
    second = new_run(tmp_path, "second", **{AFTER: str(first.root)})
    write_outcome(second, state="failed", exit_code=1)
    with pytest.raises(UsageError, match="run second: waits for first, which ended as failed: retry that first"):
        retry_run(second, silent())

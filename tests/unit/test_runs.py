"""The run directory: records, events, manifests, fences, finding runs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from phenomhpc.errors import FencedError, UsageError
from phenomhpc.runs import (
    CompletionRecord,
    EventWriter,
    RunPaths,
    Unit,
    check_fence,
    claim_start,
    create_run,
    digest_of,
    find_run,
    list_runs,
    open_attempt,
    read_events,
    read_manifest,
    read_outcome,
    read_record,
    write_manifest,
    write_outcome,
    write_record,
)

RECORD = CompletionRecord(
    unit_id="P/00000",
    digest="d",
    attempt=1,
    task=2,
    token="t",
    started="2026-01-01T00:00:00.000000+00:00",
    ended="2026-01-01T00:00:01.000000+00:00",
    outputs=(("a", 3, 7),),
    set_aside=(("field 3", "truncated"),),
    rows=({"field_index": 0, "status": "ok"},),
    pending=(("raw.tiff", 10, 123456789012345678),),
)


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return create_run(tmp_path / "runs", "convert", "kind: convert\n", {"command": ["x"]})


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", RECORD)
    assert read_record(tmp_path / "r.json") == RECORD


@pytest.mark.parametrize("text", ["", '{"schema": 1', "[]", '{"schema": 99}', '{"schema": 1, "unit_id": "x"}'])
def test_a_torn_or_foreign_record_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    assert read_record(tmp_path / "r.json") is None
    assert read_record(tmp_path / "absent.json") is None


def test_a_digest_depends_on_values_and_not_on_their_order() -> None:
    assert digest_of("k", {"a": 1, "b": 2}, [["x", 1]]) == digest_of("k", {"b": 2, "a": 1}, [("x", 1)])
    assert digest_of("k", {"a": 1}, []) != digest_of("k", {"a": 2}, []) != digest_of("j", {"a": 2}, [])


def test_a_torn_event_is_left_out_and_does_not_swallow_the_next(paths: RunPaths) -> None:
    EventWriter(paths, 1, 0, "t").emit("started")
    with paths.events_file(1, 0).open("ab") as file:
        file.write(b'{"event": "fini')
    EventWriter(paths, 1, 0, "t").emit("finished", units_done=3)
    assert [event["event"] for event in read_events(paths)] == ["started", "finished"]
    assert read_events(paths, attempt=2) == []


def test_a_manifest_comes_back_whole_or_by_task(paths: RunPaths) -> None:
    units = [Unit(unit_id=f"P/{i}", kind="convert", plate="P", first=i, task=i // 2, cost_s=0.5) for i in range(5)]
    write_manifest(paths.attempt(1).manifest, units)
    assert read_manifest(paths.attempt(1).manifest) == units
    assert read_manifest(paths.attempt(1).manifest, task=1) == units[2:4]


def test_a_newer_start_and_a_newer_attempt_fence_the_older_one(paths: RunPaths) -> None:
    attempt, _ = open_attempt(paths)
    first = claim_start(paths, attempt, 0, 0)
    other_task = claim_start(paths, attempt, 1, 0)
    second = claim_start(paths, attempt, 0, 1)
    with pytest.raises(FencedError):
        check_fence(paths, attempt, 0, first)
    with pytest.raises(FencedError):
        claim_start(paths, attempt, 0, 0)
    check_fence(paths, attempt, 0, second)
    check_fence(paths, attempt, 1, other_task)
    open_attempt(paths)
    with pytest.raises(FencedError, match="attempt 2 has replaced attempt 1"):
        check_fence(paths, attempt, 0, second)


def test_attempts_opened_at_once_get_different_numbers(paths: RunPaths) -> None:
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.append(open_attempt(paths)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 9))


def test_runs_are_listed_oldest_first_and_found_by_name_beginning_path_and_last(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    made = [create_run(runs, "convert", "kind: convert\n", {}, name=name) for name in ("alpha-1", "beta-1", "beta-2")]
    (runs / "no-run").mkdir()
    assert list_runs(runs) == made
    assert find_run(runs, "alpha") == find_run(tmp_path, str(made[0].root)) == made[0]
    assert find_run(runs, "last") == made[2]
    with pytest.raises(UsageError, match="did you mean beta-1, beta-2"):
        find_run(runs, "beta")
    with pytest.raises(UsageError, match="did you mean alpha-1"):
        find_run(runs, "alpha-7")
    with pytest.raises(UsageError, match="exists already"):
        create_run(runs, "convert", "", {}, name="alpha-1")
    with pytest.raises(UsageError, match="only letters"):
        create_run(runs, "convert", "", {}, name="../x")


def test_an_outcome_is_none_until_written(paths: RunPaths) -> None:
    assert read_outcome(paths) is None
    write_outcome(paths, state="failed", exit_code=1, message="disk full")
    outcome = read_outcome(paths)
    assert outcome is not None and (outcome["state"], outcome["exit_code"]) == ("failed", 1)


def test_a_run_directory_is_not_open_to_the_world(paths: RunPaths) -> None:
    assert paths.root.stat().st_mode & 0o007 == 0

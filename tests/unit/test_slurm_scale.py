"""What a run costs does not grow with its tasks: questions to Slurm are counted, files that are read are named."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from phenomhpc.config import ConvertConfig, dump
from phenomhpc.jobs import attempts, steward
from phenomhpc.jobs.attempts import CLUSTER, units_of
from phenomhpc.jobs.base import ArrayPlan
from phenomhpc.jobs.counting import count_done
from phenomhpc.jobs.pack import pack
from phenomhpc.jobs.status import run_status, tended_status
from phenomhpc.progress import duration, silent
from phenomhpc.runs import (
    PROGRESS,
    EventWriter,
    RunPaths,
    TaskContext,
    Unit,
    Units,
    canonical_json,
    commit,
    create_run,
    manifest,
    open_attempt,
    read_log,
    read_outcome,
    walk_events,
    write_manifest,
)
from phenomhpc.slurm import facts, queue
from phenomhpc.slurm.record import SubmittedJobs, write_submitted

with warnings.catch_warnings():  # typer still asks click for names that click is giving up
    warnings.simplefilter("ignore", DeprecationWarning)
    from phenomhpc.cli.status import facts_of
    from phenomhpc.cli.watch import line_of


@dataclass
class Slurm:
    """How often each of Slurm's programs was started, and what they say."""

    asked: Counter[str] = field(default_factory=Counter)
    answers: dict[str, str] = field(default_factory=dict)

    def answer(self, argv: Sequence[str], **_: object) -> str:
        self.asked[argv[0]] += 1
        return self.answers.get(argv[0], "")


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    counted = Slurm()
    for module in (queue, facts):
        monkeypatch.setattr(module, "run_program", counted.answer)
    return counted


def run_of(folder: Path, num_tasks: int, num_fed: int | None = None) -> RunPaths:
    config = ConvertConfig(runs=str(folder), plates=("p",), store="s")
    paths = create_run(folder, "convert", dump(config), {CLUSTER: "phenom"}, name="r")
    number, token = open_attempt(paths)
    names = [f"p/{unit}" for unit in range(2 * num_tasks)]
    units = pack(Units.of_columns({"unit_id": names, "kind": "convert", "cost_s": 1.0}), num_tasks)
    write_manifest(paths.attempt(number).manifest, units, token=token)
    chunks = (("5", 0, num_tasks if num_fed is None else num_fed),)
    write_submitted(paths.attempt(number), SubmittedJobs(chunks=chunks, num_tasks=num_tasks, gang=False, steward="8"))
    return paths


def squeue_of(paths: RunPaths, num_tasks: int, state: str = "RUNNING", first: int = 0) -> str:
    folder = paths.root.absolute()
    lines = [f"5_{task}|{state}|None|n1|r||{folder}" for task in range(first, num_tasks)]
    return "\n".join([*lines, f"8|PENDING|Dependency||steward-r||{folder}"])


@pytest.mark.parametrize("num_tasks", [10, 1000, 100_000])
def test_a_poll_asks_slurm_once_however_many_tasks(tmp_path: Path, slurm: Slurm, num_tasks: int) -> None:
    paths = run_of(tmp_path, num_tasks)
    # The first half has ended and was forgotten by the controller, without a word of its own.
    slurm.answers["squeue"] = squeue_of(paths, num_tasks, first=num_tasks // 2)
    standing = steward.step(paths, silent(), own_job="4")
    assert (standing.ended, standing.live) == (False, ("5",))
    assert slurm.asked == {"squeue": 1}
    slurm.asked.clear()
    # A person wants to know what the forgotten ones died of: one more question, to accounting, for all of them.
    status = tended_status(paths)
    assert (status.state, status.running) == ("running", num_tasks - num_tasks // 2)
    assert slurm.asked == {"squeue": 1, "sacct": 1}


def test_a_poll_that_finds_no_room_asks_nothing_more(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    discovered: list[int] = []
    shape = facts.ClusterFacts(
        name="phenom",
        version="",
        partitions=(
            facts.Partition(
                name="main",
                num_nodes=4,
                is_default=True,
                max_time_minutes=None,
                gpus_per_node=0,
                cpus_per_node=4,
                mem_mb_per_node=4000,
            ),
        ),
        max_array_size=50,
        max_job_count=100,
    )
    monkeypatch.setattr(attempts, "discover", lambda: discovered.append(1) or shape)
    attempts._facts.cache_clear()
    paths = run_of(tmp_path, 1000, num_fed=48)
    lines = [f"{job}_{task}|RUNNING|None|n1|r||{paths.root}" for job in (5, 8, 9, 10) for task in range(12)]
    slurm.answers["squeue"] = "\n".join(lines)
    chunks = tuple((job, 12 * place, 12) for place, job in enumerate(("5", "8", "9", "10")))
    write_submitted(paths.attempt(1), SubmittedJobs(chunks=chunks, num_tasks=1000, gang=False, steward="8"))
    for _ in range(5):
        standing = steward.step(paths, silent(), own_job="4", watch=False)
        assert (standing.unfed, standing.ended) == (952, False)
    attempts._facts.cache_clear()
    assert slurm.asked == {"squeue": 5}
    assert discovered == [1]


def test_a_poll_does_not_read_what_units_left(tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = run_of(tmp_path, 4)
    EventWriter(paths, 1, 0, "t").emit("unit", unit_id="p/0", set_aside=0)
    slurm.answers["squeue"] = squeue_of(paths, 4)
    for module, name in ((steward, "read_log"), (manifest, "read_manifest"), (steward, "run_mark")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("was read"))
    assert not steward.step(paths, silent(), own_job="4").ended
    assert read_outcome(paths) is None


def test_units_are_counted_on_partial_data(tmp_path: Path, slurm: Slurm) -> None:
    paths = run_of(tmp_path, 4)  # 8 units
    slurm.answers["squeue"] = squeue_of(paths, 4)
    config = ConvertConfig(runs=str(tmp_path), plates=("p",), store="s")
    assert (run_status(paths).done, run_status(paths).total, run_status(paths).rate_per_s) == (0, 8, None)
    writer = EventWriter(paths, 1, 0, "t")
    writer.emit("started", start=0)
    writer.emit("unit", unit_id="p/0", seconds=1.0, set_aside=0)
    status = run_status(paths)
    assert (status.done, status.total, status.rate_per_s is not None) == (1, 8, True)
    # A requeued start does the unit whose event it did not see once more: it is still one unit.
    writer.emit("started", start=1)
    writer.emit("unit", unit_id="p/0", seconds=1.0, set_aside=0)
    writer.emit("unit", unit_id="p/1", seconds=1.0, set_aside=0)
    assert count_done(paths, config, read_log(paths)).done == 2
    writer.emit("finished", units_done=2, set_aside=0)
    # A task that found its units done emits none, and is done with them.
    silent_one = EventWriter(paths, 1, 3, "t")
    silent_one.emit("started", start=0)
    silent_one.emit("finished", units_done=2, set_aside=0)
    with paths.events_file(1, 1).open("ab") as file:
        file.write(canonical_json({"event": "unit", "unit_id": "p/2"})[:-9])  # torn by a kill
    status = run_status(paths)
    assert (status.done, status.total) == (4, 8)
    assert status.left_s == pytest.approx(4 / status.rate_per_s)  # type: ignore[operator]


def test_a_running_conversion_tells_fields_and_raw_megabytes_per_second(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the bar of a conversion here does; units differ in their fields."""
    paths = run_of(tmp_path, 2)
    fields = [10, 20, 30, 40]
    columns = {"unit_id": [f"p/{unit}" for unit in range(4)], "kind": "convert", "count": fields, "cost_s": fields}
    units = pack(Units.of_columns(columns), 2)
    write_manifest(paths.attempt(1).manifest, units)
    slurm.answers["squeue"] = squeue_of(paths, 2)
    of_task = {task: list(units.of_task(task)) for task in (0, 1)}
    monkeypatch.setattr(TaskContext, "check_fence", lambda self: None)
    seconds = iter(
        f"2026-01-01T00:00:{second:02d}.000000+00:00" for second in (0, 0, 10, *[20] * len(of_task[0]), 40, 45)
    )
    monkeypatch.setattr("phenomhpc.runs.events.now", lambda: next(seconds))
    tasks = [TaskContext(paths=paths, attempt=1, task=task, token="t", units=(), progress=silent()) for task in (0, 1)]
    for task in tasks:
        task.events.emit("started", start=0)
    tasks[0].tell_unit(of_task[0][0], 10.0, num_bytes=100_000_000)
    done = of_task[0][0].count
    status = run_status(paths)
    assert (status.parts, status.parts_done, status.parts_total) == ("fields", done, 100)
    assert (status.parts_per_s, status.raw_mb_per_s) == (pytest.approx(done / 10), pytest.approx(10.0))
    assert status.left_s == pytest.approx((100 - done) / (done / 10))
    told = "\n".join(f"{name}: {value}" for name, value in facts_of(status))
    assert f"fields: {done} of 100" in told and f"rate: {done / 10:.3g} fields/s, 10 raw MB/s" in told
    assert f"time left: {duration((100 - done) / (done / 10))}" in told
    assert f"{done / 10:.3g} fields/s, 10 raw MB/s" in line_of(status)
    # A task that has finished counts as a whole, also where it found a unit done and told of none.
    for unit in of_task[0][1:]:
        tasks[0].tell_unit(unit, 10.0, num_bytes=100_000_000)
    tasks[0].events.emit("finished", units_done=len(of_task[0]), set_aside=0)
    whole = sum(unit.count for unit in of_task[0])
    assert (run_status(paths).parts_done, run_status(paths).done) == (whole, len(of_task[0]))
    # Of a unit that takes long, what is done of it counts already; of a start that has ended it is lost.
    tasks[1].events.emit(PROGRESS, unit_id=of_task[1][0].unit_id, count=5, bytes=60_000_000)
    status = run_status(paths)
    read = 100 * len(of_task[0]) + 60
    assert (status.parts_done, status.done) == (whole + 5, len(of_task[0]))
    assert (status.parts_per_s, status.raw_mb_per_s) == (pytest.approx((whole + 5) / 40), pytest.approx(read / 40))
    tasks[1].events.emit("ended", code=143, seconds=45.0)
    assert run_status(paths).parts_done == whole
    # Another attempt names what is missing only; what was done before is still done.
    number, token = open_attempt(paths)
    write_manifest(paths.attempt(number).manifest, [*of_task[1]], token=token)
    count = count_done(paths, ConvertConfig(runs=str(tmp_path), plates=("p",), store="s"), read_log(paths))
    assert (count.parts_done, count.parts_total, count.done, count.total) == (whole, 100, len(of_task[0]), 4)


def test_units_of_an_earlier_attempt_count_once(tmp_path: Path) -> None:
    paths = run_of(tmp_path, 4)
    EventWriter(paths, 1, 0, "t").emit("unit", unit_id="p/0", set_aside=0)
    EventWriter(paths, 1, 3, "t").emit("unit", unit_id="p/7", set_aside=0)
    number, token = open_attempt(paths)
    names = [f"p/{unit}" for unit in range(1, 8)]  # p/7 once more
    units = pack(Units.of_columns({"unit_id": names, "kind": "convert"}), 2)
    write_manifest(paths.attempt(number).manifest, units, token=token)
    config = ConvertConfig(runs=str(tmp_path), plates=("p",), store="s")
    count = count_done(paths, config, read_log(paths))
    assert (count.done, count.total) == (2, 8)
    last = EventWriter(paths, number, 1, "u")
    last.emit("finished", units_done=sum(unit.task == 1 for unit in units), set_aside=0)
    count = count_done(paths, config, read_log(paths))
    assert (count.done, count.total) == (1 + sum(unit.task == 1 for unit in units), 8)
    commit(paths.done_file(1), canonical_json({"attempt": number, "units_done": 4}))


def test_a_later_attempt_is_cut_by_what_units_really_took(tmp_path: Path) -> None:
    paths = run_of(tmp_path, 4)
    config = ConvertConfig(runs=str(tmp_path), plates=("p",), store="s")
    names = [f"p/{unit}" for unit in range(4000)]
    plan = ArrayPlan(units=Units.of_columns({"unit_id": names, "kind": "convert", "cost_s": 60.0}))
    assert units_of(plan, config, walk_events(paths)).num_tasks == 400  # ten minutes each
    ctx = TaskContext(paths=paths, attempt=1, task=0, token="t", units=(), progress=silent())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskContext, "check_fence", lambda self: None)
        ctx.tell_unit(Unit(unit_id="p/0", kind="convert", cost_s=10.0), 20.0)
    assert units_of(plan, config, walk_events(paths)).num_tasks == 800
    few = config.model_copy(update={"cluster": config.cluster.model_copy(update={"max_tasks": 3})})
    assert units_of(plan, few, walk_events(paths)).num_tasks == 3

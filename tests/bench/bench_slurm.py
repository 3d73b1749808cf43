"""What large runs cost to plan, to look at and to poll: `make bench-slurm` (`--small` for a hundredth of it).

Each figure is of a process of its own, on the functions and the command that people use: seconds of the wall, CPU seconds
(the one that means something on a shared machine) and the largest memory.  Slurm's answers come from programs named squeue
and sacct that print what Slurm would print, and count how often they are asked.
Aims: 10 million units planned within 10 s and 1 GB; `status` of 100,000 units within 1 s; one question to Slurm per poll.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from phenomhpc.config import ClusterConfig, ConvertConfig, dump
from phenomhpc.jobs.attempts import CLUSTER, STEWARD_TASK
from phenomhpc.jobs.pack import pack
from phenomhpc.runs import RunPaths, Units, canonical_json, create_run, open_attempt, read_manifest, write_manifest
from phenomhpc.slurm.record import SubmittedJobs, write_submitted

MEGABYTE = 1e6
UNITS_PER_PLATE = 24


# As a planner does that looks at ten thousand plates at a time.
UNITS_AT_ONCE = 10_000 * UNITS_PER_PLATE


def many_units(number: int) -> Units:
    """As conversion names them, of uneven cost (3 to 9 s)."""
    starts = range(0, number, UNITS_AT_ONCE)
    return Units.concat(some_units(start, min(UNITS_AT_ONCE, number - start)) for start in starts)


def some_units(first: int, number: int) -> Units:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    place = np.arange(number, dtype=np.uint32)
    plates = pa.array([_plate(first // UNITS_PER_PLATE + plate) for plate in range(-(-number // UNITS_PER_PLATE))])
    plate = pa.DictionaryArray.from_arrays(pa.array((place // UNITS_PER_PLATE).astype(np.int32)), plates)
    shard = pc.utf8_lpad(pa.array(place % UNITS_PER_PLATE).cast(pa.string()), 5, "0")
    return Units.of_columns(
        {
            "unit_id": pc.binary_join_element_wise(plate.cast(pa.string()), shard, "/"),
            "kind": "convert",
            "plate": plate,
            "first": place % UNITS_PER_PLATE * 16,
            "count": 16,
            "cost_s": 3 + 6 * np.random.default_rng(first).random(number, dtype=np.float32),
        }
    )


def _plate(number: int) -> str:
    return f"EXP-{number // 96:04d}-P{number:06d}"


def plan(number: int, folder: Path) -> dict[str, Any]:
    """Units -> tasks -> manifest -> what Slurm is asked for -> script; then what one task reads of it."""
    from phenomhpc.slurm.plan import plan_submission
    from phenomhpc.slurm.render import render

    wall, cpu = perf_counter(), process_time()
    units = many_units(number)
    made = process_time()
    packed = pack(units, target_s=60 * ClusterConfig().task_minutes)
    cut = process_time()
    path = folder / "manifest.parquet"
    write_manifest(path, packed)
    written = process_time()
    submission = plan_submission(
        run_root=folder, kind="convert", attempt=1, num_tasks=packed.num_tasks, gang=False, cluster=ClusterConfig(),
        python="python", code=folder / "code", facts=None,
    )  # fmt: skip
    chunks = submission.chunks
    render(submission, chunks[0])
    planned = process_time()
    figures = {
        "what": f"plan {number:,} units: {packed.num_tasks:,} tasks, {len(chunks)} arrays",
        "wall_s": perf_counter() - wall, "cpu_s": planned - cpu, "peak_mb": _peak_mb(),
        "parts": {"make": made - cpu, "pack": cut - made, "manifest": written - cut, "Slurm's plan": planned - written},
        "manifest_mb": path.stat().st_size / MEGABYTE,
    }  # fmt: skip
    assert len(read_manifest(path, task=packed.num_tasks // 2)) >= 1
    return figures


def task_reads(path: Path, task: int) -> dict[str, Any]:
    """What a task of a large run reads to know its units, in a process that has read nothing before."""
    import pyarrow.parquet

    pyarrow.scalar(0)  # imports pandas where that is installed; not counted either
    before, cpu, wall = _read(), process_time(), perf_counter()
    units = read_manifest(path, task=task)
    figures = {"cpu_s": process_time() - cpu, "wall_s": perf_counter() - wall, "peak_mb": _peak_mb()}
    return {"what": f"a task reads its {len(units)} units", **figures, "read_mb": (_read() - before) / MEGABYTE}


def make_run(runs: Path, name: str, num_tasks: int, units_per_task: int) -> RunPaths:
    """A run half of whose tasks have finished: the others, at work, have told of all their units but one."""
    config = ConvertConfig(runs=str(runs), plates=("raw",), store="store")
    paths = create_run(runs, "convert", dump(config), {CLUSTER: "phenom"}, name=name)
    attempt, token = open_attempt(paths)
    units = pack(many_units(num_tasks * units_per_task), num_tasks)
    write_manifest(paths.attempt(attempt).manifest, units, token=token)
    chunks = (("5", 0, num_tasks),)
    write_submitted(paths.attempt(attempt), SubmittedJobs(chunks=chunks, num_tasks=num_tasks, gang=False, steward="8"))
    paths.events.mkdir()
    paths.done.mkdir()
    began = datetime.now(UTC) - timedelta(hours=1)
    names = units.table["unit_id"].to_pylist()
    places = units.numpy("task").tolist()
    own: list[list[str]] = [[] for _ in range(num_tasks)]
    for unit, task in zip(names, places, strict=True):
        own[task].append(unit)

    def write(task: int, entries: list[tuple[float, str, dict[str, Any]]]) -> None:
        fixed = {"attempt": attempt, "task": task, "token": f"{token}/0/5_{task}", "host": f"node{task % 64:03d}"}
        lines = [
            canonical_json(
                {
                    **fixed, "job_id": f"5_{task}", "event": event, "seq": number, **fields,
                    "time": (began + timedelta(seconds=after)).isoformat(timespec="microseconds"),
                }
            )
            for number, (after, event, fields) in enumerate(entries)
        ]  # fmt: skip
        paths.events_file(attempt, task).write_bytes(b"\n".join(lines) + b"\n")

    asked = {"gpus": 0, "num_units": len(units), "num_tasks": num_tasks, "num_nodes": 1, "gang": False}
    write(STEWARD_TASK, [(0, "submitted", {**asked, "limit_minutes": 60, "mem_mb": None, "cpus": 4, "exclude": []})])
    for task in range(num_tasks):
        start = {
            "start": 0,
            "pid": 4242,
            "gpus": 0,
            "cpus": 4,
            "mem_mb": 4000,
            "num_nodes": 1,
            "mark": "step 0, 0 units",
        }
        entries: list[tuple[float, str, dict[str, Any]]] = [(1.0, "started", start)]
        at = 3.0
        finished = task < num_tasks // 2
        for unit in own[task] if finished else own[task][:-1]:
            at += 6.1
            told = {
                "unit_id": unit,
                "count": 16,
                "bytes": 1_132_462_080,
                "seconds": 6.0123,
                "cost_s": 5.5,
                "set_aside": 0,
            }
            entries.append((at, "unit", told))
        if finished:
            entries.append((at, "finished", {"units_done": len(own[task]), "set_aside": 0}))
            end = {"code": 0, "seconds": at, "max_rss_bytes": 10**8, "before": "step 0, 0 units", "mark": "step 0"}
            entries.append((at + 0.1, "ended", end))
            tally = {"attempt": attempt, "token": token, "ended": "", "units_done": len(own[task]), "set_aside": []}
            paths.done_file(task).write_bytes(canonical_json(tally))
        write(task, entries)
    return paths


class FakeClient:
    """Programs named squeue, sacct and sbatch: they say what is in a file, and leave a line for every time they are asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        for name in ("squeue", "sacct", "sbatch", "sinfo", "scontrol", "sacctmgr", "scancel"):
            (folder / f"{name}.answer").touch()
            (folder / name).write_text(
                f'#!/bin/sh\necho {name} >> "{folder}/asked"\nexec cat "{folder}/{name}.answer"\n'
            )
            (folder / name).chmod(0o755)

    def runs(self, paths: RunPaths, num_tasks: int, first: int) -> None:
        """Tasks from `first` run; those before were forgotten; the steward waits."""
        lines = [f"5_{task}|RUNNING|None|n1|r||{paths.root}" for task in range(first, num_tasks)]
        lines.append(f"8|PENDING|Dependency||steward-r||{paths.root}")
        (self._folder / "squeue.answer").write_text("\n".join(lines) + "\n")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": f"{self._folder}:{os.environ['PATH']}"}

    def asked(self) -> list[str]:
        """Who was asked since the last time this was looked at."""
        path = self._folder / "asked"
        lines = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


def measured(what: str, command: list[str], client: FakeClient) -> dict[str, Any]:
    """One command, with its children."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), perf_counter()
    done = subprocess.run(command, env=client.environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"what": what, "wall_s": perf_counter() - wall, "cpu_s": cpu, "asked": client.asked()}


def in_child(case: str, *words: object) -> dict[str, Any]:
    """A case of this file in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.bench_slurm", "--case", case, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


POLL = "import sys; from pathlib import Path; from phenomhpc.jobs.steward import step; from phenomhpc.runs import RunPaths; "
POLL += (
    "from phenomhpc.progress import silent; assert not step(RunPaths(Path(sys.argv[1])), silent(), own_job='4').ended"
)


def figures(scale: int) -> list[dict[str, Any]]:
    """Everything, with `scale` times less than what is aimed for."""
    found = []
    phenomhpc = [sys.executable, "-m", "phenomhpc"]
    with tempfile.TemporaryDirectory() as name:
        folder, client = Path(name), FakeClient(Path(name) / "client")
        planned = in_child("plan", 10_000_000 // scale, folder)
        task = in_child("task", folder / "manifest.parquet", 1_000 // scale)
        found += [planned, task]
        runs = folder / "runs"
        num_tasks = 1_000 // scale
        paths = make_run(runs, "large", num_tasks, 100)
        client.runs(paths, num_tasks, first=num_tasks // 2)
        status = [*phenomhpc, "status", "large", "--runs", str(runs), "--json"]
        found.append(measured(f"status of {num_tasks * 100:,} units in {num_tasks:,} tasks", status, client))
        for number in sorted({10, 1_000 // scale, 100_000 // scale}):
            several = make_run(folder / "polled", f"r{number}", number, 1)
            client.runs(several, number, first=number // 2)
            found.append(
                measured(f"steward's poll, {number:,} tasks", [sys.executable, "-c", POLL, str(several.root)], client)
            )
        many = folder / "many"
        first = make_run(many, "r00000", 10, 10)
        for number in range(1, 1_000 // scale):
            shutil.copytree(first.root, many / f"r{number:05d}")
        client.runs(first, 10, first=5)
        found.append(measured(f"runs: a list of {1_000 // scale:,}", [*phenomhpc, "runs", "--runs", str(many)], client))
        found.append(measured("the same with --usage", [*phenomhpc, "runs", "--usage", "--runs", str(many)], client))
        found.append(measured("phenomhpc --help, for comparison", [*phenomhpc, "--help"], client))
    return found


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE


def _read() -> int:
    """Bytes that this process has read so far."""
    lines = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(dict(lines)["rchar"])


def _details(entry: dict[str, Any]) -> str:
    words = [f"{name} {seconds:.2f} s" for name, seconds in entry.get("parts", {}).items()]
    words += [
        f"{entry[key]:.2f} MB {word}"
        for key, word in (("manifest_mb", "manifest"), ("read_mb", "read"))
        if key in entry
    ]
    words += [f"asked: {', '.join(entry['asked']) or 'nobody'}"] if "asked" in entry else []
    return "; ".join(words)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="a hundredth of it")
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.case:
        case, first, second = words.case
        result = plan(int(first), Path(second)) if case == "plan" else task_reads(Path(first), int(second))
        print(json.dumps(result))
        return
    print("| what | wall s | CPU s | peak MB | |\n|---|---|---|---|---|")
    for entry in figures(100 if words.small else 1):
        peak = f"{entry['peak_mb']:.0f}" if "peak_mb" in entry else ""
        print(f"| {entry['what']} | {entry['wall_s']:.2f} | {entry['cpu_s']:.2f} | {peak} | {_details(entry)} |")


if __name__ == "__main__":
    main()

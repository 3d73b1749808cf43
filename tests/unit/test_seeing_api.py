"""phenomhpc from Python: what it costs to import, what it refuses, what a run's end means."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import phenomhpc
from phenomhpc.config import ConvertConfig, dump
from phenomhpc.errors import PhenomError, UsageError, WorkError
from phenomhpc.jobs.attempts import CLUSTER
from phenomhpc.runs import RunPaths, commit, create_run, open_attempt, write_outcome


def new_run(tmp_path: Path) -> RunPaths:
    config = ConvertConfig(runs=str(tmp_path), plates=("p",), store="s")
    return create_run(tmp_path, "convert", dump(config), {CLUSTER: "phenom"}, name="r")


def test_importing_phenomhpc_imports_nothing_else() -> None:
    code = "import sys, phenomhpc; phenomhpc.__version__; print([name for name in sys.modules if name.startswith('phenomhpc.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
    assert callable(phenomhpc.submit) and phenomhpc.Run.__module__ == "phenomhpc.api"
    with pytest.raises(AttributeError, match="has no attribute 'sumbit'"):
        phenomhpc.sumbit  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("kind", "flags", "said"),
    [
        ("train", {}, r"submit\('train'\): no such job; there are convert, rechunk, pretrain"),
        ("convert", {"plate": "p"}, r"submit\('convert', plate=...\): no such flag; did you mean plates\?"),
        ("convert", {"dry_run": True}, "dry_run=...*: no such flag"),
        ("convert", {"store": "s"}, "convert: plates is missing"),
        ("convert", {"plates": "p", "store": Path("s"), "time": "soon"}, "--time soon: no time"),
        ("convert", {"plates": ["p"], "store": "s", "nodes": -1}, "cluster.nodes=-1"),
    ],
)
def test_wrong_use_is_the_command_lines_own_line(kind: str, flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        phenomhpc.submit(kind, **flags)


def test_a_run_that_ended_well_gives_its_result(tmp_path: Path) -> None:
    paths = new_run(tmp_path)
    (run,) = phenomhpc.runs_in(tmp_path)
    assert (run.id, run.root) == ("r", paths.root)
    with pytest.raises(TimeoutError, match=r"run r: has not ended within 0\.05 s"):
        run.wait(timeout=0.05, poll_s=0.01)
    late = threading.Timer(
        0.3,
        write_outcome,
        (paths,),
        {"state": "finished", "exit_code": 3, "message": "done", "set_aside": [["a", "b"]]},
    )
    late.start()
    began = time.monotonic()
    assert run.result(poll_s=0.05) == phenomhpc.Result(text="done", exit_code=3, set_aside=(("a", "b"),))
    assert time.monotonic() - began > 0.2
    assert run.wait() == 3
    assert run.status().state == "finished"
    late.join()


@pytest.mark.parametrize(
    ("state", "code", "error"), [("failed", 1, WorkError), ("failed", 2, UsageError), ("cancelled", 1, WorkError)]
)
def test_a_run_without_success_raises_what_it_failed_of(
    tmp_path: Path, state: str, code: int, error: type[PhenomError]
) -> None:
    paths = new_run(tmp_path)
    write_outcome(paths, state=state, exit_code=code, message="the reason")
    with pytest.raises(error, match=f"run r: {state}: the reason"):
        phenomhpc.Run("r", paths.root).result()


def test_logs_are_those_of_the_newest_attempt_or_of_the_one_asked_for(tmp_path: Path) -> None:
    paths = new_run(tmp_path)
    for attempt in (1, 2):
        open_attempt(paths)
        for task in (0, 1):
            commit(paths.log_file(task, attempt), f"task {task} attempt {attempt}\n")
    run = phenomhpc.Run("r", paths.root)
    assert run.logs() == "task 0 attempt 2\ntask 1 attempt 2\n"
    assert run.logs(task=1, attempt=1) == "task 1 attempt 1\n"
    assert run.logs(task=7) == ""

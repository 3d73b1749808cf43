"""A run that is followed: what is drawn, when it is looked at again, and with which code it is left."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from phenomhpc.jobs import watch
from phenomhpc.jobs.status import RunStatus
from phenomhpc.jobs.usage import Hours, Usage
from phenomhpc.runs import RunPaths, write_outcome

with warnings.catch_warnings():  # typer still asks click for names that click is giving up
    warnings.simplefilter("ignore", DeprecationWarning)
    from phenomhpc.cli import watch as cli

RUNNING = RunStatus(
    id="convert-1", kind="convert", created="", state="running", where="phenom", attempt=2, done=24, total=48, parts="fields",
    parts_done=50, parts_total=96, rate_per_s=1.0, parts_per_s=6.92, raw_mb_per_s=1.7, left_s=3700.0, running=1, waiting=3,
    failures={"oom": 2}, folder="/x", hosts=("n1",), jobs=("33",),
)  # fmt: skip


def drawn(status: RunStatus) -> str:
    out = StringIO()
    Console(file=out, width=120, highlight=False).print(cli.draw(status))
    return out.getvalue()


def test_a_running_conversion_shows_its_fields_as_a_bar_and_its_figures() -> None:
    lines = [" ".join(line.split()) for line in drawn(RUNNING).splitlines()]
    assert lines[0] == "convert-1: running"
    assert lines[1].endswith("50 of 96 fields") and "\u2501" in lines[1]
    assert {"units 24 of 48", "rate 6.92 fields/s, 1.7 raw MB/s", "time left 1:01:40", "failed: oom 2 task(s)"} <= set(
        lines
    )
    assert not [line for line in lines if line.startswith(("fields", "folder"))]


def test_a_pipeline_shows_its_stages_and_the_figures_of_the_one_it_is_at() -> None:
    stages = (("convert", "p.convert", "running"), ("pretrain", "", ""))
    whole = replace(
        RUNNING, id="p", kind="pipeline", message="stage convert is running", stages=stages, stage=RUNNING, parts=""
    )
    text = drawn(whole)
    assert "\u25b8 convert    running    p.convert" in text and "\u00b7 pretrain   -" in text
    assert "50 of 96 fields" in text and "stage convert is running" in text


def test_a_training_shows_steps() -> None:
    training = replace(RUNNING, kind="pretrain", noun="steps", parts="", parts_total=0, parts_per_s=None, loss=1.25)
    text = drawn(training)
    assert "24 of 48 steps" in text and "1 steps/s" in text and "1.2500" in text


def test_while_nothing_changes_slurm_is_asked_ever_more_rarely(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "r")
    paths.root.mkdir()
    slept: list[float] = []
    asked: list[float] = []

    def look(_: RunPaths) -> RunStatus:
        asked.append(sum(slept))
        if len(asked) == 8:
            write_outcome(paths, state="finished", exit_code=0, message="done")
        # What changes by the clock alone is no change.
        hours = Usage(core=Hours(used=float(len(asked))))
        return replace(
            RUNNING, usage=hours, left_s=100.0 - len(asked), parts_per_s=1.0 / len(asked), done=24 + (len(asked) > 5)
        )

    seen = list(watch.follow(paths, look, slept.append))
    pauses = [after - before for before, after in pairwise(asked)]
    assert len(seen) == 9, "the last look is behind the end"
    assert pauses[:4] == sorted(pauses[:4]) and pauses[0] == watch.FIRST_PAUSE_S < pauses[3]
    assert pauses[5] == watch.FIRST_PAUSE_S and pauses[7] == 0


@pytest.mark.parametrize(("state", "code", "left"), [("finished", 3, 3), ("failed", 1, 1), ("unknown", None, 1)])
def test_whoever_follows_leaves_with_the_runs_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: str,
    code: int | None,
    left: int,
) -> None:
    def found(_: RunPaths) -> Iterator[RunStatus]:
        yield from (RUNNING, RUNNING, replace(RUNNING, state=state, exit_code=code, message="the end"))

    monkeypatch.setattr(watch, "follow", found)
    assert cli.follow(RunPaths(tmp_path)) == left
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 2
        and "6.92 fields/s, 1.7 raw MB/s, 1:01:40 left, 2 oom, on n1" in lines[0]
        and "the end" in lines[1]
    )

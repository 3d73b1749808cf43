"""What a person sees of a training that went on in spite of something: status, why, the page, in the words of a terminal too."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phenomhpc.jobs import pretrain
from phenomhpc.jobs.status import run_status
from phenomhpc.jobs.watch import essence
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths
from phenomhpc.train.loop import train
from phenomhpc.train.metrics import read_metrics
from tests.unit.test_train_faults import bad_crops, poisoned, rolling, times
from tests.unit.test_train_loop import new_run, start, store
from tests.unit.train_store import settings

with warnings.catch_warnings():  # typer still asks click for names that click is giving up
    warnings.simplefilter("ignore", DeprecationWarning)
    from typer.testing import CliRunner

    from phenomhpc.cli.main import build

__all__ = ["store"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def shown(paths: RunPaths, *words: str) -> str:
    verb, *rest = words
    done = CliRunner().invoke(build(), [verb, paths.id, "--runs", str(paths.root.parent), *rest])
    assert done.exit_code == 0, done.output
    return done.output


def test_steps_without_a_loss_are_told_and_spoil_nothing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first and the last step among them, whose losses are what a person would be shown."""
    poisoned(monkeypatch, lambda state, replica, micro: times(replica, math.nan) if state.step in (0, 11) else replica)
    config = settings(store, tmp_path)
    paths = new_run(config)
    train(config, start(paths))
    rows = read_metrics(paths.metrics)
    assert [math.isnan(loss) for loss in rows["loss"].to_pylist()] == [step in (0, 11) for step in range(12)]
    summary = pretrain.finish(config, paths, silent())
    assert f"loss {rows['loss'][1].as_py():.3f} -> {rows['loss'][10].as_py():.3f}" in summary.text
    page = paths.report.read_text()
    line = "no finite gradient in 2 step(s), which changed nothing; the last was step 11"
    assert line in page and "nan" not in page.split("data:image")[0]
    status = run_status(paths)
    assert status.loss == rows["loss"][10].as_py() and status.alarms == (line,)
    # A loss that is no number is never equal to itself: --watch would ask Slurm as often as it can.
    assert essence(status) == essence(replace(run_status(paths), left_s=1.0))
    assert f"alarm        {line}" in shown(paths, "status") and f"alarm        {line}" in shown(paths, "why")

    def refuse(word: str) -> Any:
        raise AssertionError(word)

    assert json.loads(shown(paths, "status", "--json"), parse_constant=refuse)["alarms"] == [line]
    assert json.loads(shown(paths, "why", "--json"), parse_constant=refuse)["alarms"] == [line]


def test_a_run_all_of_whose_steps_were_left_out_has_a_page(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, lambda state, replica, micro: times(replica, math.nan))
    config = settings(store, tmp_path, optim__steps=3)
    paths = new_run(config)
    train(config, start(paths))
    assert "no finite loss" in pretrain.finish(config, paths, silent()).text
    assert run_status(paths).loss is None and "loss " not in shown(paths, "status").replace("loss leaped", "")


def test_a_rollback_is_told_with_the_samples_it_leaves_out(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, bad_crops)
    config = rolling(store, tmp_path)
    paths = new_run(config)
    train(config, start(paths))
    line = "loss leaped at step 33; 1 rollback(s), the last from step 35 to 30; 8 samples are left out"
    assert run_status(paths).alarms == (line,)
    assert line in shown(paths, "status") and line in shown(paths, "why")

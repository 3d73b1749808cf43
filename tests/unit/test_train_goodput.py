"""TFLOP/s, MFU and goodput: pure arithmetic, and what a run that was interrupted makes of them."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from phenomhpc.config import load_run_config
from phenomhpc.errors import FencedError, StopRequested
from phenomhpc.jobs.status import run_status
from phenomhpc.jobs.training_page import compute_words
from phenomhpc.models.costs import model_cost
from phenomhpc.runs import open_attempt, read_events
from phenomhpc.train.goodput import Meter, first_start, useful_seconds
from phenomhpc.train.loop import train
from phenomhpc.train.metrics import read_metrics
from tests.unit.test_train_loop import Told, ask_to_stop, new_run, start, void
from tests.unit.train_store import convert, settings, write_plate

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("goodput")
    write_plate(folder / "raw")
    return convert(folder / "raw", folder / "store", folder / "runs")


def test_rates_of_a_step() -> None:
    meter = Meter(training_flop=695e9, world=8, peak_tflops=989.4, began=BEGAN, useful_s=40.0)
    rates = meter.rates(crops=4096, seconds=2.0, ended=BEGAN + timedelta(seconds=84))
    assert rates["tflops"] == pytest.approx(4096 * 0.695 / 2 / 8)
    assert rates["mfu"] == pytest.approx(rates["tflops"] / 989.4)
    assert rates["goodput"] == 42 / 84
    skipped = meter.rates(crops=4096, seconds=2.0, ended=BEGAN + timedelta(seconds=86), skipped=True)
    assert skipped["goodput"] == 42 / 86
    unknown = Meter(training_flop=1e9, world=1, peak_tflops=None, began=BEGAN, useful_s=0.0)
    assert unknown.rates(crops=1, seconds=1.0, ended=BEGAN)["mfu"] is None


def test_steps_that_are_computed_again_or_skipped_are_not_useful() -> None:
    rows = [{"step": step, "crops_per_s": 4.0, "skipped": step == 1} for step in range(6)]
    assert useful_seconds(rows, 8, before=6) == 10
    assert useful_seconds(rows, 8, before=4) == 6


def test_a_run_starts_once() -> None:
    times = ["2026-01-01T00:05:00+00:00", "2026-01-01T00:00:00+00:00"]
    events = [{"event": "started", "time": time} for time in times]
    assert first_start([{"event": "submitted", "time": "2025-12-31T00:00:00+00:00"}, *events]) == BEGAN
    assert first_start([]) is None


def test_an_interrupted_run_counts_on(store: Path, tmp_path: Path) -> None:
    """Committed at step 5, lost after step 8: three steps are computed twice and count once."""
    config = settings(store, tmp_path, log_every_steps=1)
    paths = new_run(config)
    first = start(paths, at_step={7: lambda ctx: void(open_attempt(ctx.paths))})
    first.events.emit("started", start=0)
    with pytest.raises(FencedError):
        train(config, first)
    lost = read_metrics(paths.metrics).to_pylist()
    assert [row["step"] for row in lost] == list(range(5))  # what came after was never written
    with pytest.raises(StopRequested):
        train(config, start(paths, at_step={7: ask_to_stop}))
    train(config, start(paths))
    rows = read_metrics(paths.metrics).to_pylist()
    began = datetime.fromisoformat(next(event for event in read_events(paths) if event["event"] == "started")["time"])
    useful = 0.0
    for row in rows:
        useful += 8 / row["crops_per_s"]
        assert row["goodput"] == pytest.approx(useful / (row["time"] - began).total_seconds(), rel=1e-6)
        assert row["tflops"] == pytest.approx(
            row["crops_per_s"] * model_cost(config.model.model_dump(), 2).training_flop / 1e12
        )
        assert row["mfu"] is None
    assert 0 < rows[-1]["goodput"] < 1
    words = compute_words(read_metrics(paths.metrics))
    assert "TFLOP/s a device" in words and "goodput" in words and "MFU" not in words
    assert run_status(paths).goodput == rows[-1]["goodput"] and run_status(paths).mfu is None


def test_the_live_line_has_them(store: Path, tmp_path: Path) -> None:
    paths = new_run(settings(store, tmp_path, optim__steps=2, log_every_steps=1))
    told = Told()
    train(load_run_config(paths.run_yaml), dataclasses.replace(start(paths), progress=told))  # type: ignore[arg-type]
    last = read_metrics(paths.metrics).to_pylist()[-1]
    assert {name: told.figures[-1][name] for name in ("tflops", "goodput")} == {
        name: last[name] for name in ("tflops", "goodput")
    }
    assert "mfu" not in told.figures[-1]

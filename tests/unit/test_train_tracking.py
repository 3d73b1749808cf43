"""TensorBoard beside a run: what its event files say, read back; and that its failures are nobody's."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from phenomhpc.config import PretrainConfig
from phenomhpc.errors import StopRequested, UsageError
from phenomhpc.jobs.here import run_here
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths
from phenomhpc.train.loop import train
from phenomhpc.train.metrics import read_metrics
from phenomhpc.train.validation import read_validations
from tests.unit.test_train_loop import ask_to_stop, final, new_run, start
from tests.unit.train_store import convert, settings, write_plate

installed = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs the extra tracking")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracking")
    write_plate(folder / "raw")
    return convert(folder / "raw", folder / "store", folder / "runs")


def tracked(store: Path, runs: Path, **changes: Any) -> PretrainConfig:
    asked = {
        "tracking__tensorboard": True,
        "data__holdout": {"wells": ["A06"]},
        "eval__every_steps": 4,
        "eval__crops": 2,
    }
    return settings(store, runs, **(asked | changes))


def scalars(paths: RunPaths, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(paths.tensorboard)).Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


@installed
def test_a_resumed_run_has_every_figure_once(store: Path, tmp_path: Path) -> None:
    config = tracked(store, tmp_path)
    paths = new_run(config)
    with pytest.raises(StopRequested, match="after step 8"):
        train(config, start(paths, at_step={7: ask_to_stop}))
    train(config, start(paths))
    for name in ("loss", "lr", "grad_norm", "crops_per_s", "tflops", "goodput", "mem_bytes"):
        told = scalars(paths, f"train/{name}")
        assert [step for step, _ in told] == list(range(1, 13))
        assert [value for _, value in told] == pytest.approx(read_metrics(paths.metrics)[name].to_pylist(), rel=1e-6)
    validations = read_validations(paths.validation)
    told = scalars(paths, "validation/val_loss")
    assert [step for step, _ in told] == validations["step"].to_pylist() == [0, 4, 8, 12]
    assert [value for _, value in told] == pytest.approx(validations["val_loss"].to_pylist(), rel=1e-6)


@installed
def test_what_a_lost_attempt_computed_is_dropped(store: Path, tmp_path: Path) -> None:
    """Steps 6 to 8 were told, their checkpoint was not committed: the next attempt computes and tells them again."""
    config = tracked(store, tmp_path, log_every_steps=1)

    def lose(ctx: Any) -> None:
        raise RuntimeError("the node is gone")

    paths = new_run(config)
    with pytest.raises(RuntimeError):
        train(config, start(paths, at_step={8: lose}))
    assert [step for step, _ in scalars(paths, "train/loss")] == list(range(1, 9))
    train(config, start(paths))
    assert [step for step, _ in scalars(paths, "train/loss")] == list(range(1, 13))


class Hearing(type(silent())):  # type: ignore[misc]
    """Shows nothing; keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@installed
def test_a_tracker_that_fails_is_left_out_and_said_once(store: Path, tmp_path: Path) -> None:
    config = tracked(store, tmp_path)
    paths, plain = new_run(config), new_run(settings(store, tmp_path, data__holdout={"wells": ["A06"]}))
    paths.tensorboard.write_text("a file where a folder is to be")
    hearing = Hearing()
    result = train(config, dataclasses.replace(start(paths), progress=hearing))
    assert result.steps == 12
    complaints = [text for text in hearing.said if text.startswith("tracking: TensorBoard failed and is left out")]
    assert len(complaints) == 1 and "\n" not in complaints[0]
    train(settings(store, tmp_path, data__holdout={"wells": ["A06"]}), start(plain))
    assert final(paths) == final(plain)


def test_without_the_extra_it_is_refused_in_one_sentence(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else find(name, *rest)
    )
    with pytest.raises(UsageError, match=r"TensorBoard is not installed; pip install 'phenomhpc\[tracking\]'"):
        run_here(tracked(store, tmp_path / "runs"), command=["pretrain"], progress=silent())
    assert not any((tmp_path / "runs").iterdir())

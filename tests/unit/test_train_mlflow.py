"""MLflow beside a run: what a real server holds of it, whatever came between; and that a silent server is nobody's problem."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phenomhpc.config import PretrainConfig, dump, load_run_config
from phenomhpc.errors import StopRequested, UsageError
from phenomhpc.runs import RunPaths, create_run
from phenomhpc.train import mlflow as module
from phenomhpc.train.loop import train
from phenomhpc.train.metrics import read_metrics
from phenomhpc.train.mlflow import Figures, MlflowRun, MlflowSink
from phenomhpc.train.mlflow_server import Point, RefusedError, Server, _login
from phenomhpc.train.validation import read_validations
from tests.unit.test_train_loop import ask_to_stop, final, new_run, start, store
from tests.unit.test_train_tracking import Hearing
from tests.unit.train_store import settings

__all__ = ["store"]

installed = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mlflow", "flask_cors", "sqlalchemy", "alembic")),
    reason="needs MLflow's server (extra test)",
)
SERVE = "import sys; from mlflow.server import app; app.run(host='127.0.0.1', port=int(sys.argv[1]), threaded=True)"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """MLflow's own server over SQLite, which can be stopped and started again at its address."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {
            **os.environ,
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{self.folder}/mlflow.db",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": str(self.folder / "artifacts"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        }
        with (self.folder / "server.log").open("ab") as log:
            command = [sys.executable, "-W", "ignore", "-c", SERVE, str(self.port)]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    server = Running(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


def tracked(store: Path, runs: Path, url: str, **changes: Any) -> PretrainConfig:
    asked = {
        "tracking__mlflow": url,
        "data__holdout": {"wells": ["A06"]},
        "eval__every_steps": 4,
        "eval__crops": 2,
    }
    return settings(store, runs, **(asked | changes))


def noted(paths: RunPaths) -> str:
    import json

    return str(json.loads(paths.mlflow.read_bytes())["run_id"])


def history(url: str, run: str, key: str) -> list[tuple[int, float]]:
    """As MLflow's own client reads it."""
    from mlflow.tracking import MlflowClient

    found = MlflowClient(tracking_uri=url).get_metric_history(run, key)
    return sorted((metric.step, metric.value) for metric in found)


def told_of(url: str, paths: RunPaths) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=url).get_run(noted(paths))


def same_as_metrics(url: str, paths: RunPaths) -> None:
    rows = read_metrics(paths.metrics)
    for name in ("loss", "lr", "grad_norm", "crops_per_s", "goodput", "mem_bytes"):
        told = history(url, noted(paths), f"train/{name}")
        assert [step for step, _ in told] == [step + 1 for step in rows["step"].to_pylist()], name
        assert [value for _, value in told] == pytest.approx(rows[name].to_pylist()), name


@installed
@pytest.mark.filterwarnings("ignore")
def test_a_requeued_run_is_one_run_there_with_every_step_once(store: Path, tmp_path: Path, running: Running) -> None:
    config = tracked(store, tmp_path, running.url)
    paths = create_run(Path(config.runs), "pretrain", dump(config), {"user": "ada", "commit": "abc123"})
    with pytest.raises(StopRequested, match="after step 8"):
        train(config, start(paths, at_step={7: ask_to_stop}))
    first = noted(paths)
    assert told_of(running.url, paths).info.status == "SCHEDULED"
    train(config, start(paths))
    assert noted(paths) == first
    same_as_metrics(running.url, paths)
    told = history(running.url, first, "validation/val_loss")
    rows = read_validations(paths.validation)
    assert [step for step, _ in told] == rows["step"].to_pylist() == [0, 4, 8, 12]
    assert [value for _, value in told] == pytest.approx(rows["val_loss"].to_pylist())
    run = told_of(running.url, paths)
    assert (run.info.status, run.info.run_name) == ("FINISHED", paths.id)
    assert run.data.params["optim.peak_lr"] == "0.001" and run.data.params["model.depth"] == "2"
    assert run.data.tags["phenomhpc.run"] == paths.id and run.data.tags["phenomhpc.attempt"] == "2"
    assert run.data.tags["mlflow.source.git.commit"] == "abc123" and run.data.tags["mlflow.user"] == "ada"


@installed
@pytest.mark.filterwarnings("ignore")
def test_an_id_that_was_lost_is_found_by_the_runs_folder(store: Path, tmp_path: Path, running: Running) -> None:
    """What a lost attempt has told is not told again; and its MLflow run is found though nobody could note it."""
    config = tracked(store, tmp_path, running.url, log_every_steps=1)

    def lose(ctx: Any) -> None:
        raise RuntimeError("the node is gone")

    paths = new_run(config)
    with pytest.raises(RuntimeError):
        train(config, start(paths, at_step={8: lose}))
    first = noted(paths)
    assert told_of(running.url, paths).info.status == "FAILED"
    assert [step for step, _ in history(running.url, first, "train/loss")] == list(range(1, 9))
    paths.mlflow.unlink()
    train(config, start(paths))
    assert noted(paths) == first
    assert [step for step, _ in history(running.url, first, "train/loss")] == list(range(1, 13))
    other = new_run(config)
    train(config, start(other))
    assert noted(other) != first


@installed
@pytest.mark.filterwarnings("ignore")
def test_a_server_that_was_down_gets_what_it_missed_at_the_next_start(
    store: Path, tmp_path: Path, running: Running, tmp_path_factory: pytest.TempPathFactory
) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    config, plain = tracked(store, tmp_path, gone), settings(store, tmp_path, data__holdout={"wells": ["A06"]})
    paths, other = new_run(config), new_run(plain)
    hearing = Hearing()
    ctx = start(paths)
    ask_to_stop(ctx)
    with pytest.raises(StopRequested):
        train(config, dataclasses.replace(ctx, progress=hearing))
    silent = [line for line in hearing.said if "does not answer" in line]
    assert len(silent) == 1 and "Connection refused" in silent[0] and "\n" not in silent[0]
    assert [line for line in hearing.said if "lacks the figures of" in line]
    back = tracked(store, tmp_path, running.url)
    paths.run_yaml.write_text(dump(back))
    train(back, start(paths))
    same_as_metrics(running.url, paths)
    train(plain, start(other))
    assert final(paths) == final(other)


def test_a_server_that_takes_calls_and_says_nothing_slows_nothing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        config = tracked(store, tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}", optim__steps=30)
        paths, hearing = new_run(config), Hearing()
        began = time.monotonic()
        result = train(config, dataclasses.replace(start(paths), progress=hearing))
        took = time.monotonic() - began
    assert result.steps == 30
    rows = read_metrics(paths.metrics)
    # Had a step waited for the server, it would have waited for its ten seconds.
    assert max(8 / rate for rate in rows["crops_per_s"].to_pylist()) < 5 and took < 60
    assert any("lacks the figures of 39 step(s)" in line for line in hearing.said), hearing.said


@installed
def test_figures_that_are_no_numbers_are_told_as_what_they_are(running: Running) -> None:
    server = Server(url=running.url)
    run = server.create_run(server.experiment("odd"), "odd", 0, {})
    values = [1.5, math.nan, math.inf, -math.inf]
    points = [Point(key="train/loss", value=value, step=step, time_ms=step) for step, value in enumerate(values)]
    for _ in range(2):  # a request whose answer was lost
        server.log_points(run, points)
    told = [value for _, value in history(running.url, run, "train/loss")]
    assert told[0] == 1.5 and math.isnan(told[1]) and told[2] > 1e300 and told[3] < -1e300 and len(told) == 4
    server.log_params(run, {"data.weights.cell µm": 1, **{f"key{number}": number for number in range(150)}})
    params = server.params(run)
    assert params is not None and params["data.weights.cell _m"] == "1" and len(params) == 151
    assert server.find_run(server.experiment("odd"), "phenomhpc.folder", "/it's there") is None
    assert server.params("0" * 32) is None
    with pytest.raises(RefusedError, match=r"runs/update: .*not found"):
        server.update("0" * 32, "RUNNING")


@installed
def test_a_run_that_was_deleted_there_is_left_alone(store: Path, tmp_path: Path, running: Running) -> None:
    config = tracked(store, tmp_path, running.url)
    paths, hearing = new_run(config), Hearing()
    with pytest.raises(StopRequested):
        train(config, start(paths, at_step={3: ask_to_stop}))
    Server(url=running.url)._call("POST", "runs/delete", {"run_id": noted(paths)})
    assert train(config, dataclasses.replace(start(paths), progress=hearing)).steps == 12
    assert [line for line in hearing.said if "was deleted there" in line and "left out from now on" in line]


def test_the_oldest_are_dropped_and_counted(store: Path, tmp_path: Path) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    config = tracked(store, tmp_path, gone)
    paths, said = new_run(config), list[str]()
    run = MlflowRun(config=config, ctx=start(paths), server=Server(url=gone))
    sink = MlflowSink(run, 0, said.append, capacity=5)
    for step in range(8):
        sink.tell([Figures(group="train", step=step, time_ms=0, values={"loss": 1.0})])
    assert sink.num_dropped == 3
    sink.close("FINISHED")
    assert sum("does not answer" in line for line in said) == 1
    assert said[-1].startswith("tracking: MLflow lacks the figures of 8 step(s)")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///mlflow.db", "mlflow server --backend-store-uri"),
        ("/mlruns", "give http://HOST:PORT"),
        ("https://", "give http://HOST:PORT"),
        ("https://ada:secret@host", "MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_other_addresses_are_refused(store: Path, tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        tracked(store, tmp_path, url)
    assert "\n" not in str(error.value) and "secret" not in str(error.value)


def test_logins_come_from_the_environment_alone(store: Path, tmp_path: Path) -> None:
    assert _login({}) == {}
    assert _login({"MLFLOW_TRACKING_TOKEN": "t"}) == {"Authorization": "Bearer t"}
    both = {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "p:w", "MLFLOW_TRACKING_TOKEN": "t"}
    assert _login(both) == {"Authorization": "Basic YWRhOnA6dw=="}
    config = tracked(store, tmp_path, "https://host/mlflow")
    paths = new_run(config)
    assert load_run_config(paths.run_yaml).tracking.mlflow == "https://host/mlflow"  # type: ignore[union-attr]

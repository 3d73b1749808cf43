"""`phenomhpc bench train`: the parts are a step's, and a plain checkout is enough for a GPU's figures."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from phenomhpc.config import PretrainConfig, resolve
from phenomhpc.errors import UsageError
from phenomhpc.jobs.train_bench import bench_train
from phenomhpc.models.costs import model_cost
from phenomhpc.progress import silent
from phenomhpc.train.bench import COMMUNICATION, PARTS, cells, matmul_tflops
from tests.bench.bench_train import ON_CPU, ON_GPU, plain, read_recipe
from tests.conftest import REPOSITORY
from tests.unit.train_store import convert, settings, write_plate

with warnings.catch_warnings():  # typer still asks click for names that click is giving up
    warnings.simplefilter("ignore", DeprecationWarning)
    from typer.testing import CliRunner

    from phenomhpc.cli.main import build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_plate(folder / "raw")
    return convert(folder / "raw", folder / "store", folder / "runs")


def test_every_case_has_all_parts_and_rates_that_follow_from_them(store: Path, tmp_path: Path) -> None:
    config = settings(store, tmp_path, optim__micro_batch=4)
    found = bench_train(config, steps=3, progress=silent())
    assert [case.name for case in found.cases] == ["random crops", "crops of the store"]
    flop = model_cost(config.model.model_dump(), 2).training_flop
    for case in found.cases:
        assert set(case.parts) == set(PARTS) and all(seconds > 0 for seconds in case.parts.values())
        assert sum(case.parts.values()) == pytest.approx(case.step_s, rel=0.5)  # medians of three each
        assert case.crops_per_s == pytest.approx(4 / case.step_s)
        assert case.tflops == pytest.approx(case.crops_per_s * flop / 1e12) and case.mfu is None
        assert len(cells(case)) == 8 + len(PARTS)
    assert found.loop_s is not None and found.bare_s is not None and found.overhead is not None
    assert 0 < found.bare_s < 1 and found.loop_s > 0 and found.overhead > -1
    assert not list(tmp_path.iterdir())  # its run is thrown away


def test_without_a_store_there_are_random_crops_alone(tmp_path: Path) -> None:
    config = settings(tmp_path, tmp_path, store=[], optim__micro_batch=2)
    found = bench_train(config, channels=3, steps=1, progress=silent())
    assert [case.name for case in found.cases] == ["random crops"] and found.overhead is None
    with pytest.raises(UsageError, match="store /nowhere: does not exist"):
        bench_train(settings(Path("/nowhere"), tmp_path), steps=1, progress=silent())


RANKS = """
import json, sys
from dataclasses import asdict
from phenomhpc.config import load_run_config
from phenomhpc.jobs.train_bench import bench_train
from phenomhpc.progress import silent
from pathlib import Path
found = bench_train(load_run_config(Path(sys.argv[1])), steps=3, progress=silent())
print(json.dumps({"world": found.world, "parts": dict(found.cases[0].parts), "overhead": found.overhead,
                  "rate": found.cases[0].crops_per_s * found.cases[0].step_s}))
"""


def test_two_ranks_tell_what_exchanging_gradients_adds(store: Path, tmp_path: Path) -> None:
    from phenomhpc.config import dump

    (tmp_path / "run.yaml").write_text(dump(settings(store, tmp_path, optim__micro_batch=4)))
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "ranks.py"), str(tmp_path / "run.yaml")],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[0])
    assert found["world"] == 2 and found["overhead"] is None
    assert set(found["parts"]) == {*PARTS, COMMUNICATION} and found["parts"][COMMUNICATION] >= 0
    assert found["rate"] == pytest.approx(8)  # crops of both ranks


def test_the_command_prints_a_table_or_json(store: Path) -> None:
    words = ["bench", "train", "--model", "mae_vit_tiny", "--batch", "2", "--steps", "1", "--channels", "2"]
    done = CliRunner().invoke(build(), words)
    assert done.exit_code == 0, done.output
    assert "mae_vit_tiny, 2 crops a step and rank" in done.stdout and "random crops" in done.stdout
    found = json.loads(CliRunner().invoke(build(), [*words, "--store", str(store), "--json"]).stdout)
    assert isinstance(found["overhead"], float) and found["cases"][1]["name"] == "crops of the store"


@pytest.mark.parametrize("name", sorted({*ON_CPU, *ON_GPU}))
def test_recipes_are_read_without_yaml_as_with_it(name: str) -> None:
    config = resolve("pretrain", {}, [f"model={name}"], layers=[]).config
    assert isinstance(config, PretrainConfig)
    read: dict[str, Any] = read_recipe(name)
    assert {key: getattr(config.model, key) for key in read} == read


def test_a_plain_checkout_is_enough() -> None:
    """Nothing but torch, numpy and the standard library is imported for the GPU's part."""
    code = """
import sys
known = set(sys.modules)
import tests.bench.bench_train
heavy = {"pydantic", "zarr", "polars", "pyarrow", "hydra", "numba", "yaml", "typer"} & set(sys.modules)
print(sorted(heavy))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_plain_step_is_measured_in_bf16_too() -> None:
    found = plain("mae_vit_tiny", 4, torch.device("cpu"), 1)
    assert found.name == "mae_vit_tiny, 4 crops" and found.tflops > 0
    assert matmul_tflops(torch.device("cpu"), "fp32") > 0

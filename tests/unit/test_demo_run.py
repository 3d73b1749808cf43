"""The demo and, with it, the pipeline here: to a report, and on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from phenomhpc.errors import UsageError
from phenomhpc.jobs import pipeline as pipeline_job
from phenomhpc.jobs.demo import demo_of, run_demo
from phenomhpc.jobs.pipeline import stage_runs
from phenomhpc.progress import lines, silent
from phenomhpc.runs import RunPaths, list_runs, read_outcome, read_provenance

KILL_LIMIT_S = 120
TINY = (
    "synthetic.plates_per_experiment=1",
    "synthetic.plate_rows=4",
    "synthetic.plate_columns=5",
    "synthetic.field_px=70",
    "synthetic.num_genes=8",
    "synthetic.genes_per_pathway=3",
    "synthetic.num_unexpressed=2",
    "convert.workers=1",
    "pretrain.device=cpu",
    "pretrain.threads_per_rank=1",
    "pretrain.model.dim=16",
    "pretrain.model.depth=1",
    "pretrain.model.heads=2",
    "pretrain.model.decoder_dim=16",
    "pretrain.model.decoder_depth=1",
    "pretrain.model.decoder_heads=2",
    "pretrain.optim.steps=3",
    "pretrain.optim.global_batch=8",
    "pretrain.optim.micro_batch=8",
    "embed.device=cpu",
    "evaluate.bootstrap=5",
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _run(out: Path, *overrides: str) -> Path:
    return run_demo(out, 0, (*TINY, *overrides), command=["demo"], progress=silent())


def _runs(out: Path) -> dict[str, list[RunPaths]]:
    found: dict[str, list[RunPaths]] = {}
    for paths in list_runs(out / "runs"):
        found.setdefault(str(read_provenance(paths)["kind"]), []).append(paths)
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    with (out.parent / "said.txt").open("w") as said:
        report = run_demo(out, 0, TINY, command=["demo"], progress=lines(said))
    assert report == out / "report.html"
    return out


def test_it_ends_in_one_page_that_shows_everything_and_asks_no_other_host(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4  # reconstructions, curves, recall, heatmap
    for words in ("untrained", "random", "intensity", "chance", "PATHWAYS"):
        assert words in page
    assert 'src="http' not in page and 'href="http' not in page


def test_every_stage_is_a_run_of_its_own_and_the_pipeline_names_them(demo: Path) -> None:
    runs = _runs(demo)
    assert {kind: len(found) for kind, found in runs.items()} == {
        "pipeline": 1, "convert": 1, "pretrain": 1, "embed": 1, "evaluate": 1,
    }  # fmt: skip
    named = stage_runs(runs["pipeline"][0])
    assert named == {stage: runs[stage][0].id for stage in ("convert", "pretrain", "embed", "evaluate")}


def test_each_stage_is_told_in_plain_words_and_counted(demo: Path) -> None:
    said = (demo.parent / "said.txt").read_text()
    for words in ("[1/4] Converting", "[2/4] Pretraining", "[3/4] Embedding", "[4/4] Evaluating", "Painting"):
        assert words in said
    for counted in ("paint: 40/40 fields", "convert: 40/40 fields", "pretrain: 3/3 steps", "embed: 40/40 crops"):
        assert counted in said


def test_again_in_the_same_folder_it_keeps_all_that_has_finished(demo: Path) -> None:
    before = {kind: [paths.id for paths in found] for kind, found in _runs(demo).items()}
    (demo / "report.html").unlink()
    _run(demo)
    assert (demo / "report.html").is_file()
    assert {kind: [paths.id for paths in found] for kind, found in _runs(demo).items()} == before


def test_other_settings_are_refused_in_a_folder_that_has_some(demo: Path) -> None:
    with pytest.raises(UsageError, match="num_genes: 8 there, num_genes: 9 asked for") as error:
        _run(demo, "synthetic.num_genes=9")
    assert "\n" not in str(error.value)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        _run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("synthetic.num_gene=3", "synthetic.num_genes"),
        ("synthetic.experiments=0", "experiments"),
        ("synthetic.num_genes=many", "num_genes"),
        ("colour=blue", "colour"),
        ("pretrain.optim.stepz=3", "steps"),
        ("evaluate.align=magic", "align"),
    ],
)
def test_a_wrong_setting_is_one_line_before_anything_is_written(tmp_path: Path, override: str, named: str) -> None:
    with pytest.raises(UsageError, match=named) as error:
        _run(tmp_path / "out", override)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_the_shipped_recipe_is_a_demo(tmp_path: Path) -> None:
    demo = demo_of(tmp_path, 3, [])
    assert demo.pipeline.seed == demo.plates.seed == 3
    assert demo.pipeline.stages == pipeline_job.ORDER


def test_killed_in_a_later_stage_it_goes_on_with_the_same_runs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "phenomhpc", "demo", "--out", str(out), *TINY]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + KILL_LIMIT_S
    while not list(out.glob("runs/embed-*/events")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    before = {kind: [paths.id for paths in found] for kind, found in _runs(out).items()}
    assert set(before) == {"pipeline", "convert", "pretrain", "embed"}
    assert read_outcome(_runs(out)["pipeline"][0]) is None
    assert _run(out).is_file()
    after = {kind: [paths.id for paths in found] for kind, found in _runs(out).items()}
    assert {kind: after[kind] for kind in before} == before and len(after["evaluate"]) == 1
    outcome = read_outcome(_runs(out)["pipeline"][0])
    assert outcome is not None and outcome["state"] == "finished"
    assert _runs(out)["pretrain"][0].last_attempt() == 1

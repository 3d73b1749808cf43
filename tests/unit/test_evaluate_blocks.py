"""evaluate --blocks all names the block that embeds best; scaling fits scores against training FLOP."""

from __future__ import annotations

import html
import json
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from phenomhpc.cli.main import build
from phenomhpc.config import EvaluateConfig, resolve
from phenomhpc.embed.folder import EmbeddingsPaths, read_binding
from phenomhpc.errors import UsageError
from phenomhpc.jobs.evaluation.annotations import read_annotations
from phenomhpc.jobs.evaluation.blocks import best_block, blocks_of, score_blocks
from phenomhpc.jobs.here import run_here
from phenomhpc.jobs.scaled_runs import read_run
from phenomhpc.jobs.scaling import next_size, scaling_of
from phenomhpc.maps import fit_log_linear
from phenomhpc.models.checkpoint import read_meta
from phenomhpc.models.costs import model_cost
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, canonical_json
from tests.unit.embed_store import MODEL, make_screen, run
from tests.unit.evaluation_data import wells, write_annotations, write_folder

STRENGTHS = {2: 0.2, 4: 0.6, 5: 1.6, 7: 0.9}  # of the biology in each block; 4 is the main one


def write_blocks(folder: Path) -> Path:
    """An embeddings folder as `embed --blocks` leaves it."""
    paths = EmbeddingsPaths(folder)
    for number, strength in STRENGTHS.items():
        at = paths if number == 4 else paths.block(number)
        write_folder(at, wells(strength, seed=number), "checkpoint", "step-00000120")
        binding = read_binding(at)
        assert binding is not None
        further = tuple(other for other in STRENGTHS if other != 4) if number == 4 else ()
        value = {**vars(replace(binding, block=number, blocks=further))}
        at.binding.write_bytes(canonical_json(value) + b"\n")
    return folder


def config_of(folder: Path, source: Path, **flags: object) -> EvaluateConfig:
    given = {
        "embeddings": str(source),
        "annotations": str(folder / "annotations"),
        "runs": str(folder / "runs"),
        **flags,
    }
    config = resolve("evaluate", given, [], layers=()).config
    assert isinstance(config, EvaluateConfig)
    return config


def test_every_block_is_probed_and_the_best_is_named(tmp_path: Path) -> None:
    write_annotations(tmp_path / "annotations")
    source = write_blocks(tmp_path / "emb")
    assert list(blocks_of(source)) == [2, 4, 5, 7]
    paths, summary = run_here(config_of(tmp_path, source, blocks="all"), command=["test"], progress=silent())
    table = pl.read_parquet(paths.blocks)
    assert table.filter("is_best")["block"].unique().to_list() == [5]
    accuracy = {row["block"]: row["probe_accuracy"] for row in table.to_dicts()}
    assert accuracy[5] > accuracy[7] > accuracy[2] and accuracy[5] == max(accuracy.values())
    main = pl.read_parquet(paths.recall).filter(pl.col("source") == "encoder")
    assert table.filter(pl.col("block") == 4)["recall"].to_list() == main["recall"].to_list()
    value = json.loads(paths.evaluation.read_bytes())
    assert (value["block"], value["best_block"]) == (4, 5)
    assert "Block 5 embeds best of 4." in summary.text
    page = paths.report.read_text()
    assert "Which block embeds best" in page and "Block 5 embeds best, by a linear probe of the wells." in page
    assert (paths.pictures / "blocks.svg").is_file()


def test_one_block_alone_and_wells_that_cannot_be_probed(tmp_path: Path) -> None:
    write_annotations(tmp_path / "annotations")
    alone = EmbeddingsPaths(tmp_path / "alone")
    write_folder(alone, wells(0.9), "checkpoint", "step-00000120")
    with pytest.raises(
        UsageError, match=r"blocks=all: .*alone holds block 4 alone, and its checkpoint .*step-00000120 cannot"
    ):
        run_here(config_of(tmp_path, alone.root, blocks="all"), command=["test"], progress=silent())
    source = write_blocks(tmp_path / "emb")
    for path in source.rglob("exp2__Plate1.parquet"):  # one plate, every gene once
        path.unlink()
    for path in source.rglob("exp1__Plate2.parquet"):
        path.unlink()
    config = config_of(tmp_path, source, bootstrap=0)
    found = score_blocks(config, source, read_annotations(tmp_path / "annotations"), lambda name: None)
    assert all(score.probe is None and "two wells or more" in score.reason for score in found)
    assert best_block(found) == max(found, key=lambda score: score.mean_recall)


def test_blocks_that_are_not_there_are_embedded_first(tmp_path: Path) -> None:
    screen = make_screen(tmp_path)
    out = tmp_path / "emb"
    screen.embed(out=str(out), block=1, baselines=[])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    given = {
        "embeddings": str(out), "annotations": str(tmp_path / "raw" / "annotations"), "runs": str(tmp_path / "runs"),
        "align": "none", "bootstrap": 5, "blocks": "all",
    }  # fmt: skip
    paths, _ = run("evaluate", **given)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert set(pl.read_parquet(paths.root / "blocks.parquet")["block"]) == {1, 2}
    bound, own = read_binding(EmbeddingsPaths(paths.embeddings)), read_binding(EmbeddingsPaths(out))
    assert bound is not None and own is not None
    assert replace(bound, blocks=()) == own and bound.blocks == (2,)


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small pretrainings, and an evaluation of each by embeddings of rising strength; the folder of the runs."""
    root = tmp_path_factory.mktemp("sizes")
    screen = make_screen(root)
    write_annotations(root / "annotations")
    for number, (dim, steps, strength) in enumerate(((16, 2, 0.4), (32, 3, 0.7), (64, 4, 1.0))):
        optim = {"name": "adamw", "peak_lr": 1e-3, "global_batch": 4, "micro_batch": 4, "steps": steps}
        settings = {"store": [str(screen.store)], "runs": str(root / "runs"), "device": "cpu", "threads_per_rank": 1}
        training, _ = run("pretrain", **settings, model={**MODEL, "dim": dim}, optim=optim)
        step = training.checkpoints / f"step-{steps:08d}"
        write_folder(EmbeddingsPaths(root / f"emb{number}"), wells(strength), "checkpoint", str(step))
        config = config_of(root, root / f"emb{number}", bootstrap=100, neighbours=1)
        run_here(config, command=["test"], progress=silent(), name=f"size-{number}")
    return root / "runs"


def test_scaling_fits_recall_and_loss_over_flop_and_foretells_the_next_size(sizes: Path) -> None:
    found = scaling_of(["size-2", "size-0", "size-1"], sizes)
    assert [run.name for run in found.runs] == ["size-0", "size-1", "size-2"]
    for run_, steps in zip(found.runs, (2, 3, 4), strict=True):
        meta = read_meta(Path(run_.checkpoint))
        assert run_.flop == model_cost(meta.model, len(meta.channels)).training_flop * steps * 4
        recall = (
            pl.read_parquet(RunPaths(sizes / run_.name).recall).filter(pl.col("source") == "encoder").row(0, named=True)
        )
        assert run_.recalls == {"PATHWAYS": (recall["recall"], recall["ci_low"], recall["ci_high"])}
        assert run_.loss is not None and run_.loss_of["crops"] == "trained on"
    line = fit_log_linear([run.flop for run in found.runs], [run.recalls["PATHWAYS"][0] for run in found.runs])
    assert found.lines["PATHWAYS"] == line and line.slope > 0
    assert found.predicted["PATHWAYS"] == line.predict(found.next_flop)
    assert set(found.lines) == {"PATHWAYS", "loss"}
    assert next_size(found.runs[-1]) == (
        4.0 * found.runs[-1].flop,
        "four times the largest run",
    )  # no recipe is like it


def test_the_command_draws_tells_and_writes(sizes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["scaling", "size-0", "size-1", "size-2", "--runs", str(sizes), "--out", str(out), "--flop", "1e12"]
    done = CliRunner().invoke(build(), words)
    assert done.exit_code == 0, done.output
    assert "foretold of 1e+12 FLOP" in done.output and f"page: {out}/scaling.html" in done.output
    assert sorted(path.name for path in out.iterdir()) == [f"scaling.{form}" for form in ("html", "json", "png", "svg")]
    value = json.loads((out / "scaling.json").read_text())
    low, high = value["predicted"]["PATHWAYS"][1:]
    assert low < value["predicted"]["PATHWAYS"][0] < high and value["next_flop"] == 1e12


def test_runs_that_make_no_line_are_named(sizes: Path) -> None:
    with pytest.raises(UsageError, match=r"scaling: 2 runs; a line with an interval needs at least 3"):
        scaling_of(["size-0", "size-1"], sizes)
    with pytest.raises(UsageError, match=r"scaling: size-0 is named twice"):
        scaling_of(["size-0", "size-1", "size-0"], sizes)
    converted = next(path.name for path in sizes.iterdir() if path.name.startswith("convert-"))
    with pytest.raises(UsageError, match=r"is a run of convert; name runs of evaluate or pretrain"):
        read_run(converted, sizes)
    trained = next(path.name for path in sizes.iterdir() if path.name.startswith("pretrain-"))
    assert read_run(trained, sizes).recalls == {}


def test_losses_and_recalls_of_other_definitions_are_not_mixed(sizes: Path, tmp_path: Path) -> None:
    root, runs = sizes.parent, tmp_path / "runs"
    shutil.copytree(sizes, runs)
    evaluation = RunPaths(runs / "size-2").evaluation
    value = json.loads(evaluation.read_text())
    checkpoint = runs / Path(value["checkpoint"]).relative_to(sizes)
    meta = json.loads((checkpoint / "meta.json").read_text())
    meta["model"]["mask_ratio"] = 0.5
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    evaluation.write_text(json.dumps({**value, "checkpoint": str(checkpoint)}))
    found = scaling_of(["size-0", "size-1", "size-2"], runs)
    assert set(found.lines) == {"PATHWAYS"}
    assert found.left_out == {
        "loss": "scaling: loss does not compare: mask_ratio is 0.75 in size-0, 0.5 in size-2; name runs in which it is the same"
    }
    assert set(scaling_of(["size-0", "size-1", "size-2"], sizes).lines) == {"PATHWAYS", "loss"}
    config = config_of(root, root / "emb2", bootstrap=0, neighbours=1, thresholds=[[0.1, 0.9]])
    run_here(config, command=["test"], progress=silent(), name="other")
    found = scaling_of(["size-0", "size-1", "other"], sizes)
    assert set(found.lines) == {"loss"}
    assert (
        "recall, PATHWAYS does not compare: thresholds is 0.05, 0.95 in size-0, 0.1, 0.9 in other"
        in found.left_out["PATHWAYS"]
    )
    words = ["scaling", "size-0", "size-1", "other", "--runs", str(sizes), "--out", str(tmp_path / "out")]
    assert found.left_out["PATHWAYS"] in CliRunner().invoke(build(), words).output
    assert found.left_out["PATHWAYS"] in html.unescape((tmp_path / "out" / "scaling.html").read_text())


def test_maps_on_the_command_line(sizes: Path) -> None:
    asked = CliRunner().invoke(
        build(), ["maps", "query", "GENE00", "--map", "size-2", "--top", "3", "--runs", str(sizes)]
    )
    assert asked.exit_code == 0 and "GENE00 in size-2, a map of 50 genes" in asked.output and "PATHWAYS" in asked.output
    as_json = ["maps", "query", "GENE00", "--map", "size-2", "--top", "3", "--json", "--runs", str(sizes)]
    value = json.loads(CliRunner().invoke(build(), as_json).output)
    assert len(value["alike"]) == len(value["opposite"]) == 3 and value["alike"][0]["known"] == ["PATHWAYS"]
    compared = CliRunner().invoke(build(), ["maps", "compare", "size-0", "size-2", "--runs", str(sizes), "--json"])
    rows = json.loads(compared.output)["rows"]
    assert rows[0]["pairs"] == 36 and rows[0]["ci_low"] <= rows[0]["difference"] <= rows[0]["ci_high"]
    shown = CliRunner().invoke(build(), ["maps", "compare", "size-0", "size-2", "--runs", str(sizes)])
    assert "Recall of size-0 and size-2, over the same pairs" in shown.output
    wrong = CliRunner().invoke(build(), ["maps", "query", "GENE99", "--map", "size-2", "--runs", str(sizes)])
    assert isinstance(wrong.exception, UsageError) and "did you mean" in str(wrong.exception)

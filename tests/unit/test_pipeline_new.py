"""pipeline --new RAW: tomorrow's plates from raw images into the embeddings that are there, and an updated map."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from phenomhpc.config import ConvertConfig, EmbedConfig, EvaluateConfig, PipelineConfig, dump, require, resolve
from phenomhpc.embed.folder import EmbeddingsPaths, read_binding
from phenomhpc.embed.table import read_embeddings
from phenomhpc.errors import UsageError
from phenomhpc.jobs.pipeline import check, stage_config, stage_runs
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, create_run, list_runs, read_provenance, write_outcome
from phenomhpc.store import Snapshot, open_store
from tests.unit.embed_store import SPEC, Screen, make_screen

LIMIT_S = 300
GENES = {"num_genes": 6, "num_unexpressed": 2, "genes_per_pathway": 3, "plate_columns": 5}


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    """Yesterday: one plate, embedded by its first block in batches of 16."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("screen")
    screen = make_screen(root, plates_per_experiment=1, **GENES)
    screen.embed(out=str(root / "emb"), block=1, blocks=[2])
    # Today: another plate of the same experiment.
    write_plates(root / "more", SyntheticSpec(**{**SPEC, **GENES, "plates_per_experiment": 2}), silent(), workers=1)
    shutil.rmtree(root / "more" / "SYN-01" / "Plate1")
    return screen


def _pipeline(screen: Screen, *overrides: str, **flags: object) -> PipelineConfig:
    given = {
        "new": [str(screen.root / "more")],
        "store": str(screen.store),
        "embeddings": str(screen.root / "emb"),
        "annotations": str(screen.root / "raw" / "annotations"),
        "runs": str(screen.root / "runs"),
        **flags,
    }
    config = resolve("pipeline", {key: value for key, value in given.items() if value}, overrides, layers=()).config
    assert isinstance(config, PipelineConfig)
    return config


def test_the_stages_follow_from_what_the_embeddings_are_bound_to(screen: Screen) -> None:
    pipeline = _pipeline(screen)
    check(pipeline)
    assert pipeline.stages == ("convert", "embed", "evaluate")
    convert, embed, evaluate = (stage_config(pipeline, stage, {}) for stage in pipeline.stages)
    assert isinstance(convert, ConvertConfig) and convert.new and convert.plates == pipeline.new
    assert isinstance(embed, EmbedConfig) and embed.new and embed.out == pipeline.embeddings
    assert (embed.block, embed.blocks, embed.batch, embed.baselines) == (1, (2,), 16, ("intensity", "untrained"))
    assert Path(embed.checkpoint).parent == screen.checkpoint.checkpoints
    assert isinstance(evaluate, EvaluateConfig) and evaluate.embeddings == pipeline.embeddings


@pytest.mark.parametrize(
    ("flags", "words", "message"),
    [
        ({"embeddings": None}, (), "embeddings is missing; give --embeddings"),
        ({"embeddings": "/nothing/emb"}, (), "holds none yet"),
        ({}, ("stages=[convert,pretrain,embed]",), "leave pretrain out"),
        ({"new": None}, (), "with new only"),
    ],
)
def test_what_cannot_be_added_is_refused_in_one_line(
    screen: Screen, flags: dict[str, object], words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as error:
        config = _pipeline(screen, *words, **flags)
        require(config)
        check(config)
    assert "\n" not in str(error.value)


def test_the_map_is_scored_as_it_was_the_last_time(screen: Screen, tmp_path: Path) -> None:
    def scored(name: str, state: str, **settings: object) -> None:
        given = {
            "embeddings": str(screen.root / "emb"),
            "annotations": "a",
            "runs": str(tmp_path),
            "seed": 5,
            **settings,
        }
        config = resolve("evaluate", given, [], layers=()).config
        write_outcome(
            create_run(tmp_path, "evaluate", dump(config), {}, name=name), state=state, exit_code=0, message=""
        )

    def stage(*overrides: str) -> EvaluateConfig:
        found = stage_config(_pipeline(screen, *overrides, runs=str(tmp_path)), "evaluate", {})
        assert isinstance(found, EvaluateConfig)
        return found

    assert (stage().align, stage().bootstrap) == ("tvn", 1000)  # the recipe's
    scored("map-1", "finished", align="pca_cs")
    scored("map-2", "finished", align="coral", bootstrap=7, **{"columns.gene": "symbol", "thresholds": [[0.01, 0.99]]})
    scored("map-3", "failed", align="none")
    scored("map-4", "finished", align="none", embeddings=str(tmp_path))
    found = stage("evaluate.bootstrap=9")
    assert (found.align, found.bootstrap, found.columns.gene, found.thresholds) == (
        "coral",
        9,
        "symbol",
        ((0.01, 0.99),),
    )
    pipeline = _pipeline(screen, runs=str(tmp_path))
    assert (found.seed, found.annotations, found.embeddings) == (
        pipeline.seed,
        pipeline.annotations,
        pipeline.embeddings,
    )


def test_one_command_carries_new_plates_to_an_updated_map(screen: Screen) -> None:
    root = screen.root
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.glob("emb/**/*.parquet")}
    assert len(before) == 4  # two blocks and two baselines of one plate
    words = [
        *("pipeline", "--new", root / "more", "--store", screen.store, "--embeddings", root / "emb"),
        *("--annotations", root / "raw" / "annotations", "--runs", root / "runs"),
        *("embed.device=cpu", "convert.workers=1", "evaluate.bootstrap=5"),
    ]
    command = [sys.executable, "-m", "phenomhpc", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr

    frame = read_embeddings(root / "emb")
    assert frame.select("plate", "well").n_unique() == frame.height == 2 * 10
    assert read_embeddings(root / "emb" / "blocks" / "02").height == 20
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    snapshot = Snapshot.open(open_store(str(screen.store)))
    bound = read_binding(EmbeddingsPaths(root / "emb"))
    assert bound is not None and bound.snapshot_digest == snapshot.digest and len(snapshot.plates) == 2

    pipelines = [run for run in list_runs(root / "runs") if read_provenance(run)["kind"] == "pipeline"]
    stages = stage_runs(pipelines[-1])
    assert list(stages) == ["convert", "embed", "evaluate"]
    scored = RunPaths(root / "runs" / stages["evaluate"])
    assert scored.report.is_file() and pl.read_parquet(scored.map).height > 1

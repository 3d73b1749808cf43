"""What a pipeline makes of its settings: one resolved configuration per stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from phenomhpc.config import (
    AnyConfig,
    ConvertConfig,
    EmbedConfig,
    EvaluateConfig,
    PipelineConfig,
    PretrainConfig,
    dump,
    load_run_config,
    resolve,
)
from phenomhpc.errors import UsageError
from phenomhpc.jobs.pipeline import check, stage_config
from phenomhpc.runs import RunPaths

FINISHED = {name: RunPaths(Path(f"/runs/{name}-1")) for name in ("convert", "pretrain", "embed")}


def _pipeline(*overrides: str, **flags: object) -> PipelineConfig:
    given = {"plates": ["/raw/a"], "store": "/store", "annotations": "/annotations", "runs": "/runs", **flags}
    config = resolve("pipeline", given, overrides, layers=()).config
    assert isinstance(config, PipelineConfig)
    return config


def test_stages_are_tied_together_by_store_checkpoint_and_embeddings() -> None:
    pipeline = _pipeline("seed=7")
    stages: dict[str, AnyConfig] = {name: stage_config(pipeline, name, FINISHED) for name in pipeline.stages}
    convert, pretrain, embed, evaluate = (stages[name] for name in ("convert", "pretrain", "embed", "evaluate"))
    assert isinstance(convert, ConvertConfig) and convert.plates == ("/raw/a",) and convert.store == "/store"
    assert isinstance(pretrain, PretrainConfig) and pretrain.store == ("/store",)
    assert isinstance(embed, EmbedConfig) and (embed.store, embed.checkpoint) == ("/store", "/runs/pretrain-1")
    assert isinstance(evaluate, EvaluateConfig)
    assert (evaluate.embeddings, evaluate.annotations) == ("/runs/embed-1/embeddings", "/annotations")
    assert {(config.runs, config.seed) for config in stages.values()} == {("/runs", 7)}


def test_a_stage_takes_its_recipe_and_what_stands_under_its_name() -> None:
    pipeline = _pipeline(
        "pretrain.model.recipe=mae_vit_tiny", "pretrain.model.depth=2", "pretrain.optim=cpu", "embed.batch=8"
    )
    pretrain, embed = (stage_config(pipeline, name, FINISHED) for name in ("pretrain", "embed"))
    assert isinstance(pretrain, PretrainConfig) and isinstance(embed, EmbedConfig)
    assert (pretrain.model.crop_px, pretrain.model.depth, pretrain.optim.name) == (64, 2, "adamw")
    assert embed.batch == 8


def test_the_embeddings_of_another_folder_are_evaluated_there() -> None:
    evaluate = stage_config(_pipeline("embed.out=/emb"), "evaluate", FINISHED)
    assert isinstance(evaluate, EvaluateConfig) and evaluate.embeddings == "/emb"


def test_what_is_asked_of_slurm_reaches_the_stages_that_have_a_use_for_it() -> None:
    pipeline = _pipeline(**{"cluster.nodes": 4, "cluster.gpus_per_node": 8, "cluster.partition": "long"})
    clusters = {name: stage_config(pipeline, name, FINISHED).cluster for name in pipeline.stages}
    assert {name: cluster.nodes for name, cluster in clusters.items()} == {
        "convert": 1, "pretrain": 4, "embed": 1, "evaluate": 1,
    }  # fmt: skip
    assert clusters["convert"].gpus_per_node is None and clusters["embed"].gpus_per_node == 8
    assert {cluster.partition for cluster in clusters.values()} == {"long"}


def test_a_stage_is_the_same_after_run_yaml(tmp_path: Path) -> None:
    pipeline = _pipeline("pretrain.model=mae_vit_tiny", "pretrain.optim.steps=3", "seed=5")
    (tmp_path / "run.yaml").write_text(dump(pipeline))
    again = load_run_config(tmp_path / "run.yaml")
    assert isinstance(again, PipelineConfig)
    for stage in pipeline.stages:
        assert dump(stage_config(again, stage, FINISHED)) == dump(stage_config(pipeline, stage, FINISHED))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("pretrain.optim.stepz=3", "optim.steps"),
        ("embed.batch=0", "batch"),
        ("pretrain.model=mae_vit_huge", "mae_vit_huge"),
        ("stages=[pretrain,convert]", "stages"),
        ("stages=[convert,convert]", "stages"),
        ("stages=[embed]", "checkpoint"),
    ],
)
def test_a_wrong_setting_of_any_stage_is_refused_before_the_first_starts(override: str, named: str) -> None:
    with pytest.raises(UsageError, match=named) as error:
        check(_pipeline(override))
    assert "\n" not in str(error.value)

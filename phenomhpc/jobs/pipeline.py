"""convert -> pretrain -> embed -> evaluate, each stage a run of its own.

Here the stages run one after the other in this process; on Slurm the steward submits each when the one before has finished.
Both plan a stage by `stage_config`: a function of the pipeline's resolved settings and the runs that have finished.

With `new`, plates are added to what is there: converted into the store, embedded as the folder of embeddings says (its checkpoint,
block, crops, dtype), and the whole is scored anew, as it was the last time; nothing is trained, and what was embedded before
stays as it is.

A pipeline that was killed is gone on with: finished stages are found (by their settings, among the runs made since the pipeline
began) and kept, the unfinished one goes on with its own run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from phenomhpc.config import (
    AnyConfig,
    ClusterConfig,
    EmbedConfig,
    EvaluateConfig,
    PipelineConfig,
    dump,
    load_run_config,
    require,
    resolve,
)
from phenomhpc.config.overrides import flatten
from phenomhpc.config.recipes import groups
from phenomhpc.embed.folder import EmbeddingsPaths, read_binding
from phenomhpc.errors import UsageError
from phenomhpc.jobs.base import ArrayPlan, Summary, Table, TaskOutcome
from phenomhpc.jobs.block_embeddings import settings_of
from phenomhpc.progress import Progress
from phenomhpc.runs import RunPaths, TaskContext, Unit, list_runs, read_events, read_outcome, read_provenance

Stage = Literal["convert", "pretrain", "embed", "evaluate"]
ORDER: Final[tuple[Stage, ...]] = ("convert", "pretrain", "embed", "evaluate")
# A group's recipe inside a stage's settings: `pretrain.model=mae_vit_tiny`, or beside changed settings of that group
# `pretrain.model.recipe=mae_vit_tiny pretrain.model.depth=2`.
RECIPE_KEY = "recipe"
EVENT = "stage"
# What an evaluation takes from the pipeline, not from the one before it.
NOT_SCORING: Final = ("embeddings", "annotations", "runs", "seed", "cluster")
# Stages that have a use for what is asked of Slurm; every stage, where nothing stands here.
USES: Final[Mapping[str, tuple[Stage, ...]]] = {"nodes": ("pretrain",), "gpus_per_node": ("pretrain", "embed")}

WORDS: Final[Mapping[Stage, str]] = {
    "convert": "Converting: the raw images of every well become one sharded Zarr store that training can read at random",
    "pretrain": "Pretraining: a vision transformer sees a quarter of each crop and learns to draw the hidden rest",
    "embed": "Embedding: every well becomes one vector, the mean of the encoder's output over all of its crops",
    "evaluate": "Evaluating: genes are compared with each other, and the map is scored against known relationships",
}


def stage_config(pipeline: PipelineConfig, stage: str, finished: Mapping[str, RunPaths]) -> AnyConfig:
    """The settings of one stage, from the pipeline's own and the runs of the stages before it.

    finished: run directories by stage; only their paths are used.  What the pipeline ties together (store, checkpoint,
    embeddings, annotations) can be replaced by a stage's own settings; so can what it shares (runs, seed, cluster).
    Raises UsageError for a wrong setting of the stage, naming the stage and the key.
    """
    choices, own = _split(getattr(pipeline, stage))
    flags = {**_shared(pipeline, stage), **_tied(pipeline, stage, finished), **own}
    return resolve(stage, flags, [f"{group}={choice}" for group, choice in choices.items()], layers=()).config


def _split(settings: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Recipes of groups (`model: NAME`, or `model: {recipe: NAME, ...}`), and dotted settings."""
    known = set(groups())
    choices: dict[str, str] = {}
    own: dict[str, Any] = {}
    for key, value in flatten(settings).items():
        group, _, rest = key.partition(".")
        if group in known and rest in {"", RECIPE_KEY}:
            choices[group] = str(value)
        else:
            own[key] = value
    return choices, own


def _shared(pipeline: PipelineConfig, stage: str) -> dict[str, Any]:
    """What every stage takes over: where runs lie, the seed, and what was asked of Slurm, where it has a use for it."""
    shared: dict[str, Any] = {"runs": pipeline.runs, "seed": pipeline.seed}
    defaults = ClusterConfig()
    for name in ClusterConfig.model_fields:
        value = getattr(pipeline.cluster, name)
        if value != getattr(defaults, name) and stage in USES.get(name, ORDER):
            shared[f"cluster.{name}"] = value
    return shared


def _tied(pipeline: PipelineConfig, stage: str, finished: Mapping[str, RunPaths]) -> dict[str, Any]:
    if stage == "convert":
        return {"plates": pipeline.new or pipeline.plates, "store": pipeline.store, "new": bool(pipeline.new)}
    if stage == "pretrain":
        return {"store": (pipeline.store,)}
    if stage == "embed" and pipeline.new:
        return {
            "store": pipeline.store,
            "out": str(_folder_to_add_to(pipeline).root),
            "new": True,
            **_as_bound(pipeline),
        }
    if stage == "evaluate" and pipeline.new:
        folder = _folder_to_add_to(pipeline).root
        return {**_as_scored(pipeline, folder), "embeddings": str(folder), "annotations": pipeline.annotations}
    if stage == "embed":
        checkpoint = str(finished["pretrain"].root) if "pretrain" in finished else None
        return {"store": pipeline.store, "checkpoint": checkpoint}
    if stage == "evaluate":
        embeddings = str(pipeline.embed.get("out") or finished["embed"].embeddings) if "embed" in finished else None
        return {"embeddings": embeddings, "annotations": pipeline.annotations}
    raise UsageError(f"stages={stage}: no such stage; there are {', '.join(ORDER)}")


def _folder_to_add_to(pipeline: PipelineConfig) -> EmbeddingsPaths:
    """The folder of embeddings that `embeddings` means: itself, or a run's."""
    named = Path(pipeline.embeddings)
    run_yaml = named / "run.yaml"
    if not run_yaml.is_file():
        return EmbeddingsPaths(named)
    settings = load_run_config(run_yaml)
    if not isinstance(settings, EmbedConfig):
        raise UsageError(f"pipeline: embeddings={named}: is a run of {settings.kind}; name a run of embed")
    return EmbeddingsPaths(Path(settings.out) if settings.out else RunPaths(named).embeddings)


def _as_bound(pipeline: PipelineConfig) -> dict[str, Any]:
    """The settings of embedding by which a folder's embeddings were made.  Raises UsageError where there are none."""
    folder = _folder_to_add_to(pipeline)
    bound = read_binding(folder)
    if bound is None:
        raise UsageError(
            f"pipeline: embeddings={folder.root}: holds none yet to which new ones could be added; phenomhpc embed makes the first"
        )
    return settings_of(folder, bound)


def _as_scored(pipeline: PipelineConfig, folder: Path) -> dict[str, Any]:
    """The settings of the newest evaluation of a folder's embeddings, so that the updated map can be compared with that one.

    Nothing where none has finished among the runs: then the recipe's count.
    """
    from phenomhpc.jobs.evaluation.wells import embeddings_source  # with polars

    for run in reversed(list_runs(Path(pipeline.runs))):
        outcome = read_outcome(run)
        if read_provenance(run)["kind"] != "evaluate" or outcome is None or outcome["state"] != "finished":
            continue
        try:
            scored = load_run_config(run.run_yaml)
            if isinstance(scored, EvaluateConfig) and embeddings_source(scored) == folder:
                return flatten(scored.model_dump(mode="json", exclude=set(NOT_SCORING)))
        except UsageError:  # of an older version, or of embeddings that are gone
            continue
    return {}


def check(pipeline: PipelineConfig) -> None:
    """Raise UsageError for the first wrong or missing setting of any stage, before the first one starts."""
    if list(pipeline.stages) != [stage for stage in ORDER if stage in pipeline.stages]:
        raise UsageError(
            f"pipeline: stages={list(pipeline.stages)}: each stage at most once and in the order {', '.join(ORDER)}"
        )
    before: dict[str, RunPaths] = {}
    for stage in pipeline.stages:
        require(stage_config(pipeline, stage, before))
        before[stage] = RunPaths(Path(pipeline.runs) / stage)


def plan(config: PipelineConfig, paths: RunPaths) -> ArrayPlan:
    """One unit per stage that has not finished within this run of the pipeline."""
    check(config)
    finished = finished_stages(config, paths)
    left = [stage for stage in config.stages if stage not in finished]
    return ArrayPlan(
        units=tuple(Unit(unit_id=stage, kind="stage") for stage in left),
        num_done=len(config.stages) - len(left),
        noun="stages",
    )


def workers(config: PipelineConfig, units: Sequence[Unit]) -> int:
    """Stages run one after the other; each spreads over the cores by itself."""
    return 1


def run(config: PipelineConfig, ctx: TaskContext) -> TaskOutcome:
    """Run the stages of `ctx.units` in order.  A stage that fails ends the pipeline; it and all before it stay as they are."""
    from phenomhpc.jobs.here import run_here

    finished = finished_stages(config, ctx.paths)
    set_aside: list[tuple[str, str]] = []
    for unit in ctx.units:
        stage = next(stage for stage in config.stages if stage == unit.unit_id)
        position = config.stages.index(stage) + 1
        ctx.progress.say(f"[{position}/{len(config.stages)}] {WORDS[stage]}")
        settings = stage_config(config, stage, finished)
        paths, summary = run_here(settings, command=("pipeline", ctx.paths.id, stage), progress=ctx.progress)
        ctx.check_fence()
        ctx.events.emit(EVENT, stage=stage, run=paths.id, exit_code=summary.exit_code)
        ctx.progress.say(f"      {summary.text}")
        finished[stage] = paths
        set_aside += summary.set_aside
    return TaskOutcome(units_done=len(ctx.units), set_aside=tuple(set_aside))


def finished_stages(config: PipelineConfig, paths: RunPaths) -> dict[str, RunPaths]:
    """Runs of the stages that have finished since this pipeline began, in order; up to the first that has not."""
    since = str(read_provenance(paths)["created"])
    recent = [run for run in list_runs(Path(config.runs)) if str(read_provenance(run)["created"]) >= since]
    finished: dict[str, RunPaths] = {}
    for stage in config.stages:
        text = dump(stage_config(config, stage, finished))
        found = next((run for run in reversed(recent) if _finished_with(run, text)), None)
        if found is None:
            break
        finished[stage] = found
    return finished


def _finished_with(run: RunPaths, run_yaml: str) -> bool:
    outcome = read_outcome(run)
    return outcome is not None and outcome["state"] == "finished" and run.run_yaml.read_text() == run_yaml


def stage_runs(paths: RunPaths) -> dict[str, str]:
    """IDs of the runs of a pipeline's stages, as its events tell."""
    return {event["stage"]: event["run"] for event in read_events(paths) if event["event"] == EVENT}


def finish(config: PipelineConfig, paths: RunPaths, progress: Progress) -> Summary:
    """The pipeline in one table, with what its stages set aside."""
    rows: list[tuple[Any, ...]] = []
    set_aside: list[tuple[str, str]] = []
    report: str | None = None
    for stage, run_paths in finished_stages(config, paths).items():
        outcome = read_outcome(run_paths) or {}
        rows.append((stage, run_paths.id, str(outcome.get("message", ""))))
        set_aside += [(str(thing), str(reason)) for thing, reason in outcome.get("set_aside", ())]
        if run_paths.report.is_file():
            report = str(run_paths.report)
    return Summary(
        text=f"{len(rows)} stages finished: {', '.join(str(row[0]) for row in rows)}",
        set_aside=tuple(set_aside),
        tables=(Table(title="Stages", columns=("stage", "run", "result"), rows=tuple(rows)),),
        report=report,
    )


def run_pipeline_here(
    config: PipelineConfig,
    *,
    command: Sequence[str],
    progress: Progress,
    name: str | None = None,
    fresh: bool = False,
) -> tuple[RunPaths, Summary]:
    """The whole pipeline on this machine; goes on with an unfinished one of the same settings unless `fresh`."""
    from phenomhpc.jobs.here import run_here

    return run_here(config, command=command, progress=progress, name=name, fresh=fresh)

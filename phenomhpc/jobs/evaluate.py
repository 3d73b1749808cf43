"""evaluate: embeddings aligned, made into a map, scored against what is known; one report to look at.

One unit.  What holds when killed here: without evaluation.json of the same digest nothing counts as done and everything is
written again, the same.

    report.html            to look at; pictures/NAME.png and .svg are its pictures
    recall.parquet         one row per source, annotation and pair of thresholds
    scores.parquet         every number of every benchmark with its threshold, null and interval, stages on the way included
    perturbations.parquet  one row per perturbation: its consistency, magnitude, retrieval
    map.parquet            label and profile of each: what `maps query` and `maps compare` read
    relations.parquet      the known pairs with both ends in the map
    blocks.parquet         with blocks=all: every block's probe and recall
    evaluation.json        what was evaluated, and every number; written last
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phenomhpc.config import EvaluateConfig
from phenomhpc.errors import StopRequested, UsageError, WorkError
from phenomhpc.jobs.base import ArrayPlan, Summary, Table, TaskOutcome
from phenomhpc.jobs.block_embeddings import num_blocks, with_all_blocks
from phenomhpc.jobs.evaluation.annotations import ARMS_NAME, Annotations, read_annotations
from phenomhpc.jobs.evaluation.products import write_products
from phenomhpc.jobs.evaluation.rows import recall_rows
from phenomhpc.jobs.evaluation.scores import ENCODER, Evaluation, evaluate, source_names
from phenomhpc.jobs.evaluation.wells import embeddings_source
from phenomhpc.maps import check_thresholds
from phenomhpc.progress import Progress, Stage
from phenomhpc.runs import RunPaths, TaskContext, Unit, commit, digest_of

SCHEMA = 2
UNIT = "map"


def plan(config: EvaluateConfig, paths: RunPaths) -> ArrayPlan:
    """One unit, done when evaluation.json has the digest of these settings and inputs.  Raises UsageError."""
    check_thresholds(config.thresholds)
    source = embeddings_source(config)
    annotations = _annotations(config)
    if config.arm_correction and not (annotations.arms and annotations.unexpressed):
        raise UsageError(
            f"arm_correction=true: needs chromosome arms and unexpressed genes; annotations={config.annotations} has no "
            + (
                "unexpressed.txt (or give --unexpressed FILE)"
                if annotations.arms
                else f"{ARMS_NAME} (or give --arms FILE)"
            )
        )
    digest = _digest(config, source, annotations)
    if _finished(paths) == digest:
        return ArrayPlan(units=(), num_done=1, noun="maps")
    count = len(source_names(source)) + (num_blocks(source) if config.blocks == "all" else 0)
    return ArrayPlan(units=(Unit(unit_id=UNIT, kind=config.kind, count=count, digest=digest),), noun="maps")


def workers(config: EvaluateConfig, units: Sequence[Unit]) -> int:
    """One process; linear algebra uses the cores."""
    return 1


def run(config: EvaluateConfig, ctx: TaskContext) -> TaskOutcome:
    """Score every source, then write everything."""
    set_aside: tuple[tuple[str, str], ...] = ()
    for unit in ctx.units:
        source = embeddings_source(config)
        blocks = with_all_blocks(config, source, ctx) if config.blocks == "all" else None
        with ctx.progress.stage("evaluate", unit.count, "maps") as stage:

            def told(name: str, stage: Stage = stage) -> None:
                if ctx.stop_requested():
                    raise StopRequested(f"evaluate {ctx.paths.id}: asked to stop; run again")
                stage.note(f"{name}: align, average, compare")
                stage.advance()

            evaluation = evaluate(config, source, _annotations(config), told, blocks)
        _publish(config, ctx, unit, evaluation, source)
        ctx.events.emit("unit", unit_id=unit.unit_id)
        set_aside = evaluation.set_aside
    return TaskOutcome(units_done=len(ctx.units), set_aside=set_aside)


def finish(config: EvaluateConfig, paths: RunPaths, progress: Progress) -> Summary:
    """The recall table of evaluation.json.  Raises WorkError where there is none."""
    if not paths.evaluation.is_file():
        raise WorkError(f"evaluate {paths.id}: no {paths.evaluation.name}; run again")
    value = json.loads(paths.evaluation.read_bytes())
    return Summary(
        text=value["text"],
        set_aside=tuple((thing, reason) for thing, reason in value["set_aside"]),
        tables=(recall_table(value["recalls"]),),
        report=str(paths.report),
    )


def _publish(config: EvaluateConfig, ctx: TaskContext, unit: Unit, evaluation: Evaluation, source: Path) -> None:
    """Commit the products, evaluation.json last."""
    ctx.check_fence()
    rows = recall_rows(evaluation)
    value = {
        "schema": SCHEMA,
        "digest": unit.digest,
        "recalls": rows,
        "set_aside": [list(entry) for entry in evaluation.set_aside],
        **write_products(config, ctx, evaluation, source, rows),
    }
    ctx.check_fence()
    commit(ctx.paths.evaluation, json.dumps(value, indent=2, sort_keys=True) + "\n", token=ctx.token)


def _with_interval(recall: float, low: float | None, high: float | None) -> str:
    """0.412 [0.380, 0.444], or the number alone."""
    return f"{recall:.3f}" if low is None or high is None else f"{recall:.3f} [{low:.3f}, {high:.3f}]"


def recall_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line per annotation and thresholds, one column per source."""
    sources = list(dict.fromkeys(row["source"] for row in rows))
    cells: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        cells.setdefault((row["annotation"], row["lo"], row["hi"]), {})[row["source"]] = row
    lines = []
    for (annotation, lo, hi), found in cells.items():
        first = found[ENCODER] if ENCODER in found else next(iter(found.values()))
        shown = [
            _with_interval(found[name]["recall"], found[name]["ci_low"], found[name]["ci_high"])
            if name in found
            else "-"
            for name in sources
        ]
        lines.append((annotation, first["num_pairs"], f"{lo:g}, {hi:g}", f"{first['chance']:.2f}", *shown))
    return Table(
        title="Relationship recall [95 % interval]",
        columns=("annotation", "pairs", "thresholds", "chance", *sources),
        rows=tuple(lines),
    )


def _annotations(config: EvaluateConfig) -> Annotations:
    others = (Path(name) if name else None for name in (config.unexpressed, config.arms, config.centromeres))
    return read_annotations(Path(config.annotations), *others)


def _digest(config: EvaluateConfig, source: Path, annotations: Annotations) -> str:
    tables = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
    others = [Path(config.metadata)] if config.metadata and Path(config.metadata).is_file() else []
    inputs = [
        [str(path), path.stat().st_size, path.stat().st_mtime_ns]
        for path in (*tables, *others, *sorted(annotations.files))
    ]
    return digest_of(config.kind, config.model_dump(mode="json", exclude={"cluster", "runs"}), inputs)


def _finished(paths: RunPaths) -> str | None:
    """Digest of the evaluation that is there, whole."""
    try:
        return str(json.loads(paths.evaluation.read_bytes())["digest"])
    except (FileNotFoundError, ValueError, KeyError):
        return None

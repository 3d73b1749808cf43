"""Every block of an encoder, where evaluate is to choose one and the embeddings hold one alone: the others are embedded here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phenomhpc.config import EmbedConfig, EvaluateConfig, validate
from phenomhpc.embed.folder import COMPILED, Binding, EmbeddingsPaths, read_binding
from phenomhpc.errors import UsageError
from phenomhpc.jobs.here import run_here
from phenomhpc.models.checkpoint import read_meta
from phenomhpc.models.kinds import encoder_shape
from phenomhpc.runs import TaskContext


def settings_of(folder: EmbeddingsPaths, bound: Binding) -> dict[str, Any]:
    """The settings of embedding by which a folder's embeddings were made."""
    compiled = bound.backend == COMPILED
    return {
        "checkpoint": bound.checkpoint,
        "weights": bound.weights,
        "block": bound.block,
        "blocks": bound.blocks,
        "pooling": bound.pooling,
        "channels": bound.channels,
        "precision": bound.dtype,
        "backend": "torch" if compiled else bound.backend,
        "compile": compiled,
        "level": bound.level,
        "crops": bound.placing,
        "crops_per_field": bound.crops_per_field,
        "baselines": folder.baselines(),
        "batch": bound.batch,
        "seed": bound.seed,
    }


def num_blocks(source: Path) -> int:
    """How many blocks `with_all_blocks` will give.  Raises UsageError where there is no way to more than one."""
    folder = EmbeddingsPaths(source)
    if len(folder.blocks()) > 1:
        return len(folder.blocks())
    bound = read_binding(folder)
    if bound is None:
        raise UsageError(
            f"blocks=all: {source} holds no embeddings of ours; blocks are those of an encoder that phenomhpc embed knows"
        )
    try:
        meta = read_meta(Path(bound.checkpoint))
    except UsageError as error:
        raise UsageError(
            f"blocks=all: {source} holds block {bound.block} alone, and its checkpoint {bound.checkpoint} cannot be read to embed "
            "the others; put it back, or run phenomhpc embed ... --blocks all where it lies"
        ) from error
    return encoder_shape(meta.model, len(bound.channels), pooling=bound.pooling, block=bound.block).num_blocks


def with_all_blocks(config: EvaluateConfig, source: Path, ctx: TaskContext) -> Path:
    """The folder itself where it has several blocks; else one below the run, into which every block is embedded as the one was.

    Embedding goes on where it was stopped, plate by plate.
    """
    folder = EmbeddingsPaths(source)
    if len(folder.blocks()) > 1:
        return source
    bound = read_binding(folder)
    assert bound is not None  # as num_blocks has made sure
    to = ctx.paths.embeddings
    chosen = {"blocks": ["all"], "level": "well", "baselines": [], "out": str(to), "runs": config.runs}
    where = {"store": bound.store, "snapshot": bound.snapshot_digest}
    embed = validate("embed", settings_of(folder, bound) | where | chosen)
    assert isinstance(embed, EmbedConfig)
    ctx.progress.say(f"evaluate: embedding every block into {to}, since {source} holds block {bound.block} alone")
    run_here(embed, command=["evaluate", "blocks=all"], progress=ctx.progress)
    return to

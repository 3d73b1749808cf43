"""Every well of a store through the encoder of a checkpoint: one unit per plate.

Beside the checkpoint, and from the same pixels in the same pass, baselines: the same architecture untrained, and the statistics
of the pixels.  The folder of the embeddings is bound to what made them (embed/folder.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from phenomhpc.config import EmbedConfig
from phenomhpc.embed.channels import match_channels
from phenomhpc.embed.folder import Binding, EmbeddingsPaths, bind, check
from phenomhpc.embed.table import OK
from phenomhpc.embed.unit import CHECKPOINT, Pixels, Writer, embed_unit, is_done
from phenomhpc.embed.wells import PlateWells, plan_wells
from phenomhpc.errors import StopRequested, UsageError, WorkError
from phenomhpc.jobs.base import COUNTED, ArrayPlan, Summary, TaskOutcome
from phenomhpc.jobs.parts import Parts
from phenomhpc.models.checkpoint import CheckpointMeta, checkpoint_digest, read_meta
from phenomhpc.models.intensity import IntensityStatistics
from phenomhpc.models.kinds import encoder_shape, identifying_fields, takes_any_channels
from phenomhpc.models.weights import EMA, MODEL, choose_weights, is_average
from phenomhpc.progress import Progress
from phenomhpc.runs import RunPaths, TaskContext, Unit, digest_of
from phenomhpc.store import Snapshot, open_store
from phenomhpc.store.light import APPLY, light_digest
from phenomhpc.store.litreader import Reader, open_pixels, require_light
from phenomhpc.train.named import named_checkpoint

if TYPE_CHECKING:  # a plan and a dry run do without torch
    import torch

    from phenomhpc.embed.encode import CropEncoder, ModelEncoder
    from phenomhpc.models.mae import MaskedAutoencoder

UNTRAINED = "untrained"
INTENSITY = "intensity"
BACKEND = "torch"
# For packing only: what a crop costs beside a fixed share of a plate, in seconds of a CPU core.
CROP_COST_S = 0.01
BYTES_PER_FEATURE = 4


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a run of embedding agrees on: the pixels, the encoder's description, how it is applied."""

    snapshot: Snapshot
    fields: pl.DataFrame
    checkpoint: Path
    meta: CheckpointMeta
    binding: Binding
    scale: tuple[float, ...]

    @classmethod
    def open(cls, config: EmbedConfig) -> Source:
        """Raises UsageError for a store, snapshot, checkpoint, channel or block that is not there."""
        store = open_store(config.store)
        snapshot = Snapshot.open(store, config.snapshot)
        checkpoint = named_checkpoint(config.checkpoint, Path(config.runs))
        meta = choose_weights(checkpoint, read_meta(checkpoint), config.weights)
        channels = choose_channels(config.channels, meta, checkpoint)
        match_channels(snapshot.channels, channels, config.store)
        if meta.illumination == APPLY:
            require_light(snapshot)
        shape = encoder_shape(meta.model, len(channels), pooling=config.pooling, block=config.block)
        binding = Binding(
            source=CHECKPOINT,
            checkpoint=str(checkpoint),
            weights=EMA if is_average(meta) else MODEL,
            checkpoint_digest=checkpoint_digest(checkpoint, config.weights),
            store=config.store,
            snapshot_digest=snapshot.digest,
            block=shape.num_blocks if config.block is None else config.block,
            pooling=config.pooling,
            dtype=config.precision,
            backend=BACKEND,
            channels=channels,
            crop_px=int(meta.model["crop_px"]),
            num_features=shape.num_features,
        )
        return cls(
            snapshot=snapshot,
            fields=snapshot.fields(),
            checkpoint=checkpoint,
            meta=meta,
            binding=binding,
            scale=tuple(meta.scale[meta.channels.index(name)] for name in channels),
        )

    def wells(self, plate: str) -> PlateWells:
        return plan_wells(self.fields.filter(pl.col("plate") == plate), self.snapshot.table, self.binding.crop_px)

    def digest(self, config: EmbedConfig, plate: str) -> str:
        """What decides a plate's result: the encoder and how it is applied, the batch shape, the plate's own fields.

        Not the snapshot as a whole: a plate that another snapshot holds unchanged stays done (`--new`).
        """
        bound = self.binding
        settings = {
            "checkpoint": bound.checkpoint_digest,
            "block": bound.block,
            "pooling": bound.pooling,
            "dtype": bound.dtype,
            "backend": bound.backend,
            "batch": config.batch,
            "baselines": sorted(config.baselines),
            "seed": config.seed if UNTRAINED in config.baselines else None,
        }
        if bound.channels != self.meta.channels:
            settings["channels"] = list(bound.channels)
        if self.meta.illumination == APPLY:
            settings["light"] = light_digest(self.snapshot.store.paths, plate)
        fields = self.fields.filter(pl.col("plate") == plate).drop("field_no", "sources").sort("field_index")
        return digest_of("embed", settings, [plate, fields.write_json()])


def choose_channels(asked: Sequence[str], meta: CheckpointMeta, checkpoint: Path) -> tuple[str, ...]:
    """The channels that are embedded, in order: all of the checkpoint's, or those asked of a channel-agnostic model.

    Raises UsageError naming a channel without a scale, or a model that needs all of its channels.
    """
    if not asked or tuple(asked) == meta.channels:
        return meta.channels
    known = ", ".join(meta.channels)
    for name in asked:
        if name not in meta.channels:
            raise UsageError(f"embed: channels: {name} is none of those that {checkpoint} was trained on ({known})")
        if list(asked).count(name) > 1:
            raise UsageError(f"embed: channels: {name} is named twice")
    if not takes_any_channels(meta.model):
        raise UsageError(f"embed: channels: the model of {checkpoint} takes exactly {known}; leave the setting out")
    return tuple(asked)


def embeddings_folder(config: EmbedConfig, paths: RunPaths) -> EmbeddingsPaths:
    """Where the embeddings go: --out, or RUN/embeddings."""
    return EmbeddingsPaths(Path(config.out) if config.out else paths.embeddings)


def plan(config: EmbedConfig, paths: RunPaths) -> ArrayPlan:
    """One unit per plate that is not done yet.  Writes nothing; a wrong --out is refused before anything starts."""
    source = Source.open(config)
    folder = embeddings_folder(config, paths)
    _bind_all(config, source, folder, only_look=True)
    units: list[Unit] = []
    num_wells = 0
    for plate in source.snapshot.plates:
        wells = source.wells(plate)
        digest = source.digest(config, plate)
        if not is_done(folder, plate, digest):
            crops = int(wells.num_crops.sum())
            num_wells += wells.metadata.height
            units.append(
                Unit(unit_id=plate, kind="embed", plate=plate, count=crops, cost_s=crops * CROP_COST_S, digest=digest)
            )
    tables = 1 + (UNTRAINED in config.baselines)
    return ArrayPlan(
        units=tuple(units),
        num_done=len(source.snapshot.plates) - len(units),
        noun="plates",
        output_bytes=num_wells * source.binding.num_features * BYTES_PER_FEATURE * tables,
    )


def workers(config: EmbedConfig, units: Sequence[Unit]) -> int:
    """One process: torch spreads over the cores."""
    return 1


def run(config: EmbedConfig, ctx: TaskContext) -> TaskOutcome:
    """Embed the plates of `ctx.units`, each committed by itself.  Raises StopRequested between plates when asked to leave."""
    source = Source.open(config)
    folder = embeddings_folder(config, ctx.paths)
    _bind_all(config, source, folder)
    encoders = _encoders(config, source)
    writer = Writer(attempt=ctx.attempt, task=ctx.task, token=ctx.token, check_fence=ctx.check_fence)
    set_aside: list[tuple[str, str]] = []
    with (
        open_pixels(source.snapshot, source.meta.illumination) as reader,
        ctx.progress.stage("embed", sum(unit.count for unit in ctx.units), COUNTED["embed"]) as stage,
    ):
        parts = Parts(ctx, stage)
        for unit in ctx.units:
            if ctx.stop_requested():
                raise StopRequested(f"run {ctx.paths.id}: stopped as asked before plate {unit.unit_id}")
            plate = unit.unit_id
            wells = source.wells(plate)
            digest = source.digest(config, plate)
            if digest != unit.digest:
                raise UsageError(
                    f"plate {plate}: the store or checkpoint {config.checkpoint} has changed since this run was planned; "
                    "plan anew, naming the snapshot and the step folder"
                )
            if is_done(folder, plate, digest):
                stage.advance(unit.count)
                continue
            parts.begin(unit)
            record = embed_unit(
                plate,
                wells,
                pixels=_pixels(source, reader),
                encoders=encoders,
                batch=config.batch,
                paths=folder,
                digest=digest,
                writer=writer,
                stage=parts,
            )
            set_aside += record.set_aside
            parts.end(len(record.set_aside))
    return TaskOutcome(units_done=len(ctx.units), set_aside=tuple(set_aside))


def _pixels(source: Source, reader: Reader) -> Pixels:
    snapshot, bound = source.snapshot, source.binding
    return Pixels(
        reader=reader,
        table=snapshot.table,
        dtype=np.dtype(snapshot.dtype),
        num_channels=len(snapshot.channels),
        channel_index=match_channels(snapshot.channels, bound.channels, bound.store),
        crop_px=bound.crop_px,
    )


def _baseline_bindings(config: EmbedConfig, source: Source) -> dict[str, Binding]:
    """What each baseline's folder is bound to: no checkpoint, but what takes its place."""
    bound, model = source.binding, identifying_fields(source.meta.model)
    drawn = digest_of(UNTRAINED, {"model": model, "channels": bound.channels, "seed": config.seed}, [])
    num_statistics = len(bound.channels) * IntensityStatistics.PER_CHANNEL
    digest = digest_of(INTENSITY, {"channels": bound.channels, "scale": source.scale}, [])
    return {
        UNTRAINED: replace(bound, source=UNTRAINED, weights=MODEL, checkpoint_digest=drawn),
        INTENSITY: replace(
            bound,
            source=INTENSITY,
            weights=MODEL,
            checkpoint_digest=digest,
            block=0,
            pooling="mean",
            num_features=num_statistics,
        ),
    }


def _bind_all(config: EmbedConfig, source: Source, folder: EmbeddingsPaths, *, only_look: bool = False) -> None:
    """Bind the folder and those of the baselines.  The checkpoint's comes last: only it makes a folder one of embeddings.

    only_look: refuse what is bound to something else, and bind nothing.
    """
    act = check if only_look else bind
    bindings = _baseline_bindings(config, source)
    for name in config.baselines:
        act(folder.baseline(name), bindings[name], new=config.new)
    act(folder, source.binding, new=config.new)


def _device(config: EmbedConfig) -> torch.device:
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("embed: device=cuda: torch sees no GPU here; use device=cpu or auto")
    use_gpu = config.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")


def _encoders(config: EmbedConfig, source: Source) -> dict[str, CropEncoder]:
    """The checkpoint's encoder and the baselines, by source."""
    from phenomhpc.embed.encode import ModelEncoder
    from phenomhpc.models.checkpoint import load_encoder
    from phenomhpc.models.mae import build_mae

    device, meta = _device(config), source.meta
    model, _ = load_encoder(source.checkpoint, device, config.weights)

    def vit(model: MaskedAutoencoder) -> ModelEncoder:
        return ModelEncoder(
            model, source.scale, device=device, precision=config.precision, block=config.block, pooling=config.pooling
        )

    makers: Mapping[str, Callable[[], CropEncoder]] = {
        UNTRAINED: lambda: vit(build_mae(len(meta.channels), seed=config.seed, **meta.model)),
        INTENSITY: lambda: IntensityStatistics(source.scale),
    }
    return {CHECKPOINT: vit(model), **{name: makers[name]() for name in config.baselines}}


def finish(config: EmbedConfig, paths: RunPaths, progress: Progress) -> Summary:
    """Prove completeness: every well of the snapshot is there exactly once, embedded or named with its reason.

    Raises WorkError naming a plate that is not done, a well that is missing, or too large a share of wells set aside.
    """
    source = Source.open(config)
    folder = embeddings_folder(config, paths)
    _bind_all(
        config, source, folder
    )  # nothing may have been left to do, under another snapshot than the one it was bound to
    set_aside: list[tuple[str, str]] = []
    num_wells = 0
    for plate in source.snapshot.plates:
        if not is_done(folder, plate, source.digest(config, plate)):
            raise WorkError(f"embed: plate {plate} is not done in {folder.root}; run again to go on")
        expected = source.wells(plate).metadata["well"].to_list()
        table = pl.read_parquet(folder.table(plate), columns=["well", "status"])
        if table["well"].to_list() != expected:
            odd = sorted(set(expected) ^ set(table["well"])) or ["the order of the wells"]
            raise WorkError(
                f"embed: {folder.table(plate)} does not hold each well once ({odd[0]}); remove it and run again"
            )
        missing = table.filter(pl.col("status") != OK)
        set_aside += [(f"{plate}/{well}", status) for well, status in missing.select("well", "status").rows()]
        num_wells += table.height
    if len(set_aside) > config.max_set_aside * num_wells:
        raise WorkError(
            f"embed: {len(set_aside)} of {num_wells} wells have no embedding, more than max_set_aside="
            f"{config.max_set_aside:g} allows; the first is {set_aside[0][0]} ({set_aside[0][1]})"
        )
    done = num_wells - len(set_aside)
    text = f"{done} wells of {len(source.snapshot.plates)} plates embedded in {folder.root}, {len(set_aside)} without pixels"
    return Summary(text=text, set_aside=tuple(set_aside))

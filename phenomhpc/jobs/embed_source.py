"""What a run of embedding agrees on: the pixels, the encoder, how it is applied, and what the folder is bound to by it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from phenomhpc.config import EmbedConfig
from phenomhpc.embed.channels import match_channels
from phenomhpc.embed.feeding import Pixels
from phenomhpc.embed.folder import COMPILED, Binding, EmbeddingsPaths, bind, check
from phenomhpc.embed.unit import CHECKPOINT
from phenomhpc.embed.wells import Placing, PlateWells, plan_wells
from phenomhpc.errors import UsageError
from phenomhpc.models.checkpoint import CheckpointMeta, checkpoint_digest, read_meta
from phenomhpc.models.intensity import IntensityStatistics
from phenomhpc.models.kinds import encoder_shape, identifying_fields, require_block, takes_any_channels
from phenomhpc.models.weights import EMA, MODEL, choose_weights, is_average
from phenomhpc.runs import RunPaths, digest_of
from phenomhpc.store import Snapshot, open_store
from phenomhpc.store.light import APPLY, light_digest
from phenomhpc.store.litreader import Reader, require_light
from phenomhpc.train.named import named_checkpoint

UNTRAINED = "untrained"
INTENSITY = "intensity"
MAX_READ_THREADS = 8


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
        """Raises UsageError for a store, snapshot, checkpoint, channel or block that is not there, or a setting without use."""
        if config.crops_per_field is not None and config.crops == "tiled":
            raise UsageError(
                f"embed: crops_per_field={config.crops_per_field}: of random crops; with crops=tiled there are as many as fit"
            )
        if config.onnx is not None and config.backend != "onnx":
            raise UsageError(f"embed: onnx={config.onnx}: has no use without backend=onnx")
        store = open_store(config.store)
        snapshot = Snapshot.open(store, config.snapshot)
        checkpoint = named_checkpoint(config.checkpoint, Path(config.runs))
        meta = choose_weights(checkpoint, read_meta(checkpoint), config.weights)
        channels = choose_channels(config.channels, meta, checkpoint)
        match_channels(snapshot.channels, channels, config.store)
        if meta.illumination == APPLY:
            require_light(snapshot)
        shape = encoder_shape(meta.model, len(channels), pooling=config.pooling, block=config.block)
        block = shape.num_blocks if config.block is None else config.block
        binding = Binding(
            source=CHECKPOINT,
            checkpoint=str(checkpoint),
            weights=EMA if is_average(meta) else MODEL,
            checkpoint_digest=checkpoint_digest(checkpoint, config.weights),
            store=config.store,
            snapshot_digest=snapshot.digest,
            block=block,
            pooling=config.pooling,
            dtype=config.precision,
            backend=COMPILED if config.compile else config.backend,
            channels=channels,
            crop_px=int(meta.model["crop_px"]),
            num_features=shape.num_features,
            blocks=choose_blocks(config.blocks, block, shape.num_blocks),
            level=config.level,
            placing=config.crops,
            crops_per_field=config.crops_per_field,
            crops_seed=config.seed if config.crops == "random" else None,
            batch=config.batch,
            seed=config.seed,
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
        bound = self.binding
        placing = Placing(
            crop_px=bound.crop_px,
            kind="random" if bound.placing == "random" else "tiled",
            per_field=bound.crops_per_field,
            seed=bound.crops_seed or 0,
        )
        return plan_wells(self._by_plate[plate], self.snapshot.table, placing)

    @cached_property
    def _by_plate(self) -> dict[str, pl.DataFrame]:
        """The fields of each plate."""
        parted = self.fields.partition_by("plate", as_dict=True)
        return {str(plate): rows for (plate,), rows in parted.items()}

    @property
    def blocks(self) -> tuple[int, ...]:
        """Of the encoder, in the order in which their vectors come: the folder's own, then the further ones."""
        return (self.binding.block, *self.binding.blocks)

    def pixels(self, config: EmbedConfig, reader: Reader) -> Pixels:
        """The crops that the encoder sees."""
        snapshot, bound = self.snapshot, self.binding
        return Pixels(
            reader=reader,
            table=snapshot.table,
            dtype=np.dtype(snapshot.dtype),
            num_channels=len(snapshot.channels),
            channel_index=match_channels(snapshot.channels, bound.channels, bound.store),
            crop_px=bound.crop_px,
            threads=config.read_threads or min(MAX_READ_THREADS, len(os.sched_getaffinity(0))),
        )

    def digest(self, config: EmbedConfig, plate: str) -> str:
        """What decides a plate's result: the encoder and how it is applied, the batch shape, the plate's own fields.

        Not the snapshot as a whole: a plate that another snapshot holds unchanged stays done (`--new`).
        """
        bound = self.binding
        settings: dict[str, Any] = {
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
        # What came later is left out where it is as it was before: plates that were done stay done.
        if bound.blocks:
            settings["blocks"] = list(bound.blocks)
        if bound.level != "well":
            settings["level"] = bound.level
        if bound.placing == "random":
            settings["crops"] = [bound.crops_per_field, bound.crops_seed]
        if self.meta.illumination == APPLY:
            settings["light"] = light_digest(self.snapshot.store.paths, plate)
        fields = self._by_plate[plate].drop("field_no", "sources").sort("field_index")
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


def choose_blocks(asked: Sequence[int | str], own: int, num_blocks: int) -> tuple[int, ...]:
    """The further blocks, ascending: without the folder's own.  Raises UsageError for one that there is not."""
    numbers = set(range(1, num_blocks + 1)) if "all" in asked else {require_block(int(n), num_blocks) for n in asked}
    return tuple(sorted(numbers - {own}))


def embeddings_folder(config: EmbedConfig, paths: RunPaths) -> EmbeddingsPaths:
    """Where the embeddings go: --out, or RUN/embeddings."""
    return EmbeddingsPaths(Path(config.out) if config.out else paths.embeddings)


def baseline_bindings(config: EmbedConfig, source: Source) -> dict[str, Binding]:
    """What each baseline's folder is bound to: no checkpoint, but what takes its place."""
    bound, model = source.binding, identifying_fields(source.meta.model)
    drawn = digest_of(UNTRAINED, {"model": model, "channels": bound.channels, "seed": config.seed}, [])
    num_statistics = len(bound.channels) * IntensityStatistics.PER_CHANNEL
    digest = digest_of(INTENSITY, {"channels": bound.channels, "scale": source.scale}, [])
    plain = replace(bound, weights=MODEL, blocks=(), level="well", backend="torch")
    return {
        UNTRAINED: replace(plain, source=UNTRAINED, checkpoint_digest=drawn),
        INTENSITY: replace(
            plain, source=INTENSITY, checkpoint_digest=digest, block=0, pooling="mean", num_features=num_statistics
        ),
    }


def bindings(config: EmbedConfig, source: Source, folder: EmbeddingsPaths) -> list[tuple[EmbeddingsPaths, Binding]]:
    """Every folder below this one and what it is bound to, the folder itself last: only that makes it one of embeddings."""
    bound = source.binding
    baselines = baseline_bindings(config, source)
    found = [(folder.baseline(name), baselines[name]) for name in config.baselines]
    for block in bound.blocks:
        shape = encoder_shape(source.meta.model, len(bound.channels), pooling=bound.pooling, block=block)
        found.append((folder.block(block), replace(bound, block=block, blocks=(), num_features=shape.num_features)))
    if bound.level == "crop":
        found.append((folder.crops, bound))
    return [*found, (folder, bound)]


def bind_all(config: EmbedConfig, source: Source, folder: EmbeddingsPaths, *, only_look: bool = False) -> None:
    """Bind a folder and those below it.  only_look: refuse what is bound to something else, and bind nothing."""
    act = check if only_look else bind
    # First of all look: refused is the whole, with the folder's own words.
    check(folder, source.binding, new=config.new)
    for paths, binding in bindings(config, source, folder):
        act(paths, binding, new=config.new)

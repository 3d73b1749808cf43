"""Every well of a store through the encoder of a checkpoint: one unit per plate.

Beside the checkpoint, and from the same pixels in the same pass, baselines: the same architecture untrained, and the statistics
of the pixels.  The folder of the embeddings is bound to what made them (embed/folder.py); at the end every well of the snapshot is
proved to be there (embed/proof.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phenomhpc.config import EmbedConfig
from phenomhpc.embed.folder import EmbeddingsPaths, read_binding
from phenomhpc.embed.proof import Proof, prove, publish
from phenomhpc.embed.unit import Writer, embed_unit, is_done
from phenomhpc.errors import StopRequested, UsageError, WorkError
from phenomhpc.jobs.base import COUNTED, ArrayPlan, Summary, TaskOutcome
from phenomhpc.jobs.embed_source import UNTRAINED, Source, bind_all, embeddings_folder
from phenomhpc.jobs.parts import Parts
from phenomhpc.progress import Progress
from phenomhpc.runs import RunPaths, TaskContext, Unit
from phenomhpc.store.litreader import open_pixels

# For packing only: what a crop costs beside a fixed share of a plate, in seconds of a CPU core.
CROP_COST_S = 0.01
BYTES_PER_FEATURE = 4


def plan(config: EmbedConfig, paths: RunPaths) -> ArrayPlan:
    """One unit per plate that is not done yet.  Writes nothing; a wrong --out is refused before anything starts."""
    source = Source.open(config)
    folder = embeddings_folder(config, paths)
    bind_all(config, source, folder, only_look=True)
    units: list[Unit] = []
    num_wells = num_crops = 0
    for plate in source.snapshot.plates:
        wells = source.wells(plate)
        digest = source.digest(config, plate)
        if not is_done(folder, plate, digest):
            crops = int(wells.num_crops.sum())
            num_wells += wells.num_wells
            num_crops += crops
            units.append(
                Unit(unit_id=plate, kind="embed", plate=plate, count=crops, cost_s=crops * CROP_COST_S, digest=digest)
            )
    rows = num_wells * (len(source.blocks) + (UNTRAINED in config.baselines)) + num_crops * (config.level == "crop")
    return ArrayPlan(
        units=tuple(units),
        num_done=len(source.snapshot.plates) - len(units),
        noun="plates",
        output_bytes=rows * source.binding.num_features * BYTES_PER_FEATURE,
    )


def workers(config: EmbedConfig, units: Sequence[Unit]) -> int:
    """One process: torch spreads over the cores."""
    return 1


def run(config: EmbedConfig, ctx: TaskContext) -> TaskOutcome:
    """Embed the plates of `ctx.units`, each committed by itself.  Raises StopRequested between plates when asked to leave."""
    from phenomhpc.jobs.embed_encoders import make_encoders  # with torch

    source = Source.open(config)
    folder = embeddings_folder(config, ctx.paths)
    bind_all(config, source, folder, only_look=True)
    writer = Writer(attempt=ctx.attempt, task=ctx.task, token=ctx.token, check_fence=ctx.check_fence)
    set_aside: list[tuple[str, str]] = []
    with (
        open_pixels(source.snapshot, source.meta.illumination) as reader,
        ctx.progress.stage("embed", sum(unit.count for unit in ctx.units), COUNTED["embed"]) as stage,
    ):
        pixels = source.pixels(config, reader)
        encoders = make_encoders(config, source, pixels, ctx)
        bind_all(config, source, folder)  # not before the backend has passed its gate
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
                pixels=pixels,
                encoders=encoders,
                batch=config.batch,
                paths=folder,
                digest=digest,
                writer=writer,
                stage=parts,
                blocks=source.binding.blocks,
                crops=config.level == "crop",
            )
            set_aside += record.set_aside
            parts.end(len(record.set_aside))
    return TaskOutcome(units_done=len(ctx.units), set_aside=tuple(set_aside))


def finish(config: EmbedConfig, paths: RunPaths, progress: Progress) -> Summary:
    """Prove completeness: every well of the snapshot is there exactly once, embedded or named with its reason.

    Raises WorkError naming a plate that is not done, a well that is missing, or too large a share of wells set aside.
    """
    source = Source.open(config)
    folder = embeddings_folder(config, paths)
    # Nothing may have been left to do, under another snapshot than the one it was bound to.
    bind_all(config, source, folder)
    proof = prove_all(config, source, folder, progress, whole=False)
    publish(folder, proof)
    if len(proof.missing) > config.max_set_aside * proof.num_wells:
        well, reason = proof.missing[0]
        raise WorkError(
            f"embed: {len(proof.missing)} of {proof.num_wells} wells have no embedding, more than max_set_aside="
            f"{config.max_set_aside:g} allows; the first is {well} ({reason})"
        )
    text = (
        f"{proof.num_embedded} wells of {proof.num_plates} plates embedded in {folder.root}, "
        f"{len(proof.missing)} without pixels"
    )
    return Summary(text=text, set_aside=proof.missing)


def prove_all(
    config: EmbedConfig, source: Source, folder: EmbeddingsPaths, progress: Progress, *, whole: bool
) -> Proof:
    """The proof of the folder as it is.  whole: every byte is read back.  Raises WorkError naming what is not as it must be."""
    plates = source.snapshot.plates
    for plate in plates:
        if not is_done(folder, plate, source.digest(config, plate)):
            raise WorkError(f"embed: plate {plate} is not done in {folder.root}; run again to go on")
    with progress.stage("prove", len(plates), "plates") as stage:
        return prove(
            folder, source.binding, plates, source.wells, baselines=config.baselines, whole=whole, advance=stage.advance
        )


def check_embeddings(config: EmbedConfig, progress: Progress) -> Summary:
    """`embed --check`: read config.out back and hold it against the store.  Writes nothing.

    The batch and the seed are those that the folder was made with.  Raises as `prove_all` does, UsageError for other settings.
    """
    folder = EmbeddingsPaths(Path(str(config.out)))
    bound = read_binding(folder)
    if bound is None:
        raise WorkError(f"embed: {folder.root}: holds no embeddings yet; the same command without --check makes them")
    told = {"batch": bound.batch, "seed": bound.seed}
    config = config.model_copy(update={name: value for name, value in told.items() if value is not None})
    source = Source.open(config)
    bind_all(config, source, folder, only_look=True)
    proof = prove_all(config, source, folder, progress, whole=True)
    text = (
        f"complete: each of {proof.num_wells} wells of {proof.num_plates} plates once in {proof.num_tables} tables, "
        f"{proof.num_embedded} embedded, {len(proof.missing)} without pixels; checkpoint {proof.checkpoint_digest[:12]}, "
        f"snapshot {proof.snapshot_digest[:12]}"
    )
    return Summary(text=text, set_aside=proof.missing)

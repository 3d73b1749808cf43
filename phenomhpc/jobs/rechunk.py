"""rechunk: a copy of a store in another codec, chunk edge or shard size; a unit per shard of the copy.

Completion records in the copy decide what is done; a shard of the source that was written anew is copied again.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from phenomhpc.config.stores import RechunkConfig
from phenomhpc.errors import DamagedInputError, StopRequested, UsageError, WorkError
from phenomhpc.jobs.base import COUNTED, ArrayPlan, Summary, TaskOutcome
from phenomhpc.jobs.parts import Parts
from phenomhpc.jobs.unwritable import unwritable
from phenomhpc.runs import Unit
from phenomhpc.store.carry import carry_plate, carry_store
from phenomhpc.store.convert import Work
from phenomhpc.store.layout import StorePaths
from phenomhpc.store.origin import COPY, origin_of, refuse_cache, refuse_wrong_place, write_origin
from phenomhpc.store.rechunk import (
    KIND,
    PlateCopy,
    attributes_of,
    copied_plates,
    copy_shard,
    copy_spec,
    field_bytes,
    refuse_other_spec,
)
from phenomhpc.store.shards import write_array_metadata
from phenomhpc.store.spec import DatasetSpec, Store, create_store, open_store, refuse_foreign_folder, shuffle_for
from phenomhpc.store.wholefields import DamagedField

if TYPE_CHECKING:
    from phenomhpc.progress import Progress
    from phenomhpc.runs import RunPaths, TaskContext

# Stored over raw bytes of a compressed copy, for the estimate of the space needed only; as of a conversion.
EXPECTED_RATIO = 0.65


def plan(config: RechunkConfig, paths: RunPaths) -> ArrayPlan:
    """The shards of the copy still to be written.  Writes nothing; a target that cannot be one is refused."""
    source = _source(config)
    target, spec = _target(config, source)
    units: list[Unit] = []
    num_done = raw_bytes = 0
    for copy in _plates(source, target, spec):
        for shard in copy.ready():
            if copy.is_done(shard):
                num_done += 1
                continue
            units.append(copy.unit(shard))
            raw_bytes += units[-1].count * field_bytes(copy.want, spec)
    if not units and not num_done:
        raise UsageError(
            f"store {config.store}: no shard of a copy could be made of what it holds yet; convert plates first"
        )
    output = raw_bytes if spec.codec is None else round(raw_bytes * EXPECTED_RATIO)
    return ArrayPlan(units=tuple(units), num_done=num_done, noun="shards", output_bytes=output)


def _source(config: RechunkConfig) -> Store:
    source = open_store(config.store)
    refuse_cache(source)
    return source


def _target(config: RechunkConfig, source: Store) -> tuple[StorePaths, DatasetSpec]:
    """Where the copy goes and what it holds.  Raises UsageError where it cannot."""
    target = StorePaths(Path(config.to).absolute())
    refuse_foreign_folder(target)
    refuse_wrong_place(source, config.to, COPY)
    codec = config.codec
    packed = (codec.cname, codec.level, shuffle_for(source.spec.dtype, codec.shuffle)) if codec.compress else None
    there = open_store(config.to).spec if target.dataset.is_file() else None
    spec = copy_spec(source, packed, config.chunk_px, config.shard_mb, there)
    if there is not None:
        refuse_other_spec(target, there, spec)
    return target, spec


def _plates(source: Store, target: StorePaths, spec: DatasetSpec) -> Iterator[PlateCopy]:
    for plate in copied_plates(source.paths):
        yield PlateCopy.of(source, target, spec, plate)


def workers(config: RechunkConfig, units: Sequence[Unit]) -> int:
    """Processes of a run here."""
    return config.workers or len(os.sched_getaffinity(0))


def run(config: RechunkConfig, ctx: TaskContext) -> TaskOutcome:
    """Copy this task's shards.

    Raises DamagedInputError naming the first field of the source that is damaged, when all others are copied; WorkError in one
    line when the copy cannot be written.
    """
    try:
        return _run(config, ctx)
    except OSError as error:
        raise unwritable(config.to, ctx.paths, error) from error


def _run(config: RechunkConfig, ctx: TaskContext) -> TaskOutcome:
    source = _source(config)
    target = _begun(config, source)
    work = Work(attempt=ctx.attempt, task=ctx.task, token=ctx.token, check_fence=ctx.check_fence, verify=config.verify)
    by_plate: dict[str, list[Unit]] = defaultdict(list)
    for unit in ctx.units:
        by_plate[str(unit.plate)].append(unit)
    damage: list[DamagedField] = []
    with ctx.progress.stage(KIND, sum(unit.count for unit in ctx.units), COUNTED[KIND]) as stage:
        parts = Parts(ctx, stage)
        for plate, units in sorted(by_plate.items()):
            copy = PlateCopy.of(source, target.paths, target.spec, plate)
            write_array_metadata(target.paths, plate, target.spec, copy.want, attributes_of(source.paths, plate))
            for unit in units:
                if ctx.stop_requested():
                    raise StopRequested(f"run {ctx.paths.id}: stopped as asked before {unit.unit_id}")
                parts.begin(unit)
                try:
                    record = copy_shard(copy, unit.first // copy.want.fields_per_shard, work, parts.part)
                except DamagedField as error:
                    stage.note(str(error))
                    damage.append(error)
                    continue
                parts.end(len(record.set_aside))
    if damage:
        more = f" (and {len(damage) - 1} more shard(s) of this task)" if len(damage) > 1 else ""
        raise DamagedInputError(
            f"{damage[0]}{more}; what is sound was copied: convert the plate again, or restore the shard, and run again to go on"
        )
    return TaskOutcome(units_done=len(ctx.units))


def _begun(config: RechunkConfig, source: Store) -> Store:
    """The target, made if it is not there yet."""
    _, spec = _target(config, source)
    target = create_store(config.to, spec)
    write_origin(target.paths, origin_of(source, COPY))
    return target


def finish(config: RechunkConfig, paths: RunPaths, progress: Progress) -> Summary:
    """Take over what is not pixels, and seal.  Raises WorkError when a shard is not done, naming its plate.

    Fields of the source that share a shard of the copy with fields that are not converted yet are set aside by plate.
    """
    from phenomhpc.store.seal import seal

    source = _source(config)
    target = _begun(config, source)
    waiting: list[tuple[str, str]] = []
    num_fields = num_plates = 0
    try:
        for copy in _plates(source, target.paths, target.spec):
            ready = copy.ready()
            undone = next((shard for shard in ready if not copy.is_done(shard)), None)
            if undone is not None:
                raise WorkError(f"rechunk: plate {copy.plate}, shard {undone} is not copied yet; run again to go on")
            if ready:
                write_array_metadata(
                    target.paths, copy.plate, target.spec, copy.want, attributes_of(source.paths, copy.plate)
                )
                carry_plate(copy, ready)
                num_plates += 1
            fields = sum(len(copy.want.fields_of(shard)) for shard in ready)
            there = sum(len(copy.have.fields_of(shard)) for shard in source.paths.converted_shards(copy.plate))
            num_fields += fields
            if there > fields:
                waiting.append(
                    (copy.plate, f"{there - fields} field(s) wait for others of their shard to be converted")
                )
        carry_store(source.paths, target.paths)
    except OSError as error:
        raise WorkError(f"store {config.to}: cannot be written ({error.strerror}); what was committed stays") from error
    snapshot = seal(target, progress)
    text = f"{num_fields} fields of {num_plates} plate(s) of {config.store} are in {config.to}, snapshot {snapshot.digest[:12]}"
    return Summary(text=text + _compared(source.paths, snapshot.digest, waiting), set_aside=tuple(waiting))


def _compared(source: StorePaths, digest: str, waiting: Sequence[object]) -> str:
    """The same content has the same digest: in words whether it has."""
    newest = source.latest.read_text().strip() if source.latest.is_file() else None
    if newest == digest:
        return ", the same as the source's"
    if waiting:
        return "; the source is not converted as a whole yet"
    return (
        f"; the source's newest is {newest[:12] if newest else 'none'}, made when it held something else (store seal)"
    )

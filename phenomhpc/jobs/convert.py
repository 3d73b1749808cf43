"""convert: raw plates to one Zarr store.  A unit is one shard; completion records in the store decide what is done."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from phenomhpc.config.models import ConvertConfig
from phenomhpc.errors import StopRequested, UsageError, WorkError
from phenomhpc.jobs.base import ArrayPlan, Summary, TaskOutcome
from phenomhpc.plates import Plate, PlateFolder, ReadOptions, UnreadableImage, find_plates, plane_shape, read_plate
from phenomhpc.runs import read_record
from phenomhpc.store.convert import ASSUMED_BYTES_PER_S, Work, convert_unit, plan_units, write_facts
from phenomhpc.store.layout import StorePaths
from phenomhpc.store.shards import Geometry, write_array_metadata
from phenomhpc.store.spec import DatasetSpec, create_store, fields_per_shard, open_store, refuse_difference, shuffle_for

if TYPE_CHECKING:
    from phenomhpc.progress import Progress
    from phenomhpc.runs import RunPaths, TaskContext, Unit

MEGABYTE = 1e6
# Stored over raw bytes, for the estimate of the space needed only: a plane of an Opera Phenix took 0.61, and the rest is margin.
EXPECTED_RATIO = 0.65


def _read(found: PlateFolder, config: ConvertConfig) -> Plate:
    return read_plate(found, read_options(config))


def read_options(config: ConvertConfig) -> ReadOptions:
    """What the settings say about how plates are read."""
    return ReadOptions(
        metadata=Path(config.metadata) if config.metadata else None,
        columns=dict(config.metadata_columns),
        plate_format=config.plate_format,
        z=config.z,
        timepoint=config.timepoint,
    )


@dataclass(frozen=True, kw_only=True)
class BadPlate:
    """A plate that is set aside as a whole, and why."""

    key: str
    reason: str


def _plates(config: ConvertConfig) -> Iterator[Plate | BadPlate]:
    """The plates, one at a time: one damaged index must not keep the others back.

    Raises UsageError at the end when none could be read; at once when it is not the plate's fault (--metadata).
    """
    sound, last = False, ""
    for found in find_plates(config.plates, config.layout):
        try:
            plate = _read(found, config)
            _size(plate)
        except UsageError as error:
            if _is_sound(found, config):
                raise
            last = str(error)
            yield BadPlate(key=found.key, reason=last)
        else:
            sound = True
            yield plate
    if not sound:
        raise UsageError(last)


def _is_sound(found: PlateFolder, config: ConvertConfig) -> bool:
    """Can the plate be read without the person's own table?"""
    try:
        _size(read_plate(found, replace(read_options(config), metadata=None)))
    except UsageError:
        return False
    return True


def _size(plate: Plate) -> tuple[int, int, str]:
    """Height, width and dtype of a plate: those of its first plane that can be read."""
    reason = "it lists no plane"
    for field in plate.fields:
        for plane in (plane for stack in field.planes for plane in stack if plane is not None):
            try:
                return plane_shape(plane)
            except UnreadableImage as error:
                reason = f"{plane.path.name}: {error}"
            except OSError as error:
                reason = f"{plane.path.name}: {error.strerror}"
    raise UsageError(f"plate {plate.root}: no plane of it can be read ({reason})")


def dataset_spec(config: ConvertConfig, plate: Plate, size: tuple[int, int, str]) -> DatasetSpec:
    """What a store of this plate and these settings holds."""
    height, width, dtype = size
    codec = config.codec
    shuffle = shuffle_for(dtype, codec.shuffle)
    itemsize = 1 if dtype == "uint8" else 2
    return DatasetSpec(
        channels=tuple(channel.name for channel in plate.channels),
        dtype=dtype,
        chunk_px=config.chunk_px,
        fields_per_shard=fields_per_shard(config.shard_mb, len(plate.channels), height, width, itemsize),
        codec=(codec.cname, codec.level, shuffle) if codec.compress else None,
    )


def _spec_and_geometry(config: ConvertConfig, plate: Plate, spec: DatasetSpec | None) -> tuple[DatasetSpec, Geometry]:
    """The store's spec (made from this plate when there is none yet) and the plate's geometry in it.

    Raises UsageError when the plate's channels or the settings do not fit the store.
    """
    size = _size(plate)
    wanted = dataset_spec(config, plate, size)
    if spec is None:
        spec = wanted
    refuse_difference(config.store, spec, wanted, f"plate {plate.key}")
    geometry = Geometry(
        num_fields=len(plate.fields),
        num_channels=len(spec.channels),
        height=size[0],
        width=size[1],
        chunk_px=spec.chunk_px,
        fields_per_shard=spec.fields_per_shard,
    )
    return spec, geometry


def _existing_spec(config: ConvertConfig) -> DatasetSpec | None:
    return open_store(config.store).spec if StorePaths(Path(config.store)).dataset.is_file() else None


def plan(config: ConvertConfig, paths: RunPaths) -> ArrayPlan:
    """The shards still to be written, over all plates.  Writes nothing."""
    store = StorePaths(Path(config.store).absolute())
    spec = _existing_spec(config)
    units: list[Unit] = []
    num_done = 0
    bad: list[tuple[str, str]] = []
    for plate in _plates(config):
        if isinstance(plate, BadPlate):
            bad.append((plate.key, plate.reason))
            continue
        spec, geometry = _spec_and_geometry(config, plate, spec)
        pending, done = plan_units(store, plate, spec, geometry)
        units += pending
        num_done += done
    raw_bytes = sum(unit.cost_s for unit in units) * ASSUMED_BYTES_PER_S
    share = EXPECTED_RATIO if config.codec.compress else 1.0
    return ArrayPlan(
        units=tuple(units),
        num_done=num_done,
        noun="shards",
        set_aside=tuple(bad),
        output_bytes=round(raw_bytes * share),
    )


def workers(config: ConvertConfig, units: Sequence[Unit]) -> int:
    """Processes of a run here."""
    return config.workers or len(os.sched_getaffinity(0))


def run(config: ConvertConfig, ctx: TaskContext) -> TaskOutcome:
    """Write this task's shards.  Raises WorkError in one line when the store cannot be written."""
    found = {folder.key: folder for folder in find_plates(config.plates, config.layout)}
    wanted = {unit.plate for unit in ctx.units}
    spec = _existing_spec(config)
    if spec is None:
        first = next(plate for plate in _plates(config) if isinstance(plate, Plate))
        spec = dataset_spec(config, first, _size(first))
    store = create_store(config.store, spec)
    set_aside: list[tuple[str, str]] = []
    total_bytes = 0
    try:
        with ctx.progress.stage("convert", sum(unit.count for unit in ctx.units), "fields") as stage:
            began = time.monotonic()
            for key in sorted(name for name in wanted if name):
                try:
                    plate = _read(found[key], config)
                    _size(plate)
                except UsageError as error:  # it was sound when the run was planned
                    set_aside += [ctx.set_aside(unit, str(error)) for unit in ctx.units if unit.plate == key]
                    continue
                _, geometry = _spec_and_geometry(config, plate, store.spec)
                write_array_metadata(store.paths, key, store.spec, geometry)
                for unit in ctx.units:
                    if unit.plate != key:
                        continue
                    if ctx.stop_requested():
                        raise StopRequested(f"run {ctx.paths.id}: stopped as asked before {unit.unit_id}")

                    def advance(num_bytes: int) -> None:
                        nonlocal total_bytes
                        total_bytes += num_bytes
                        stage.advance(1, raw_MB_per_s=total_bytes / MEGABYTE / max(time.monotonic() - began, 1e-9))

                    work = Work(attempt=ctx.attempt, task=ctx.task, token=ctx.token, check_fence=ctx.check_fence)
                    started = time.monotonic()
                    record = convert_unit(store, plate, geometry, unit, work, advance)
                    set_aside += record.set_aside
                    ctx.tell_unit(unit, time.monotonic() - started, len(record.set_aside))
    except OSError as error:
        what = error.strerror or str(error)
        hint = "; make room and run again to go on" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise WorkError(f"store {config.store}: cannot be written ({what}); what was committed stays{hint}") from error
    return TaskOutcome(units_done=len(ctx.units), set_aside=tuple(set_aside))


def finish(config: ConvertConfig, paths: RunPaths, progress: Progress) -> Summary:
    """Seal the store; tell what was set aside.  Raises WorkError above convert.max_set_aside, of the fields or of the plates."""
    from phenomhpc.store.seal import seal

    store = open_store(config.store)
    set_aside: list[tuple[str, str]] = []
    bad: list[tuple[str, str]] = []
    num_fields = num_plates = 0
    for plate in _plates(config):
        num_plates += 1
        if isinstance(plate, BadPlate):
            bad.append((plate.key, plate.reason))
            continue
        _, geometry = _spec_and_geometry(config, plate, store.spec)
        write_facts(store.paths, plate)
        for shard in range(geometry.num_shards):
            record = read_record(store.paths.record(plate.key, shard))
            if record is not None:
                set_aside += record.set_aside
                num_fields += len(record.rows)
    snapshot = seal(store, progress)
    share = max(len(set_aside) / max(num_fields, 1), len(bad) / num_plates)
    ok = num_fields - len(set_aside)
    text = f"{ok} of {num_fields} fields are in {config.store}, {len(snapshot.plates)} plate(s), snapshot {snapshot.digest[:12]}"
    text += f"; {len(bad)} plate(s) set aside" if bad else ""
    if share > config.max_set_aside:
        thing, reason = [*bad, *set_aside][0]
        whole = f"{len(bad)} plate(s) and {len(set_aside)}" if bad else str(len(set_aside))
        raise WorkError(
            f"convert: {whole} of {num_fields} fields were set aside, more than max_set_aside={config.max_set_aside:g} "
            f"allows (first: {thing}: {reason}); the rest is in {config.store}"
        )
    return Summary(text=text, set_aside=(*bad, *set_aside))

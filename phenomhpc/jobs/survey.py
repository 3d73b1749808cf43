"""What a conversion finds before it converts: of each plate its declaration, its size, and the shards that are to be written.

A run notes it once per plate, in its own folder.  Of a few plates that is done where the run is planned; of many it is a
stage of its own, whose tasks parse the indices, so that a login node only lists and sniffs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from phenomhpc.config.stores import ConvertConfig
from phenomhpc.errors import UsageError
from phenomhpc.plates import (
    Plate,
    PlateFolder,
    ReadOptions,
    UnreadableImage,
    find_plates,
    plane_name,
    plane_shape,
    read_plate,
)
from phenomhpc.plates.declared import dump_plate, load_head, load_plate
from phenomhpc.plates.illumination import profile
from phenomhpc.runs import RunPaths, commit
from phenomhpc.store.convert import pending_shards
from phenomhpc.store.fieldpixels import Treatment
from phenomhpc.store.layout import StorePaths
from phenomhpc.store.light import ESTIMATE, light_of, read_attribute
from phenomhpc.store.lookup import Lookup, find_lookup, read_lookup
from phenomhpc.store.shards import Geometry
from phenomhpc.store.spec import DatasetSpec, fields_per_shard, open_store, refuse_difference, shuffle_for

# So many plates are surveyed where the run is planned: a large index takes seconds.
SURVEYED_HERE = 8


def surveyed_here(config: ConvertConfig) -> int:
    """How many plates are looked at where the run is planned: none whose images would have to be decoded."""
    return 0 if config.dtype == "uint8" or config.illumination == ESTIMATE else SURVEYED_HERE


# (inode, mtime_ns, bytes) of a completion record; None: there was none.
Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """One plate.  reason: why it is set aside as a whole; the rest then says nothing.

    size: height, width, dtype of its planes.  num_annotated: wells of which a table says something.  pending: the shards
    to be written and what record each had; None: the store was not there yet, so all of them.
    """

    key: str
    reason: str | None = None
    channels: tuple[str, ...] = ()
    size: tuple[int, int, str] = (0, 0, "")
    num_fields: int = 0
    num_annotated: int = 0
    light: tuple[str | None, ...] = ()
    lookup: Lookup | None = None
    pending: tuple[tuple[int, Stamp], ...] | None = None


# -- one plate --------------------------------------------------------------------------------------------------------


def read_options(config: ConvertConfig) -> ReadOptions:
    """What the settings say about how plates are read."""
    return ReadOptions(
        metadata=Path(config.metadata) if config.metadata else None,
        columns=dict(config.metadata_columns),
        plate_format=config.plate_format,
        z=config.z,
        timepoint=config.timepoint,
    )


def treatment_of(config: ConvertConfig, survey: Survey) -> Treatment:
    """What is done with the plate's pixels."""
    return Treatment(qc=config.qc, light=survey.light, lookup=survey.lookup)


def _lookup(
    config: ConvertConfig, plate: Plate, size: tuple[int, int, str], light: tuple[str | None, ...]
) -> Lookup | None:
    """The look-up table of a plate that is stored with 8 bits: the one the store has, else a new one."""
    if config.dtype != "uint8" or size[2] == "uint8":
        return None
    known = read_lookup(StorePaths(Path(config.store).absolute()), plate.key)
    divided = (read_attribute(StorePaths(Path(config.store).absolute()), plate.key) or {}).get("applied", False)
    same = known is not None and known.percentiles == config.uint8_percentiles and divided == bool(light)
    if same:
        return known
    return find_lookup(plate, config.uint8_percentiles, [profile(text, size[0], size[1]) for text in light])


def survey_plate(found: PlateFolder, config: ConvertConfig, spec: DatasetSpec | None) -> tuple[Survey, Plate | None]:
    """Read a plate and compare it with the store, if there is one (spec); one that cannot be read is set aside.

    Raises UsageError when that is not the plate's fault but the person's table's.
    """
    options = read_options(config)
    try:
        plate = read_plate(found, options)
        size = size_of(plate)
        known = read_attribute(StorePaths(Path(config.store).absolute()), plate.key)
        light = light_of(plate, config.illumination, size[:2], known)
    except UsageError as error:
        if options.metadata is not None and _is_sound(found, options):
            raise
        return Survey(key=found.key, reason=str(error)), None
    survey = Survey(
        key=plate.key,
        channels=tuple(channel.name for channel in plate.channels),
        size=size,
        num_fields=len(plate.fields),
        num_annotated=len(plate.metadata),
        light=light,
        lookup=_lookup(config, plate, size, light),
    )
    if spec is None:
        return survey, plate
    try:
        geometry = geometry_of(config, survey, spec)
    except UsageError as error:
        return Survey(key=found.key, reason=str(error)), None
    paths = StorePaths(Path(config.store).absolute())
    pending = pending_shards(paths, plate, spec, geometry, treatment_of(config, survey))
    return replace(survey, pending=tuple((shard, _stamp(paths, plate.key, shard)) for shard in pending)), plate


def _is_sound(found: PlateFolder, options: ReadOptions) -> bool:
    """Can the plate be read without the person's own table?"""
    try:
        size_of(read_plate(found, replace(options, metadata=None)))
    except UsageError:
        return False
    return True


def size_of(plate: Plate) -> tuple[int, int, str]:
    """Height, width and dtype of a plate: those of its first plane that can be read."""
    reason = "it lists no plane"
    for field in plate.fields:
        for plane in (plane for stack in field.planes for plane in stack if plane is not None):
            try:
                return plane_shape(plane)
            except UnreadableImage as error:
                reason = f"{plane_name(plane)}: {error}"
            except OSError as error:
                reason = f"{plane_name(plane)}: {error.strerror}"
    raise UsageError(f"plate {plate.root}: no plane of it can be read ({reason})")


def _stamp(paths: StorePaths, key: str, shard: int) -> Stamp:
    try:
        status = paths.record(key, shard).stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


# -- the store it goes into -------------------------------------------------------------------------------------------


def existing_spec(config: ConvertConfig) -> DatasetSpec | None:
    """What the store holds, where there is one."""
    return open_store(config.store).spec if StorePaths(Path(config.store)).dataset.is_file() else None


def dataset_spec(config: ConvertConfig, survey: Survey) -> DatasetSpec:
    """What a store of this plate and these settings holds."""
    height, width, dtype = survey.size
    dtype = "uint8" if config.dtype == "uint8" else dtype
    itemsize = 1 if dtype == "uint8" else 2
    return DatasetSpec(
        channels=survey.channels,
        dtype=dtype,
        chunk_px=config.chunk_px,
        fields_per_shard=fields_per_shard(config.shard_mb, len(survey.channels), height, width, itemsize),
        codec=_codec(config, dtype),
    )


def spec_of(config: ConvertConfig, surveys: Sequence[Survey]) -> DatasetSpec | None:
    """The store's, or what the first sound plate makes it; None where there is none."""
    spec = existing_spec(config)
    first = next((survey for survey in surveys if survey.reason is None), None)
    return spec if spec is not None or first is None else dataset_spec(config, first)


def refuse_other_settings(config: ConvertConfig) -> None:
    """Raise UsageError where settings do not fit the store, before any plate is looked at."""
    spec = existing_spec(config)
    if spec is not None:
        if config.dtype == "uint8" and spec.dtype != "uint8":
            raise UsageError(f"store {config.store}: holds {spec.dtype}; --dtype uint8 needs another --store")
        wanted = replace(spec, chunk_px=config.chunk_px, codec=_codec(config, spec.dtype))
        refuse_difference(config.store, spec, wanted)


def _codec(config: ConvertConfig, dtype: str) -> tuple[str, int, str] | None:
    codec = config.codec
    return (codec.cname, codec.level, shuffle_for(dtype, codec.shuffle)) if codec.compress else None


def geometry_of(config: ConvertConfig, survey: Survey, spec: DatasetSpec) -> Geometry:
    """How the plate's array is cut.  Raises UsageError when its channels or the settings do not fit the store."""
    wanted = dataset_spec(config, survey)
    refuse_difference(config.store, spec, wanted, f"plate {survey.key}")
    height, width, _ = survey.size
    return Geometry(
        num_fields=survey.num_fields,
        num_channels=len(spec.channels),
        height=height,
        width=width,
        chunk_px=spec.chunk_px,
        fields_per_shard=min(spec.fields_per_shard, max(1, survey.num_fields)),
    )


def fitting(config: ConvertConfig, surveys: Sequence[Survey], spec: DatasetSpec | None) -> list[Survey]:
    """The surveys, those of plates that do not fit the store set aside."""

    def fits(survey: Survey) -> Survey:
        if survey.reason is None and spec is not None:
            try:
                geometry_of(config, survey, spec)
            except UsageError as error:
                return Survey(key=survey.key, reason=str(error))
        return survey

    return [fits(survey) for survey in surveys]


def shards_left(config: ConvertConfig, survey: Survey, geometry: Geometry) -> list[int]:
    """The pending shards that were not written since the survey: a new record is another file."""
    paths = StorePaths(Path(config.store).absolute())
    pending = survey.pending if survey.pending is not None else [(shard, None) for shard in range(geometry.num_shards)]
    return [shard for shard, before in pending if _stamp(paths, survey.key, shard) in (None, before)]


# -- all plates of a run ----------------------------------------------------------------------------------------------


def plates_of(config: ConvertConfig) -> list[PlateFolder]:
    """The plates asked for; with `new` those that the store does not hold whole."""
    found = find_plates(config.plates, config.layout)
    if not config.new:
        return found
    paths = StorePaths(Path(config.store).absolute())
    return [folder for folder in found if not paths.is_converted(folder.key)]


def write_survey(paths: RunPaths, survey: Survey, plate: Plate | None) -> None:
    """Note a plate in the run: its declaration first, the survey last."""
    if plate is not None:
        commit(paths.declared(survey.key), dump_plate(plate))
    commit(paths.survey(survey.key), json.dumps(asdict(survey)) + "\n")


def read_survey(paths: RunPaths, key: str) -> Survey | None:
    """What the run noted of a plate; None where it has not looked yet."""
    try:
        raw: dict[str, Any] = json.loads(paths.survey(key).read_bytes())
    except FileNotFoundError:
        return None
    raw["channels"], raw["size"], raw["light"] = tuple(raw["channels"]), tuple(raw["size"]), tuple(raw["light"])
    if raw["lookup"] is not None:
        raw["lookup"] = Lookup(**{name: tuple(values) for name, values in raw["lookup"].items()})
    if raw["pending"] is not None:
        raw["pending"] = tuple((shard, None if stamp is None else tuple(stamp)) for shard, stamp in raw["pending"])
    return Survey(**raw)


def declared_plate(paths: RunPaths, key: str) -> Plate:
    """A plate that the run has surveyed."""
    return load_plate(paths.declared(key).read_bytes())


def declared_head(paths: RunPaths, key: str) -> Plate:
    """The same without its fields."""
    return load_head(paths.declared(key).read_bytes())


def survey_here(paths: RunPaths, config: ConvertConfig) -> None:
    """Note the plates that the run has not looked at, where they are few."""
    found = plates_of(config)
    missing = [folder for folder in found if not paths.survey(folder.key).is_file()]
    if len(missing) <= surveyed_here(config):
        spec = existing_spec(config)
        for folder in missing:
            write_survey(paths, *survey_plate(folder, config, spec))


def survey_again(paths: RunPaths, config: ConvertConfig, keys: Iterable[str]) -> None:
    """Note those of these plates of which nothing is noted: somebody has removed it."""
    missing = {key for key in keys if not paths.survey(key).is_file()}
    if missing:
        spec = existing_spec(config)
        for folder in find_plates(config.plates, config.layout):
            if folder.key in missing:
                write_survey(paths, *survey_plate(folder, config, spec))


def surveys_of(paths: RunPaths, config: ConvertConfig) -> tuple[list[Survey], list[PlateFolder]]:
    """Surveys by key, and the plates that are too many to be looked at here.  Writes nothing."""
    surveys: list[Survey] = []
    missing: list[PlateFolder] = []
    for folder in plates_of(config):
        survey = read_survey(paths, folder.key)
        if survey is None:
            missing.append(folder)
        else:
            surveys.append(survey)
    if len(missing) <= surveyed_here(config):
        spec = existing_spec(config)
        surveys += [survey_plate(folder, config, spec)[0] for folder in missing]
        missing = []
    return sorted(surveys, key=lambda survey: survey.key), missing


def noted_surveys(paths: RunPaths, keys: Sequence[str] | None = None) -> Iterator[Survey]:
    """The surveys that the run has noted, by key; keys: only of these plates."""
    for key in paths.surveyed() if keys is None else keys:
        survey = read_survey(paths, key)
        if survey is not None:
            yield survey

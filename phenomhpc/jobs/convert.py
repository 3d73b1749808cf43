"""convert: raw plates to one Zarr store, in two stages.

survey    a unit per plate: its index is parsed, and what is to be written noted in the run (survey.py); of a few plates
          that is done where the run is planned
convert   a unit per shard; completion records in the store decide what is done
"""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from phenomhpc.config.stores import ConvertConfig
from phenomhpc.errors import StopRequested, UsageError, WorkError
from phenomhpc.jobs.base import COUNTED, ArrayPlan, Summary, TaskOutcome
from phenomhpc.jobs.parts import Parts
from phenomhpc.jobs.survey import (
    Survey,
    declared_head,
    declared_plate,
    existing_spec,
    fitting,
    geometry_of,
    noted_surveys,
    plates_of,
    refuse_other_settings,
    shards_left,
    spec_of,
    survey_again,
    survey_here,
    survey_plate,
    surveys_of,
    treatment_of,
    write_survey,
)
from phenomhpc.jobs.unwritable import unwritable
from phenomhpc.plates import PlateFolder
from phenomhpc.plates.metadata import PlateWells, unmatched
from phenomhpc.runs import Unit, read_record
from phenomhpc.store.annotate import wells_of, words_of, write_unmatched
from phenomhpc.store.convert import ASSUMED_BYTES_PER_S, KIND, Work, convert_unit, shard_unit, write_facts
from phenomhpc.store.light import attribute, keep_functions
from phenomhpc.store.lookup import ATTRIBUTE
from phenomhpc.store.shards import write_array_metadata
from phenomhpc.store.spec import DatasetSpec, Store, create_store, open_store

if TYPE_CHECKING:
    from phenomhpc.progress import Progress
    from phenomhpc.runs import RunPaths, TaskContext

SURVEY = "survey"
STAGES = (SURVEY, KIND)
# Stored over raw bytes, for the estimate of the space needed only: a plane of an Opera Phenix took 0.61, and the rest is margin.
EXPECTED_RATIO = 0.65
# A large index (17,280 images) takes about this long to parse and its images to be looked at; for packing only.
ASSUMED_SURVEY_S = 5.0


def begin(config: ConvertConfig, paths: RunPaths, *, anew: bool) -> None:
    """Survey the plates, where they are few.  anew: forget what the run found before, raw plates may have changed since."""
    if anew:
        shutil.rmtree(paths.surveys, ignore_errors=True)
    refuse_other_settings(config)
    survey_here(paths, config)


def plan(config: ConvertConfig, paths: RunPaths) -> ArrayPlan:
    """The plates still to be surveyed; when there are none, the shards still to be written.  Writes nothing."""
    refuse_other_settings(config)
    surveys, missing = surveys_of(paths, config)
    if missing:
        return _survey_plan(config, missing)
    spec = spec_of(config, surveys)
    surveys = fitting(config, surveys, spec)
    bad = tuple((survey.key, survey.reason) for survey in surveys if survey.reason is not None)
    if surveys and len(bad) == len(surveys):
        raise UsageError(bad[0][1])
    if config.metadata and surveys and not any(survey.num_annotated for survey in surveys):
        keys = ", ".join(survey.key for survey in surveys[:3])
        raise UsageError(
            f"--metadata {config.metadata}: says nothing of any of these plates ({keys}); see its columns for experiment, plate "
            "and well, and metadata_columns"
        )
    units: list[Unit] = []
    num_done = 0
    for survey in surveys:
        if survey.reason is None and spec is not None:
            geometry = geometry_of(config, survey, spec)
            left = shards_left(config, survey, geometry)
            units += [shard_unit(survey.key, spec, geometry, shard) for shard in left]
            num_done += geometry.num_shards - len(left)
    return ArrayPlan(
        units=tuple(units),
        num_done=num_done,
        noun="shards",
        set_aside=bad,
        output_bytes=_output_bytes(config, units),
    )


def _output_bytes(config: ConvertConfig, units: Sequence[Unit]) -> int:
    raw_bytes = sum(unit.cost_s for unit in units) * ASSUMED_BYTES_PER_S
    return round(raw_bytes * (EXPECTED_RATIO if config.codec.compress else 1.0))


def _survey_plan(config: ConvertConfig, missing: Sequence[PlateFolder]) -> ArrayPlan:
    """A unit per plate.  The first of them is looked at: what is wrong with all is told before anything is queued."""
    survey, _ = survey_plate(missing[0], config, existing_spec(config))
    output = None
    if survey.reason is None:
        spec = spec_of(config, [survey])
        assert spec is not None
        geometry = geometry_of(config, survey, spec)
        shards = [shard_unit(survey.key, spec, geometry, shard) for shard in range(geometry.num_shards)]
        output = _output_bytes(config, shards) * len(missing)
    units = tuple(
        Unit(unit_id=f"{found.key}/{SURVEY}", kind=SURVEY, plate=found.key, cost_s=ASSUMED_SURVEY_S)
        for found in missing
    )
    return ArrayPlan(units=units, noun="plates", output_bytes=output, following="their shards")


def workers(config: ConvertConfig, units: Sequence[Unit]) -> int:
    """Processes of a run here."""
    return config.workers or len(os.sched_getaffinity(0))


def run(config: ConvertConfig, ctx: TaskContext) -> TaskOutcome:
    """Do this task's plates or shards.  Raises WorkError in one line when the store or the run cannot be written."""
    surveys = tuple(unit for unit in ctx.units if unit.kind == SURVEY)
    try:
        return _survey(config, ctx, surveys) if surveys else _convert(config, ctx)
    except OSError as error:
        raise unwritable(config.store, ctx.paths, error) from error


def _survey(config: ConvertConfig, ctx: TaskContext, units: Sequence[Unit]) -> TaskOutcome:
    found = {folder.key: folder for folder in plates_of(config)}
    spec = existing_spec(config)
    bad: list[tuple[str, str]] = []
    with ctx.progress.stage(SURVEY, len(units), "plates") as stage:
        for unit in units:
            _leave_when_asked(ctx, unit)
            started = time.monotonic()
            key = str(unit.plate)
            if key in found:
                survey, plate = survey_plate(found[key], config, spec)
            else:
                survey, plate = Survey(key=key, reason=f"plate {key}: is gone since the run was planned"), None
            ctx.check_fence()
            write_survey(ctx.paths, survey, plate)
            if survey.reason is not None:
                bad.append((key, survey.reason))
            ctx.tell_unit(unit, time.monotonic() - started, int(survey.reason is not None))
            stage.advance()
    return TaskOutcome(units_done=len(units), set_aside=tuple(bad))


def _leave_when_asked(ctx: TaskContext, unit: Unit) -> None:
    if ctx.stop_requested():
        raise StopRequested(f"run {ctx.paths.id}: stopped as asked before {unit.unit_id}")


def _convert(config: ConvertConfig, ctx: TaskContext) -> TaskOutcome:
    by_plate: dict[str, list[Unit]] = defaultdict(list)
    for unit in ctx.units:
        by_plate[str(unit.plate)].append(unit)
    set_aside: list[tuple[str, str]] = []
    survey_again(ctx.paths, config, by_plate)
    store = create_store(config.store, _spec(config, ctx.paths)) if by_plate else None
    with ctx.progress.stage(KIND, sum(unit.count for unit in ctx.units), COUNTED[KIND]) as stage:
        parts = Parts(ctx, stage)
        for key, units in sorted(by_plate.items()):
            assert store is not None
            set_aside += _convert_plate(config, ctx, store, key, units, parts)
    return TaskOutcome(units_done=len(ctx.units), set_aside=tuple(set_aside))


def _spec(config: ConvertConfig, paths: RunPaths) -> DatasetSpec:
    spec = existing_spec(config) or spec_of(config, list(noted_surveys(paths)))
    if spec is None:
        raise WorkError(f"run {paths.id}: none of its plates could be read; start it again")
    return spec


def _convert_plate(
    config: ConvertConfig, ctx: TaskContext, store: Store, key: str, units: Sequence[Unit], parts: Parts
) -> list[tuple[str, str]]:
    survey = next(survey for survey in noted_surveys(ctx.paths, [key]))
    plate, geometry = declared_plate(ctx.paths, key), geometry_of(config, survey, store.spec)
    profiles = keep_functions(store.paths, plate, survey.light)
    attributes = attribute(config.illumination, profiles, applied=bool(survey.light))
    attributes |= {ATTRIBUTE: survey.lookup.attribute()} if survey.lookup else {}
    write_array_metadata(store.paths, key, store.spec, geometry, attributes)
    set_aside: list[tuple[str, str]] = []
    for unit in units:
        _leave_when_asked(ctx, unit)
        work = Work(
            attempt=ctx.attempt, task=ctx.task, token=ctx.token, check_fence=ctx.check_fence, verify=config.verify
        )
        parts.begin(unit)
        record = convert_unit(store, plate, geometry, unit, work, treatment_of(config, survey), parts.part)
        set_aside += record.set_aside
        parts.end(len(record.set_aside))
    return set_aside


def finish(config: ConvertConfig, paths: RunPaths, progress: Progress) -> Summary:
    """Seal the store; tell what was set aside.  Raises WorkError above convert.max_set_aside, of the fields or of the plates."""
    from phenomhpc.store.seal import seal

    noted = list(noted_surveys(paths))
    if not noted and config.new:
        return Summary(text=f"nothing is new: {config.store} holds every plate whole")
    surveys = fitting(config, noted, existing_spec(config))
    bad = [(survey.key, survey.reason) for survey in surveys if survey.reason is not None]
    if len(bad) == len(surveys):
        raise WorkError(bad[0][1] if bad else f"run {paths.id}: no plate was surveyed")
    store = open_store(config.store)
    set_aside: list[tuple[str, str]] = []
    num_fields = 0
    plates: list[PlateWells] = []
    strays: list[tuple[str, str]] = []
    for survey in surveys:
        if survey.reason is not None:
            continue
        geometry = geometry_of(config, survey, store.spec)
        head = declared_head(paths, survey.key)
        strays += [(f"{survey.key} {thing}", reason) for thing, reason in head.strays]
        write_facts(store.paths, head)
        wells: set[str] = set()
        for shard in range(geometry.num_shards):
            record = read_record(store.paths.record(survey.key, shard))
            if record is not None:
                set_aside += record.set_aside
                num_fields += len(record.rows)
                wells |= {row["well"] for row in record.rows}
        plates.append(wells_of(head, frozenset(wells)))
    snapshot = seal(store, progress)
    share = max(len(set_aside) / max(num_fields, 1), len(bad) / len(surveys))
    ok = num_fields - len(set_aside)
    text = f"{ok} of {num_fields} fields are in {config.store}, {len(snapshot.plates)} plate(s), snapshot {snapshot.digest[:12]}"
    text += f"; {len(bad)} plate(s) set aside" if bad else ""
    text += f"; {len(strays)} image(s) have no place" if strays else ""
    text += f"; {store.paths.set_aside} lists what is not usable" if set_aside or strays else ""
    if config.metadata:
        left = unmatched(Path(config.metadata), plates, config.metadata_columns)
        write_unmatched(store.paths, left)
        text += words_of(left, Path(config.metadata), store.paths)
    if share > config.max_set_aside:
        thing, reason = [*bad, *set_aside][0]
        whole = f"{len(bad)} plate(s) and {len(set_aside)}" if bad else str(len(set_aside))
        raise WorkError(
            f"convert: {whole} of {num_fields} fields were set aside, more than max_set_aside={config.max_set_aside:g} "
            f"allows (first: {thing}: {reason}); the rest is in {config.store}"
        )
    return Summary(text=text, set_aside=(*bad, *set_aside, *strays))

"""Which z planes and timepoints of a plate become fields: pure, from what its layout declares."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from phenomhpc.errors import UsageError
from phenomhpc.plates.types import Field, Plate, Stack, Well

ALL = "all"
PROJECTIONS = ("max", "focus")
# The z plane of a projection that the instrument made.
PROJECTED = "0"


def select(plate: Plate, z: str = ALL, timepoint: int | None = None) -> Plate:
    """The plate with the timepoint asked for, and with one z plane or with its stacks as one field each.

    Fields are numbered anew, in their order.  Raises UsageError naming what there is when nothing would be left.
    """
    fields = plate.fields
    if timepoint is not None:
        fields = tuple(field for field in fields if field.timepoint == timepoint)
        _refuse_nothing(plate, fields, f"--timepoint {timepoint}", {str(field.timepoint) for field in plate.fields})
    projection = ""
    if z in PROJECTIONS:
        fields, projection = _projected(fields, z), z
    elif z != ALL:
        names = {field.z for field in fields}
        fields = tuple(field for field in fields if field.z == z)
        _refuse_nothing(plate, fields, f"--z {z}", names, f" (or {ALL}, {', '.join(PROJECTIONS)})")
    numbered = tuple(field if field.index == at else replace(field, index=at) for at, field in enumerate(fields))
    return replace(plate, fields=numbered, projection=projection)


def _refuse_nothing(plate: Plate, fields: tuple[Field, ...], asked: str, there: set[str], other: str = "") -> None:
    if plate.fields and not fields:
        names = ", ".join(sorted(there, key=lambda name: (len(name), name))[:20])
        raise UsageError(f"plate {plate.root}: {asked}: it has no such one; it has {names or 'none'}{other}")


def _projected(fields: tuple[Field, ...], how: str) -> tuple[Field, ...]:
    """One field for the z planes of a site; a site with a plane that cannot be converted cannot be either."""
    groups: dict[tuple[Well, int, int], list[Field]] = defaultdict(list)
    for field in fields:
        groups[field.well, field.site, field.timepoint].append(field)
    merged = []
    for group in groups.values():
        stacks = tuple(_stack(group, channel) for channel in range(len(group[0].planes)))
        problem = next((field.problem for field in group if field.problem), None)
        merged.append(replace(group[0], planes=stacks, problem=problem, z=how))
    return tuple(merged)


def _stack(group: list[Field], channel: int) -> Stack:
    """A channel's z planes; the instrument's own projection ("0") only where it left no others."""
    slices = tuple(plane for field in group if field.z != PROJECTED for plane in field.planes[channel])
    return slices or tuple(plane for field in group for plane in field.planes[channel])

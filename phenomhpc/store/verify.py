"""verify: recompute what was recorded.  A flipped bit in a source, a shard, an index or a table is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from google_crc32c import value as crc32c

from phenomhpc.plates import UnreadableImage, named_plane, plane_bytes
from phenomhpc.progress import Progress, Stage
from phenomhpc.store.fields import read_fields
from phenomhpc.store.shardindex import build_shard_index
from phenomhpc.store.shards import Geometry, compressor_of, encoder_of, read_geometry, read_shard_index
from phenomhpc.store.spec import Store
from phenomhpc.store.sums import check_sums

# sha256, as hexadecimal digits.
DIGEST_LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One thing that is not what was recorded."""

    plate: str
    thing: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What verify found: fields and sources checked, sources that are no longer there, and all damage."""

    fields: int
    sources: int
    absent_sources: int
    damage: tuple[Damage, ...]


def verify(store: Store, progress: Progress, *, sources: bool = True) -> Verdict:
    """Check every stored field against its crc32c, every index against the shards, and every source against its sha256.

    Sources that are no longer where they were are counted, not damage: raw plates may be archived after conversion.
    """
    damage = [Damage(plate="", thing=name, reason=reason) for name, reason in check_sums(store.paths)]
    damage += _check_newest(store)
    num_fields = num_sources = num_absent = 0
    plates = [plate for plate in store.paths.converted_plates() if store.paths.fields(plate).is_file()]
    tables = _tables(store, plates, damage)
    with progress.stage("verify", sum(table.height for table in tables.values()), "fields") as stage:
        for plate, table in tables.items():
            rows = table.select("field_index", "well", "site", "status", "crc32c", "sources").to_dicts()
            damage += _check_pixels(store, plate, rows, stage)
            num_fields += len(rows)
            if sources:
                checked, absent, found = _check_sources(store, plate, rows)
                num_sources, num_absent = num_sources + checked, num_absent + absent
                damage += found
    return Verdict(fields=num_fields, sources=num_sources, absent_sources=num_absent, damage=tuple(damage))


def _tables(store: Store, plates: list[str], damage: list[Damage]) -> dict[str, Any]:
    """The fields tables that can be read; the others are damage, if the sums have not said so."""
    tables: dict[str, Any] = {}
    for plate in plates:
        try:
            tables[plate] = read_fields(store.paths, plate)
        except Exception as error:  # polars raises dozens of kinds for a damaged file
            damage.append(Damage(plate=plate, thing="fields table", reason=f"cannot be read ({_first(error)})"))
    return tables


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _check_newest(store: Store) -> list[Damage]:
    """LATEST, which changes with every seal, has to name a snapshot."""
    path = store.paths.latest
    if not path.is_file():
        return []
    name = path.read_bytes().decode("utf-8", "replace")
    whole = len(name) == DIGEST_LENGTH + 1 and name.endswith("\n")
    if whole and (store.paths.snapshot(name.strip()) / "snapshot.json").is_file():
        return []
    return [Damage(plate="", thing=str(path.relative_to(store.paths.root)), reason="names no snapshot; run store seal")]


def _check_pixels(store: Store, plate: str, rows: list[dict[str, Any]], stage: Stage) -> list[Damage]:
    try:
        geometry = read_geometry(store.paths, plate)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        return [Damage(plate=plate, thing="zarr.json", reason=f"cannot be read ({_first(error)})")]
    found: list[Damage] = []
    by_shard: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_shard.setdefault(row["field_index"] // geometry.fields_per_shard, []).append(row)
    for shard, members in by_shard.items():
        found += check_shard(store, plate, geometry, shard, members)
        stage.advance(len(members))
    if not found and _index_differs(store, plate, geometry):
        found.append(
            Damage(plate=plate, thing="shardindex", reason="differs from the shards; store seal writes it anew")
        )
    return found


def _index_differs(store: Store, plate: str, geometry: Geometry) -> bool:
    try:
        return store.paths.shard_index(plate).read_bytes() != build_shard_index(store.paths, plate, geometry)
    except (OSError, ValueError):
        return True


def check_shard(
    store: Store, plate: str, geometry: Geometry, shard: int, members: Sequence[Mapping[str, Any]]
) -> list[Damage]:
    """What is damaged in a shard file, whose fields are `members` (field_index, status, crc32c, well, site).

    Memory: two fields.
    """
    path = store.paths.shard(plate, shard)
    name = f"shard {shard}"
    try:
        index = read_shard_index(path, geometry)
    except (OSError, ValueError) as error:
        return [Damage(plate=plate, thing=name, reason=str(error))]
    present = index[..., 0] != np.uint64(2**64 - 1)
    end = int((index[..., 0] + index[..., 1])[present].max(initial=0))
    if end + geometry.index_bytes != path.stat().st_size:
        return [Damage(plate=plate, thing=name, reason="its length does not fit its index")]
    starts, sizes = index[..., 0][present], index[..., 1][present]
    if starts.size and (starts[0] != 0 or not np.array_equal(starts[1:], (starts + sizes)[:-1])):
        return [Damage(plate=plate, thing=name, reason="its chunks do not lie one behind the other")]
    found = []
    with path.open("rb") as file:
        for row in members:
            entries = index[row["field_index"] % geometry.fields_per_shard]
            reason = _check_field(store, geometry, file, entries, row)
            if reason:
                found.append(Damage(plate=plate, thing=f"{row['well']} site {row['site']}", reason=reason))
    return found


def _check_field(store: Store, geometry: Geometry, file: BinaryIO, entries: Any, row: Mapping[str, Any]) -> str | None:
    """Why a field is damaged, or None.  A set-aside field's slot holds zeros; its padding must be zero too."""
    if (entries[:, 0] == np.uint64(2**64 - 1)).any():
        return "its chunks are not in the shard's index"
    base = int(entries[0, 0])
    file.seek(base)
    data = memoryview(file.read(int(entries[-1, 0] + entries[-1, 1]) - base))
    compressor, encode, edge = compressor_of(store.spec), encoder_of(store.spec), geometry.chunk_px
    dtype = np.dtype(store.spec.dtype).newbyteorder("<")
    padded = np.empty((geometry.num_channels, geometry.chunk_rows * edge, geometry.chunk_columns * edge), dtype)
    for number, (offset, size) in enumerate(entries):
        block = data[int(offset) - base : int(offset) - base + int(size)]
        y, x = (part * edge for part in divmod(number, geometry.chunk_columns))
        try:
            raw = block if compressor is None else compressor.decode(bytes(block))
            chunk = np.frombuffer(raw, dtype).reshape(geometry.num_channels, edge, edge)
        except (RuntimeError, ValueError) as error:
            return f"chunk {number} cannot be decoded ({_first(error)})"
        padded[:, y : y + edge, x : x + edge] = chunk
        if compressor is not None and bytes(encode(np.ascontiguousarray(chunk))) != bytes(block):
            # The same pixels always give the same bytes, so a bit outside what blosc decodes shows here.
            return f"chunk {number} is not as it was written"
    pixels = padded[:, : geometry.height, : geometry.width]
    if padded.sum(dtype=np.uint64) != pixels.sum(dtype=np.uint64):
        return "the padding is not zero"
    if row["status"] != "ok":
        return "the slot of a set-aside field is not empty" if pixels.any() else None
    return None if crc32c(pixels.tobytes()) == row["crc32c"] else "the pixels do not match their checksum"


def _check_sources(store: Store, plate: str, rows: list[dict[str, Any]]) -> tuple[int, int, list[Damage]]:
    """Sources checked, sources absent, and those whose content is another."""
    facts_path = store.paths.facts(plate)
    if not facts_path.is_file():
        return 0, sum(len(row["sources"]) for row in rows), []
    try:
        said = json.loads(facts_path.read_bytes())["root"]
        if said is None:  # a copy of a store that did not know either
            return 0, sum(len(row["sources"]) for row in rows), []
        root = Path(said)
    except (ValueError, KeyError, TypeError) as error:
        return 0, 0, [Damage(plate=plate, thing="plate.json", reason=f"cannot be read ({_first(error)})")]
    checked, absent, found = 0, 0, []
    for row in rows:
        for source in row["sources"]:
            plane = named_plane(source["path"], root)
            if not plane.path.exists():
                absent += 1
                continue
            checked += 1
            thing = str(root / source["path"])
            try:
                same = hashlib.sha256(plane_bytes(plane)).hexdigest() == source["sha256"]
            except OSError as error:
                found.append(Damage(plate=plate, thing=thing, reason=f"cannot be read ({error.strerror})"))
                continue
            except UnreadableImage as error:
                found.append(Damage(plate=plate, thing=thing, reason=f"the source {error}"))
                continue
            if not same:
                found.append(Damage(plate=plate, thing=thing, reason="the source is not what was converted"))
    return checked, absent, found

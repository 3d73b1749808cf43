"""verify: recompute what was recorded.  A flipped bit in a source, a shard, an index or a table is named."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google_crc32c import value as crc32c

from phenomhpc.progress import Progress, Stage
from phenomhpc.store.fields import read_fields
from phenomhpc.store.shardindex import build_shard_index
from phenomhpc.store.shards import Geometry, compressor_of, read_geometry, read_shard_index
from phenomhpc.store.spec import Store


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
    damage: list[Damage] = []
    num_fields = num_sources = num_absent = 0
    plates = [plate for plate in store.paths.converted_plates() if store.paths.fields(plate).is_file()]
    tables = {plate: read_fields(store.paths, plate) for plate in plates}
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


def _check_pixels(store: Store, plate: str, rows: list[dict[str, Any]], stage: Stage) -> list[Damage]:
    geometry = read_geometry(store.paths, plate)
    found: list[Damage] = []
    by_shard: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_shard.setdefault(row["field_index"] // geometry.fields_per_shard, []).append(row)
    for shard, members in by_shard.items():
        found += _check_shard(store, plate, geometry, shard, members)
        stage.advance(len(members))
    if not found and store.paths.shard_index(plate).read_bytes() != build_shard_index(store.paths, plate, geometry):
        found.append(
            Damage(plate=plate, thing="shardindex", reason="differs from the shards; store seal writes it anew")
        )
    return found


def _check_shard(
    store: Store, plate: str, geometry: Geometry, shard: int, members: list[dict[str, Any]]
) -> list[Damage]:
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
    found = []
    data = memoryview(path.read_bytes())
    for row in members:
        reason = _check_field(store, geometry, data, index[row["field_index"] % geometry.fields_per_shard], row)
        if reason:
            found.append(Damage(plate=plate, thing=f"{row['well']} site {row['site']}", reason=reason))
    return found


def _check_field(store: Store, geometry: Geometry, data: memoryview, entries: Any, row: dict[str, Any]) -> str | None:
    """Why a field is damaged, or None.  A set-aside field's slot holds zeros; its padding must be zero too."""
    compressor, edge = compressor_of(store.spec), geometry.chunk_px
    dtype = np.dtype(store.spec.dtype).newbyteorder("<")
    padded = np.empty((geometry.num_channels, geometry.chunk_rows * edge, geometry.chunk_columns * edge), dtype)
    for number, (offset, size) in enumerate(entries):
        block = data[int(offset) : int(offset) + int(size)]
        y, x = (part * edge for part in divmod(number, geometry.chunk_columns))
        try:
            raw = block if compressor is None else compressor.decode(bytes(block))
            chunk = np.frombuffer(raw, dtype).reshape(geometry.num_channels, edge, edge)
        except (RuntimeError, ValueError) as error:
            return f"chunk {number} cannot be decoded ({error})"
        padded[:, y : y + edge, x : x + edge] = chunk
        if compressor is not None and bytes(compressor.encode(np.ascontiguousarray(chunk))) != bytes(block):
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
    root = Path(json.loads(facts_path.read_bytes())["root"])
    checked, absent, found = 0, 0, []
    for row in rows:
        for source in row["sources"]:
            path = root / source["path"]
            if not path.is_file():
                absent += 1
                continue
            checked += 1
            if hashlib.sha256(path.read_bytes()).hexdigest() != source["sha256"]:
                found.append(Damage(plate=plate, thing=str(path), reason="the source is not what was converted"))
    return checked, absent, found

"""Every file name inside a store; no other code spells one.

STORE/
  dataset.json                          DatasetSpec, written once at creation
  origin.json                           of a copy or a cache: which store it was made from
  plates/PLATE.zarr/                    Zarr v3 group; array `images` (field, channel, y, x), one shard file per unit
  plates/PLATE.fields.parquet           one row per field, by seal
  plates/PLATE.annotations.json         metadata of wells that came later, by annotate
  plates/PLATE.light/                   functions of uneven light that lay in files of their own, f32, by digest
  plates/PLATE.shardindex               all shard indices of the plate, by seal, rebuildable
  snapshots/DIGEST/, snapshots/LATEST   immutable field lists; which one is newest
  .progress/PLATE/UNIT.json             completion records
  set_aside.csv, unmatched.csv          what is not usable and why; what a metadata table and the plates have not in common
  sums.json                             checksums of all of these but shards and their indices, by seal
  qc.html, qc-selected.html             what a person looks at, by qc: of all plates, of chosen ones; rebuildable, in no sum
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

PLATE_KEY = re.compile(r"^[A-Za-z0-9._-]+$")
_RECORD = re.compile(r"^\d+\.json$")


@dataclass(frozen=True)
class StorePaths:
    """Names inside one store."""

    root: Path

    @property
    def dataset(self) -> Path:
        return self.root / "dataset.json"

    @property
    def origin(self) -> Path:
        """Which store this one is a copy or a cache of; absent in a store of its own."""
        return self.root / "origin.json"

    @property
    def lock(self) -> Path:
        """Held (flock) by the process that fills a cache."""
        return self.root / ".lock"

    @property
    def sums(self) -> Path:
        return self.root / "sums.json"

    @property
    def plates(self) -> Path:
        return self.root / "plates"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def latest(self) -> Path:
        """Holds the digest of the newest snapshot."""
        return self.snapshots / "LATEST"

    @property
    def progress(self) -> Path:
        return self.root / ".progress"

    def plate(self, plate: str) -> Path:
        return self.plates / f"{plate}.zarr"

    def images(self, plate: str) -> Path:
        return self.plate(plate) / "images"

    def shard(self, plate: str, shard: int) -> Path:
        """File of a shard: default chunk key encoding, one shard along channel, y and x."""
        return self.images(plate) / "c" / str(shard) / "0" / "0" / "0"

    def fields(self, plate: str) -> Path:
        return self.plates / f"{plate}.fields.parquet"

    def annotations(self, plate: str) -> Path:
        """What a person's table said of the plate's wells after it was converted; it overrides what the raw plate said."""
        return self.plates / f"{plate}.annotations.json"

    def light(self, plate: str) -> Path:
        """Folder of the plate's functions of uneven light."""
        return self.plates / f"{plate}.light"

    @property
    def set_aside(self) -> Path:
        """Every field that is not usable and every image without a place, with the reason."""
        return self.root / "set_aside.csv"

    @property
    def unmatched(self) -> Path:
        """What the newest metadata table and the plates did not have in common."""
        return self.root / "unmatched.csv"

    def quality_page(self, *, selected: bool = False) -> Path:
        """The page on quality; a page of chosen plates never takes the place of that of all."""
        return self.root / ("qc-selected.html" if selected else "qc.html")

    def shard_index(self, plate: str) -> Path:
        return self.plates / f"{plate}.shardindex"

    def snapshot(self, digest: str) -> Path:
        return self.snapshots / digest

    def records(self, plate: str) -> Path:
        return self.progress / plate

    def record(self, plate: str, shard: int) -> Path:
        return self.records(plate) / f"{shard:05d}.json"

    def facts(self, plate: str) -> Path:
        """What the raw plate said beside its pixels: geometry of the plate, metadata per well."""
        return self.records(plate) / "plate.json"

    def is_converted(self, plate: str) -> bool:
        """Has the plate been sealed with all its shards?"""
        try:
            with (self.images(plate) / "zarr.json").open("rb") as file:
                raw = json.load(file)
            wanted = -(-raw["shape"][0] // raw["chunk_grid"]["configuration"]["chunk_shape"][0])
            shards = sum(1 for entry in (self.images(plate) / "c").iterdir() if entry.name.isdigit())
        except FileNotFoundError:
            return False
        records = self.records(plate)
        recorded = sum(1 for entry in records.iterdir() if entry.stem.isdigit()) if records.is_dir() else wanted
        return bool(shards == recorded == wanted and self.fields(plate).is_file())

    def converted_shards(self, plate: str) -> list[int]:
        """Shards that are whole, ascending: those with a record, or in a store without .progress, all that are there."""
        records = self.records(plate)
        if records.is_dir():
            numbers = sorted(int(entry.stem) for entry in records.iterdir() if _RECORD.match(entry.name))
        else:
            folder = self.images(plate) / "c"
            numbers = (
                sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.is_dir() else []
            )
        return [number for number in numbers if self.shard(plate, number).is_file()]

    def converted_plates(self) -> list[str]:
        """Keys of the plates that have an array, sorted."""
        if not self.plates.is_dir():
            return []
        return sorted(
            entry.name.removesuffix(".zarr") for entry in self.plates.iterdir() if entry.name.endswith(".zarr")
        )


def unit_id(plate: str, shard: int) -> str:
    """Name of the unit of conversion that owns a shard."""
    return f"{plate}/{shard:05d}"

"""Snapshots: the ordered list of usable fields of a store, immutable, named by its digest.

Training and embedding bind to one, so that a store may grow under a running job.  snapshots/DIGEST/ holds
  table.npy        structured, TABLE_DTYPE, one row per field of status ok; plates in key order, fields in array order
  fields.parquet   the plates' fields tables as they were, so that a filter on them selects the same fields for ever
  snapshot.json    plates, channels, dtype, scale, digests of table and fields, least height and width; written last
The digest covers all of it but the least sizes, which follow from the table; the pixels through each field's crc32c.
Corrected metadata make a new snapshot.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from phenomhpc.errors import UsageError
from phenomhpc.runs import canonical_json, commit
from phenomhpc.store.layout import StorePaths
from phenomhpc.store.spec import Store

if TYPE_CHECKING:
    import polars as pl

# plate: position in Snapshot.plates; field: index on the array's first axis; height, width in pixels; 24 bytes a field.
TABLE_DTYPE = np.dtype(
    [("plate", "<u4"), ("field", "<u4"), ("height", "<u4"), ("width", "<u4"), ("crc32c", "<u4"), ("reserved", "<u4")]
)
SCHEMA = 1
TABLE, FIELDS, DESCRIPTION = "table.npy", "fields.parquet", "snapshot.json"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """An opened snapshot.  `table` is mapped; `scale` f32 (C,) is what pixels are divided by before standardisation.

    smallest: least height and least width of the fields; None in what an older version has sealed: look at the table.
    """

    store: Store
    digest: str
    table: NDArray[np.void]
    plates: tuple[str, ...]
    channels: tuple[str, ...]
    dtype: str
    scale: NDArray[np.float32]
    smallest: tuple[int, int] | None = None

    @property
    def num_fields(self) -> int:
        return len(self.table)

    @classmethod
    def open(cls, store: Store, digest: str | None = None) -> Snapshot:
        """The snapshot of this digest (or an unambiguous beginning of it); the newest by default.  Raises UsageError."""
        paths = store.paths
        folder = paths.snapshot(_find(paths, digest))
        try:
            raw: dict[str, Any] = json.loads((folder / DESCRIPTION).read_bytes())
            table = np.load(folder / TABLE, mmap_mode="r", allow_pickle=False)
            if table.dtype != TABLE_DTYPE or len(table) != raw["num_fields"]:
                raise ValueError(f"{TABLE} has {len(table)} rows of {table.dtype}")
            return cls(
                store=store,
                digest=raw["digest"],
                # A plain array over the same mapping: memmap's own indexing is several times slower.
                table=np.asarray(table),
                plates=tuple(raw["plates"]),
                channels=tuple(raw["channels"]),
                dtype=raw["dtype"],
                scale=np.array(raw["scale"], dtype=np.float32),
                smallest=_pair(raw.get("smallest")),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"store {paths.root}: snapshot {folder.name} is damaged ({error}); remove its folder and run store seal"
            ) from error

    def fields(self) -> pl.DataFrame:
        """All fields of the snapshot's plates, set-aside ones too, with `field_no` (row of the table; null if not in it).

        The columns of DESIGN's fields.parquet as they were when sealed; `sources` is null (the plates' own tables have it).
        """
        return self._fields

    @cached_property
    def _fields(self) -> pl.DataFrame:
        import polars as pl
        from polars.exceptions import PolarsError

        path = self.store.paths.snapshot(self.digest) / FIELDS
        try:
            fields = pl.read_parquet(path.read_bytes())
        except (OSError, PolarsError) as error:
            raise UsageError(f"store {self.store.paths.root}: {path} cannot be read ({error})") from error
        own = pl.DataFrame(
            {
                "plate": [self.plates[number] for number in self.table["plate"]],
                "field_index": np.ascontiguousarray(self.table["field"]),
                "field_no": np.arange(self.num_fields, dtype=np.int64),
            },
            schema_overrides={"plate": pl.String, "field_index": pl.UInt32},
        )
        return fields.join(own, on=["plate", "field_index"], how="left", maintain_order="left")


def _pair(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    height, width = map(int, value)
    return height, width


def _find(paths: StorePaths, digest: str | None) -> str:
    if digest is None:
        try:
            return paths.latest.read_text().strip()
        except FileNotFoundError:
            raise UsageError(
                f"store {paths.root}: has no snapshot yet; run phenomhpc store seal {paths.root}"
            ) from None
    known = sorted(entry.name for entry in paths.snapshots.glob("*") if entry.is_dir())
    found = [name for name in known if name.startswith(digest)]
    if len(found) != 1:
        short = ", ".join(name[:12] for name in known[-5:]) or "none"
        raise UsageError(f"store {paths.root}: snapshot {digest} is not there or not unique; there are {short}")
    return found[0]


def write_snapshot(
    store: Store, plates: Sequence[str], table: NDArray[np.void], fields: pl.DataFrame, scale: NDArray[np.float32]
) -> str:
    """Commit a snapshot (its description last) and make it the newest; returns its digest.  The same content, no write.

    `fields`: the plates' tables, one behind the other.  When killed: the newest is the one before, or this one whole.
    """
    import polars as pl

    kept = fields.with_columns(pl.lit(None, fields.schema["sources"]).alias("sources"))
    content = {
        "schema": SCHEMA,
        "plates": list(plates),
        "channels": list(store.spec.channels),
        "dtype": store.spec.dtype,
        "scale": [float(value) for value in scale],
        "num_fields": len(table),
        "table_sha256": hashlib.sha256(table.tobytes()).hexdigest(),
        "fields_sha256": _fields_digest(kept),
    }
    digest = hashlib.sha256(canonical_json(content)).hexdigest()
    folder = store.paths.snapshot(digest)
    if not (folder / DESCRIPTION).is_file():
        buffer = io.BytesIO()
        np.save(buffer, table, allow_pickle=False)
        commit(folder / TABLE, buffer.getvalue())
        parquet = io.BytesIO()
        kept.write_parquet(parquet)
        commit(folder / FIELDS, parquet.getvalue())
        # Opening a snapshot of 10^8 fields must not read 2.4 GB of table for it.
        smallest = [int(table["height"].min()), int(table["width"].min())]
        described = {**content, "digest": digest, "smallest": smallest}
        commit(folder / DESCRIPTION, json.dumps(described, indent=2) + "\n")
    if not store.paths.latest.is_file() or store.paths.latest.read_text().strip() != digest:
        commit(store.paths.latest, digest + "\n")
    return digest


def _fields_digest(fields: pl.DataFrame) -> str:
    """Of names, types and values; not of Parquet's bytes, which differ between versions of its writer."""
    schema = [[name, str(dtype)] for name, dtype in fields.schema.items()]
    digest = hashlib.sha256(canonical_json(schema))
    digest.update(fields.write_ndjson().encode())
    return digest.hexdigest()

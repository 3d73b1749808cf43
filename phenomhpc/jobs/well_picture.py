"""A picture of a well: its channels side by side, for `store inspect --picture`."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from phenomhpc.errors import UsageError
from phenomhpc.plates import Well
from phenomhpc.runs import commit
from phenomhpc.store import ShardReader, Snapshot, Store

# Grey levels at these percentiles become black and white, or a bright speck would leave the rest dark.
DISPLAY_PERCENTILES = (0.5, 99.7)


def write_well_picture(store: Store, well: str | None, path: Path) -> Path:
    """PNG of the first field of `PLATE/WELL` (default: the store's first field), every channel in its own grey.

    Raises UsageError when the well has no usable field.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    snapshot = Snapshot.open(store)
    row = _row_of(snapshot, well)
    field_no = int(row["field_no"])
    size = snapshot.table[field_no]
    pixels = np.empty((len(snapshot.channels), int(size["height"]), int(size["width"])), snapshot.dtype)
    with ShardReader(store, snapshot) as reader:
        reader.read(field_no, 0, 0, pixels)
    columns = min(3, len(pixels))
    rows = -(-len(pixels) // columns)
    figure = Figure(figsize=(4 * columns, 4.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{row['plate']}  {row['well']}  site {row['site']}  {row['perturbation'] or ''}")
    for number, (plane, name) in enumerate(zip(pixels, snapshot.channels, strict=True)):
        axes = figure.add_subplot(rows, columns, number + 1)
        low, high = np.percentile(plane, DISPLAY_PERCENTILES)
        axes.imshow(plane, cmap="gray", vmin=low, vmax=max(high, low + 1))
        axes.set_title(f"{name}  [{low:.0f}, {high:.0f}]", fontsize=10)
        axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    commit(path, buffer.getvalue())
    return path


def _row_of(snapshot: Snapshot, well: str | None) -> dict[str, Any]:
    fields = snapshot.fields().filter(pl.col("field_no").is_not_null())
    if well is not None:
        plate, _, name = well.rpartition("/")
        with suppress(ValueError):  # b2 is B02
            name = Well.parse(name).name
        fields = fields.filter((pl.col("well") == name) & ((pl.col("plate") == plate) | pl.lit(not plate)))
    if not fields.height:
        usable = (
            snapshot.fields().filter(pl.col("field_no").is_not_null()).unique(["plate", "well"], maintain_order=True)
        )
        some = ", ".join(f"{row['plate']}/{row['well']}" for row in usable.head(3).to_dicts())
        raise UsageError(f"--well {well}: no usable field there; a well is PLATE/WELL, such as {some}")
    return fields.row(0, named=True)

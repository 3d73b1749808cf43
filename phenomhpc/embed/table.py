"""Embeddings as one table: ours, and anybody's Parquet of metadata and numeric features.

Ours is a folder of `PLATE.parquet` beside an `embeddings.json` (DESIGN 4); a foreign table is one Parquet file whose metadata
columns start with `Metadata_` (CellProfiler, pycytominer, JUMP) or bear RxRx3's names.  Both come out under the store's names,
so that what scores a map need not know where the features come from.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl

from phenomhpc.errors import UsageError

OK = "ok"
FEATURE = re.compile(r"feature_\d+$")
BINDING_NAME = "embeddings.json"
FOREIGN_PREFIX = "metadata_"

# The store's names of a well's metadata, in the order in which they are written.
METADATA = (
    "plate",
    "experiment",
    "batch",
    "well",
    "row",
    "column",
    "perturbation",
    "perturbation_type",
    "gene",
    "treatment",
    "smiles",
    "concentration_um",
    "cell_type",
    "is_control",
)
MEASURED = ("level", "crop_y", "crop_x", "num_crops", "status")
# Names others give to the same things, lower case, without the Metadata_ prefix.
ALIASES = {
    "experiment_name": "experiment",
    "address": "well",
    "well_position": "well",
    "symbol": "gene",
    "gene_symbol": "gene",
    "concentration": "concentration_um",
    "control": "is_control",
}


def feature_name(index: int) -> str:
    """Name of feature column `index` (0-based)."""
    return f"feature_{index:04d}"


def feature_columns(frame: pl.DataFrame) -> list[str]:
    """Names of the feature columns of `frame`, in its order.

    `feature_<digits>` columns where there are any; otherwise every numeric column that is no metadata.
    """
    ours = [name for name in frame.columns if FEATURE.match(name)]
    if ours:
        return ours
    known = {*METADATA, *MEASURED}
    return [
        name
        for name, dtype in frame.schema.items()
        if dtype.is_numeric() and name not in known and not name.startswith("meta_")
    ]


def read_embeddings(source: Path, *, missing: bool = False) -> pl.DataFrame:
    """Wells of an embeddings folder, or rows of one Parquet file: metadata columns first, then the features.

    source: a folder with `embeddings.json` (one of ours, or its baselines/NAME) or a Parquet file
    missing: keep wells without an embedding (null features); by default they are left out
    Raises UsageError where there is nothing to read, or no numeric feature column.
    """
    if source.is_dir():
        frame = _read_folder(source)
    elif source.is_file():
        frame = store_names(_read_parquet(source))
    else:
        raise UsageError(f"embeddings {source}: no such folder or Parquet file; `phenomhpc embed` makes one")
    features = feature_columns(frame)
    if not features:
        raise UsageError(f"embeddings {source}: no numeric feature column among {', '.join(frame.columns[:8])} ...")
    if not missing and "status" in frame.columns:
        frame = frame.filter(pl.col("status") == OK)
    return frame.select([name for name in frame.columns if name not in set(features)] + features)


def _read_folder(folder: Path) -> pl.DataFrame:
    binding = folder / BINDING_NAME
    if not binding.is_file():
        raise UsageError(f"embeddings {folder}: no {BINDING_NAME}; name a folder that `phenomhpc embed` wrote")
    json.loads(binding.read_bytes())
    tables = sorted(folder.glob("*.parquet"))
    if not tables:
        raise UsageError(f"embeddings {folder}: no plate finished yet; run `phenomhpc embed` again to go on")
    return pl.concat([_read_parquet(path) for path in tables], how="diagonal_relaxed")


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UsageError(f"embeddings {path}: no readable Parquet file ({error})") from error


def store_names(frame: pl.DataFrame) -> pl.DataFrame:
    """Metadata columns under the store's names, each name given once; every other Metadata_* becomes meta_*.

    A column that bears the name itself outranks one that bears an alias of it.
    """
    renamed: dict[str, str] = {}
    for name in sorted(frame.columns, key=lambda name: _bare(name) in ALIASES):
        target = ALIASES.get(_bare(name), _bare(name))
        if target in (*METADATA, *MEASURED) and target not in renamed.values():
            renamed[name] = target
        elif target in (*METADATA, *MEASURED) or name.lower().startswith(FOREIGN_PREFIX):
            renamed[name] = f"meta_{name.lower().removeprefix(FOREIGN_PREFIX)}"
    if len(set(renamed.values())) != len(renamed):
        twice = next(target for target in renamed.values() if list(renamed.values()).count(target) > 1)
        raise UsageError(
            f"embeddings: more than one column for {twice.removeprefix('meta_')}; rename or drop all but one"
        )
    return frame.rename(renamed)


def _bare(name: str) -> str:
    return name.lower().removeprefix(FOREIGN_PREFIX)

"""Anybody's table of embeddings under the store's names: metadata joined, columns renamed, features chosen.

What names mean is found by itself where they are ours, RxRx3's or Metadata_*; `columns.*` says it where they are not.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from phenomhpc.config import EvaluateConfig
from phenomhpc.config.maps import ColumnsConfig
from phenomhpc.embed.table import FOREIGN_PREFIX, feature_columns, read_embeddings, store_names
from phenomhpc.errors import UsageError

MAX_NAMED = 8


def read_table(source: Path, config: EvaluateConfig) -> tuple[pl.DataFrame, list[str]]:
    """Wells of an embeddings folder or Parquet file, and the names of its feature columns.

    Raises UsageError naming the column that is missing, with those that are there.
    """
    frame = read_embeddings(source)
    features = _features(frame, source, config.columns)
    if config.metadata is not None:
        frame = _joined(frame, features, source, Path(config.metadata), config)
    frame = _renamed(frame, features, source, config.columns)
    if "level" in frame.columns and (frame["level"] == "well").any():
        frame = frame.filter(pl.col("level") == "well")
    elif len(frame) and "level" in frame.columns and (frame["level"] == "crop").all():
        raise UsageError(
            f"embeddings={source}: these are crops, each a part of a well; name the folder of the wells, {source.parent}"
        )
    if not len(frame):
        raise UsageError(f"embeddings {source}: no well has an embedding")
    return frame, features


def _features(frame: pl.DataFrame, source: Path, columns: ColumnsConfig) -> list[str]:
    if not columns.features:
        taken = {_found(frame, name) for name in columns.model_dump(exclude={"features"}).values() if name}
        return [name for name in feature_columns(frame) if name not in taken]
    chosen = [name for name in frame.columns if name.startswith(columns.features) and frame.schema[name].is_numeric()]
    if not chosen:
        raise UsageError(
            f"columns.features={list(columns.features)}: no numeric column of {source} begins so; there are {_names(frame)}"
        )
    return chosen


def _joined(frame: pl.DataFrame, features: list[str], source: Path, path: Path, config: EvaluateConfig) -> pl.DataFrame:
    """The wells with the columns of the metadata table that they lack.  Raises UsageError for a well that it does not have."""
    table = store_names(_read_metadata(path))
    keys = {}
    for name, of in ((f"embeddings {source}", frame), (f"metadata {path}", table)):
        key = _found(of, config.join)
        if key is None:
            raise UsageError(f"join={config.join}: {name} has no such column; there are {_names(of, features)}")
        keys[name] = key
    ours, theirs = keys.values()
    if table[theirs].n_unique() < len(table):
        twice = table[theirs].value_counts(sort=True)[theirs][0]
        raise UsageError(f"metadata {path}: {theirs} {twice} is there more than once; keep one row per well")
    text = pl.col(ours).cast(pl.String).alias("join_key")
    table = table.with_columns(pl.col(theirs).cast(pl.String).alias("join_key"))
    new = [name for name in table.columns if name == "join_key" or name not in frame.columns]
    frame = frame.with_columns(text)
    unknown = frame.join(table, on="join_key", how="anti")
    if len(unknown):
        raise UsageError(
            f"metadata {path}: no row for {len(unknown)} of {len(frame)} wells, {ours} {unknown['join_key'][0]} among them"
        )
    return frame.join(table.select(new), on="join_key", how="left", maintain_order="left").drop("join_key")


def _read_metadata(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise UsageError(f"metadata={path}: no such file; it is a CSV or Parquet file with one row per well")
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        return pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UsageError(f"metadata {path}: not readable ({error}); give a CSV or Parquet file") from error


def _renamed(frame: pl.DataFrame, features: list[str], source: Path, columns: ColumnsConfig) -> pl.DataFrame:
    """Columns that the settings name, under the store's names; a column that bears such a name already makes way."""
    for target, name in columns.model_dump(exclude={"features"}).items():
        if name is None:
            continue
        found = _found(frame, name)
        if found is None:
            raise UsageError(
                f"columns.{target}={name}: {source} has no such column; there are {_names(frame, features)}"
            )
        if found != target:
            frame = frame.with_columns(pl.col(found).alias(target))
    return frame


def _found(frame: pl.DataFrame, name: str) -> str | None:
    """The column called `name` in the file: it may bear another name by now (Metadata_Symbol is gene or meta_symbol)."""
    if name in frame.columns:
        return name
    bare = name.lower().removeprefix(FOREIGN_PREFIX)
    renamed = store_names(pl.DataFrame(schema=[name])).columns[0]
    return next((one for one in (renamed, bare, f"meta_{bare}") if one in frame.columns), None)


def _names(frame: pl.DataFrame, features: list[str] | None = None) -> str:
    """Columns that are no features, and the first features where nothing else is there."""
    left_out = set(features or ())
    names = [name for name in frame.columns if name not in left_out] or frame.columns
    return ", ".join(names[:MAX_NAMED]) + (" ..." if len(names) > MAX_NAMED else "")

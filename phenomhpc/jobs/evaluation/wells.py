"""Embeddings, ours or anybody's, as the arrays that maps/ takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from phenomhpc.config import EmbedConfig, EvaluateConfig, load_run_config
from phenomhpc.embed.table import feature_columns, read_embeddings
from phenomhpc.errors import UsageError
from phenomhpc.runs import RunPaths, find_run

# Columns that may say which perturbation a well had: the first that says anything is what the map is of.
PERTURBATION = ("gene", "perturbation", "treatment")
MAX_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Wells:
    """Wells of an embeddings table.

    features: f64[n, d]; batch: [n], its name; is_control: bool[n]
    label: [n], the perturbation, "" for wells that belong to no row of the map (controls, empty wells)
    noun: what a label is, `gene` where the table has genes
    """

    features: NDArray[np.float64]
    batch: list[str]
    is_control: NDArray[np.bool_]
    label: list[str]
    noun: str

    def with_features(self, features: NDArray[np.float64]) -> Wells:
        """The same wells with other features."""
        return replace(self, features=features)


def embeddings_source(config: EvaluateConfig) -> Path:
    """The folder or Parquet file that config.embeddings means; of a run, the embeddings it made.  Raises UsageError."""
    named = Path(config.embeddings)
    if named.is_file() or (named.is_dir() and not (named / "run.yaml").is_file()):
        return named
    if not named.exists() and len(named.parts) > 1:
        raise UsageError(f"embeddings={named}: no such folder or Parquet file; `phenomhpc embed` makes one")
    run = find_run(Path(config.runs), config.embeddings)
    settings = load_run_config(run.run_yaml)
    if not isinstance(settings, EmbedConfig):
        raise UsageError(f"embeddings={config.embeddings}: is a run of {settings.kind}; name a run of embed")
    return Path(settings.out) if settings.out else RunPaths(run.root).embeddings


def read_wells(source: Path, config: EvaluateConfig) -> Wells:
    """Wells of an embeddings folder or Parquet file.

    Controls: where `is_control` says so, or else where a perturbation column holds config.control.
    Raises UsageError naming the missing column, the feature that is not a number, or the control that no well has.
    """
    frame = read_embeddings(source)
    if "level" in frame.columns and (frame["level"] == "well").any():
        frame = frame.filter(pl.col("level") == "well")
    if not len(frame):
        raise UsageError(f"embeddings {source}: no well has an embedding")
    control = _controls(frame, source, config)
    noun, label = _labels(frame, source, control)
    return Wells(
        features=_features(frame, source),
        batch=_batches(frame, source, config),
        is_control=control,
        label=label,
        noun=noun,
    )


def _features(frame: pl.DataFrame, source: Path) -> NDArray[np.float64]:
    names = feature_columns(frame)
    features = frame.select(pl.col(names).cast(pl.Float64)).to_numpy()
    bad = ~np.isfinite(features)
    if bad.any():
        worst = int(bad.sum(axis=0).argmax())
        raise UsageError(
            f"embeddings {source}: feature {names[worst]} is no finite number in {int(bad[:, worst].sum())} of {len(features)} "
            f"wells ({int(bad.any(axis=0).sum())} such features); drop or fill them"
        )
    return np.ascontiguousarray(features)


def _controls(frame: pl.DataFrame, source: Path, config: EvaluateConfig) -> NDArray[np.bool_]:
    if "is_control" in frame.columns:
        said = pl.col("is_control").cast(pl.String).str.to_lowercase()
        control = frame.select(said.is_in(["true", "1", "1.0", "yes"]).fill_null(False)).to_series().to_numpy()
        way = "is_control is true for no well"
    else:
        columns = [name for name in PERTURBATION if name in frame.columns]
        if not columns:
            raise UsageError(
                f"embeddings {source}: no column {', '.join(PERTURBATION)} or is_control (Metadata_* will do)"
            )
        is_it = pl.any_horizontal(pl.col(columns).cast(pl.String) == config.control).fill_null(False)
        control = frame.select(is_it).to_series().to_numpy()
        common = frame[columns[-1]].cast(pl.String).drop_nulls().value_counts(sort=True)[columns[-1]].head(MAX_NAMED)
        way = f"no well has it in {' or '.join(columns)}; the commonest {columns[-1]}s are {', '.join(common)}"
    if config.align != "none" and not control.any():
        raise UsageError(f"control={config.control}: {way}; alignment needs controls: set control=NAME or align=none")
    return np.asarray(control, dtype=np.bool_)


def _labels(frame: pl.DataFrame, source: Path, control: NDArray[np.bool_]) -> tuple[str, list[str]]:
    for column in PERTURBATION:
        if column in frame.columns:
            values = frame[column].cast(pl.String).fill_null("").to_list()
            label = ["" if is_control else value for value, is_control in zip(values, control, strict=True)]
            if any(label):
                return column, label
    raise UsageError(f"embeddings {source}: no well but controls has a value in {', '.join(PERTURBATION)}")


def _batches(frame: pl.DataFrame, source: Path, config: EvaluateConfig) -> list[str]:
    if config.align == "none":
        return ["all"] * len(frame)
    if config.batch not in frame.columns:
        raise UsageError(
            f"embeddings {source}: no column {config.batch} to tell batches by; set batch=plate, experiment or batch, or align=none"
        )
    if frame[config.batch].null_count():
        raise UsageError(f"embeddings {source}: {config.batch} is missing in {frame[config.batch].null_count()} wells")
    names = frame[config.batch].cast(pl.String)
    if config.batch == "plate" and "experiment" in frame.columns:
        # Plate 1 of one experiment is not plate 1 of another (RxRx3 numbers plates 1 to 9 in each).
        both = frame.select("experiment", "plate")
        if both.n_unique() > names.n_unique():
            names = both.select(pl.concat_str(pl.all().cast(pl.String).fill_null(""), separator="/")).to_series()
    return [str(name) for name in names]

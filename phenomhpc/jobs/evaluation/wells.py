"""Embeddings, ours or anybody's, as the arrays that maps/ takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from phenomhpc.config import EmbedConfig, EvaluateConfig, load_run_config
from phenomhpc.errors import UsageError
from phenomhpc.jobs.evaluation.held import held_array
from phenomhpc.jobs.evaluation.tables import read_table
from phenomhpc.maps.checks import BLOCK_ROWS, Rows
from phenomhpc.runs import RunPaths, find_run

# Columns that may say which perturbation a well had: the first that says anything is what the map is of.
PERTURBATION = ("gene", "perturbation", "treatment")
MAX_NAMED = 5
YES = ("true", "1", "1.0", "yes")
DOSE = "@"  # between a compound and its dose


@dataclass(frozen=True, kw_only=True)
class Wells:
    """Wells of an embeddings table.

    features: f[n, d], float32 where the table has it so; batch: [n], that of alignment; is_control: bool[n]
    label: [n], the perturbation, "" for wells that belong to no row of the map (controls, empty wells)
    noun: what a label is, `gene` where the table has genes
    compound: [n], the treatment of wells that have one and no gene, with its dose behind "@"; "" for all others
    plate, experiment, batch_named: [n], what the table's columns plate, experiment and batch say, "" where nothing
    num_dropped: features that were left out
    """

    features: Rows
    batch: list[str]
    is_control: NDArray[np.bool_]
    label: list[str]
    noun: str
    compound: list[str]
    plate: list[str]
    experiment: list[str]
    batch_named: list[str]
    num_dropped: int = 0

    def with_features(self, features: Rows) -> Wells:
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
    frame, names = read_table(source, config)
    control = _controls(frame, source, config)
    noun, label = _labels(frame, source, control)
    features, num_dropped = _features(frame, names, source, config)
    return Wells(
        features=features,
        batch=_batches(frame, source, config),
        is_control=control,
        label=label,
        noun=noun,
        compound=_compounds(frame, control) if noun == "gene" else [""] * len(frame),
        plate=_text(frame, "plate"),
        experiment=_text(frame, "experiment"),
        batch_named=_text(frame, "batch"),
        num_dropped=num_dropped,
    )


def _features(frame: pl.DataFrame, names: list[str], source: Path, config: EvaluateConfig) -> tuple[Rows, int]:
    """Features f[n, d], and how many were left out."""
    floats = frame.select(pl.col(names).cast(pl.Float64) if _is_wide(frame, names) else pl.col(names).cast(pl.Float32))
    num_bad = floats.select((~pl.all().is_finite()).fill_null(True).sum()).row(0)
    kept = [name for name, num in zip(names, num_bad, strict=True) if not num]
    if len(kept) < len(names) and not (kept and config.bad_features == "drop"):
        worst = int(np.argmax(num_bad))
        raise UsageError(
            f"embeddings {source}: feature {names[worst]} is no finite number in {num_bad[worst]} of {len(frame)} "
            f"wells ({len(names) - len(kept)} such features); fill them, or set bad_features=drop to leave those features out"
        )
    dtype = np.float64 if _is_wide(frame, names) else np.float32
    features = held_array(len(frame), len(kept), dtype, Path(config.runs))
    for start in range(0, len(frame), BLOCK_ROWS):
        features[start : start + BLOCK_ROWS] = floats.slice(start, BLOCK_ROWS).select(kept).to_numpy()
    return features, len(names) - len(kept)


def _is_wide(frame: pl.DataFrame, names: list[str]) -> bool:
    """Whether float32 would lose digits of a feature."""
    return any(frame.schema[name] not in (pl.Float32, pl.Int8, pl.Int16, pl.UInt8, pl.UInt16) for name in names)


def _text(frame: pl.DataFrame, column: str) -> list[str]:
    if column not in frame.columns:
        return [""] * len(frame)
    return frame[column].cast(pl.String).fill_null("").to_list()


def _compounds(frame: pl.DataFrame, control: NDArray[np.bool_]) -> list[str]:
    """`treatment@dose` of wells without a gene; `treatment@` where the dose is not known."""
    doses = _text(frame, "concentration_um")
    rows = zip(_text(frame, "gene"), _text(frame, "treatment"), doses, control, strict=True)
    return ["" if gene or is_control or not name else f"{name}{DOSE}{dose}" for gene, name, dose, is_control in rows]


def _controls(frame: pl.DataFrame, source: Path, config: EvaluateConfig) -> NDArray[np.bool_]:
    if "is_control" in frame.columns:
        said = pl.col("is_control").cast(pl.String).str.to_lowercase()
        yes = [*YES, config.control.lower()]
        control = frame.select(said.is_in(yes).fill_null(False)).to_series().to_numpy()
        way = "is_control is true for no well"
    else:
        columns = [name for name in PERTURBATION if name in frame.columns]
        if not columns:
            raise UsageError(
                f"embeddings {source}: no column {', '.join(PERTURBATION)} or is_control (Metadata_* will do); name one with "
                f"columns.treatment=NAME; there are {', '.join(frame.columns[:MAX_NAMED])}"
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
            f"embeddings {source}: no column {config.batch} to tell batches by; name it with columns.{config.batch}=NAME, set "
            "batch=plate, experiment or batch, or align=none"
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

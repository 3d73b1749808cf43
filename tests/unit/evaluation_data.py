"""Embeddings with known biology in them, as `phenomhpc embed` would leave them, for tests of evaluate and its report."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from phenomhpc.embed.folder import Binding, EmbeddingsPaths, bind
from phenomhpc.embed.table import feature_name
from phenomhpc.runs import RunPaths, committing
from phenomhpc.train.metrics import SCHEMA, StepRow
from tests.unit.planted_maps import PlantedWells

NUM_PATHWAYS, GENES_PER_PATHWAY, NUM_LONELY = 6, 4, 26
PLATES = ("exp1__Plate1", "exp1__Plate2", "exp2__Plate1")
CONTROLS_PER_PLATE = 16
DIM = 20
GENES = [f"GENE{number:02d}" for number in range(NUM_PATHWAYS * GENES_PER_PATHWAY + NUM_LONELY)]
CONTROL = "EMPTY_control"


def pathway_pairs() -> list[tuple[str, str]]:
    """All pairs within pathways."""
    starts = range(0, NUM_PATHWAYS * GENES_PER_PATHWAY, GENES_PER_PATHWAY)
    return [pair for start in starts for pair in combinations(GENES[start : start + GENES_PER_PATHWAY], 2)]


def wells(strength: float, *, seed: int = 0, dim: int = DIM, batch_effect: float = 8.0) -> pl.DataFrame:
    """Every gene on two plates of the three, and controls on all; genes of a pathway are moved the same way by `strength`.

    Genes of one pathway miss different plates, so without alignment the plates decide who is alike.
    """
    generator = np.random.default_rng(seed)
    phenotype = generator.normal(size=(len(GENES), dim))
    for start in range(0, NUM_PATHWAYS * GENES_PER_PATHWAY, GENES_PER_PATHWAY):
        phenotype[start : start + GENES_PER_PATHWAY] = phenotype[start]
    rows = []
    for number, plate in enumerate(PLATES):
        offset, scale = batch_effect * generator.normal(size=dim), 1.0 + generator.random(dim)
        names = [*GENES, *[CONTROL] * CONTROLS_PER_PLATE]
        for place, name in enumerate(names):
            if name != CONTROL and place % len(PLATES) == number:
                continue
            signal = strength * phenotype[place] if name != CONTROL else 0.0
            values = (signal + generator.normal(size=dim)) * scale + offset
            rows.append(
                {
                    "plate": plate,
                    "experiment": plate.split("__")[0],
                    "batch": plate,
                    "well": f"{'ABCDEFGH'[place % 8]}{place // 8 + 1:02d}",
                    "perturbation": name,
                    "perturbation_type": "control" if name == CONTROL else "gene",
                    "gene": None if name == CONTROL else name,
                    "treatment": name if name == CONTROL else f"{name}_guide_1",
                    "is_control": name == CONTROL,
                    "level": "well",
                    "num_crops": 4,
                    "status": "ok",
                    **{feature_name(index): np.float32(value) for index, value in enumerate(values)},
                }
            )
    return pl.DataFrame(rows)


def write_folder(paths: EmbeddingsPaths, frame: pl.DataFrame, source: str, checkpoint: str) -> None:
    """A bound embeddings folder with one table per plate."""
    binding = Binding(
        source=source, checkpoint=checkpoint, checkpoint_digest="c" * 64, store="store", snapshot_digest="d" * 64, block=4,
        pooling="mean", dtype="fp32", backend="torch", channels=("DNA", "ER"), crop_px=64,
        num_features=sum(name.startswith("feature_") for name in frame.columns),
    )  # fmt: skip
    assert asdict(binding)["source"] == source
    paths.root.mkdir(parents=True, exist_ok=True)
    bind(paths, binding)
    for plate in PLATES:
        frame.filter(pl.col("plate") == plate).write_parquet(paths.table(plate))


def write_embeddings(folder: Path, training: RunPaths | None = None) -> EmbeddingsPaths:
    """A strong encoder, a weaker untrained one, intensities that know nothing."""
    checkpoint = str(training.checkpoints / "step-00000120") if training else "step-00000120"
    paths = EmbeddingsPaths(folder)
    write_folder(paths, wells(0.9), "checkpoint", checkpoint)
    write_folder(paths.baseline("untrained"), wells(0.5, seed=1), "untrained", checkpoint)
    write_folder(paths.baseline("intensity"), wells(0.0, seed=2, dim=6), "intensity", checkpoint)
    return paths


def write_annotations(folder: Path) -> Path:
    """PATHWAYS.txt, arms and unexpressed genes (the lonely ones of arm 1p)."""
    folder.mkdir(parents=True)
    lines = [
        "entity1,entity2",
        *(f"{b},{a}" for a, b in pathway_pairs()),
        *(f"{a},{b}" for a, b in pathway_pairs()[:4]),
    ]
    (folder / "PATHWAYS.txt").write_text("\n".join(lines) + "\n")
    loci = [f"{gene}\t{'1p36.1' if number % 2 else '2q11'}\t1" for number, gene in enumerate(GENES)]
    (folder / "gene_chromosome_map.tsv").write_text("\n".join(["Approved_symbol\tLocus\tChromosome", *loci]) + "\n")
    (folder / "unexpressed.txt").write_text("\n".join(GENES[-NUM_LONELY:]) + "\n")
    return folder


def cells(num: int, channels: int = 6, side: int = 64, seed: int = 0) -> NDArray[np.float32]:
    """Crops of blurred blobs, standardised: f32[num, channels, side, side]."""
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(seed)
    seeds = (generator.random((num, 1, side, side)) > 0.996) * 1.0
    crops = np.concatenate([gaussian_filter(seeds, (0, 0, 2 + index, 2 + index)) for index in range(channels)], axis=1)
    crops += 0.1 * crops.std(axis=(2, 3), keepdims=True) * generator.normal(size=crops.shape)
    crops = (crops - crops.mean(axis=(2, 3), keepdims=True)) / crops.std(axis=(2, 3), keepdims=True)
    return crops.astype(np.float32)


def write_training(training: RunPaths, num_steps: int = 120, side: int = 64, patch: int = 8) -> None:
    """What pretraining leaves behind that a report shows."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from scipy.ndimage import gaussian_filter

    original = cells(5, side=side)
    hidden = np.random.default_rng(1).random((5, 1, side // patch, side // patch)) < 0.75
    hidden = hidden.repeat(patch, axis=2).repeat(patch, axis=3)
    masked = np.where(hidden, np.float32(0), original)
    completed = np.where(hidden, gaussian_filter(original, (0, 0, 2.5, 2.5)), original)
    with committing(training.reconstructions) as file:
        np.savez(file, original=original, masked=masked, reconstructed=completed)
    generator = np.random.default_rng(2)
    rows = [
        asdict(
            StepRow(
                step=step,
                time=datetime(2025, 1, 1, tzinfo=UTC) + timedelta(seconds=step),
                first_index=step * 16,
                index_digest="",
                loss=float(0.4 + 0.6 * np.exp(-step / 30) + 0.03 * generator.normal()),
                loss_mse=0.5,
                loss_fourier=0.5,
                lr=1e-4,
                grad_norm=1.0,
                crops_per_s=float(200 + 10 * generator.normal()),
                data_wait=0.0,
            )
        )
        for step in range(num_steps)
    ]
    with committing(training.metrics_file(1, num_steps - 1)) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file)


def write_planted(folder: Path, planted: PlantedWells) -> tuple[Path, Path]:
    """Planted wells as one Parquet file, and the folder of their annotations: pairs, arms, unexpressed genes."""
    folder.mkdir(parents=True)
    features = {feature_name(index): column for index, column in enumerate(planted.features.T.astype(np.float32))}
    table = {
        "plate": planted.batch,
        "experiment": [f"exp{int(name[5:]) // 2}" for name in planted.batch],
        "gene": [None if name == CONTROL else name for name in planted.label],
        "treatment": planted.label,
        "is_control": planted.is_control,
    }
    pl.DataFrame(table | features).write_parquet(folder / "wells.parquet")
    annotations = folder / "annotations"
    annotations.mkdir()
    lines = ["entity1,entity2", *(f"{a},{b}" for a, b in planted.pairs)]
    (annotations / "PATHWAYS.txt").write_text("\n".join(lines) + "\n")
    loci = [f"{gene}\t{arm[:-1]}{arm[-1]}11" for gene, arm in planted.arms.items()]
    (annotations / "gene_chromosome_map.tsv").write_text("\n".join(["Approved_symbol\tLocus", *loci]) + "\n")
    (annotations / "unexpressed.txt").write_text("\n".join(sorted(planted.unexpressed)) + "\n")
    return folder / "wells.parquet", annotations

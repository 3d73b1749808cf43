"""Anybody's embeddings: RxRx3's published ones and CellProfiler profiles, with names said where they differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenomhpc.config import EvaluateConfig, resolve
from phenomhpc.errors import UsageError
from phenomhpc.jobs.evaluation.benchmarks import retrieved_rows
from phenomhpc.jobs.evaluation.wells import DOSE, read_wells
from phenomhpc.jobs.here import run_here
from phenomhpc.progress import silent
from tests.unit.evaluation_data import CONTROL, GENES, wells, write_annotations

FRAME = wells(0.9)
FEATURES = [name for name in FRAME.columns if name.startswith("feature_")]


def config_of(source: Path, *overrides: str, **flags: str) -> EvaluateConfig:
    """As a command line would give it."""
    config = resolve("evaluate", {"embeddings": str(source), **flags}, list(overrides), layers=()).config
    assert isinstance(config, EvaluateConfig)
    return config


def rxrx3(folder: Path) -> tuple[Path, Path]:
    """The published form: well_id and features in Parquet, metadata in a CSV beside it (SMILES hold commas)."""
    address = [f"{well[0]}{number:03d}" for number, well in enumerate(FRAME["well"])]
    ids = [f"{plate}_{well}" for plate, well in zip(FRAME["plate"], address, strict=True)]
    features = FRAME.select(FEATURES).rename({name: f"feature_{int(name[8:])}" for name in FEATURES})
    embeddings = folder / "embeddings.parquet"
    features.with_columns(pl.Series("well_id", ids)).write_parquet(embeddings)
    is_control = FRAME["gene"].is_null()
    metadata = pl.DataFrame({
        "well_id": ids[::-1],  # in another order
        "experiment_name": FRAME["experiment"].reverse(),
        "plate": [int(plate[-1]) for plate in FRAME["plate"].reverse()],
        "address": address[::-1],
        "gene": FRAME["gene"].fill_null(CONTROL).reverse(),
        "treatment": FRAME["treatment"].reverse(),
        "SMILES": ["C(C,O)"] * len(ids),
        "concentration": ["" for _ in ids],
        "perturbation_type": ["CRISPR"] * len(ids),
        "cell_type": ["HUVEC"] * len(ids),
    })  # fmt: skip
    assert int(is_control.sum()) == 48
    metadata.write_csv(folder / "metadata.csv")
    return embeddings, folder / "metadata.csv"


def test_published_embeddings_with_metadata_beside_them_score_as_ours(tmp_path: Path) -> None:
    embeddings, metadata = rxrx3(tmp_path)
    found = read_wells(embeddings, config_of(embeddings, metadata=str(metadata)))
    ours = tmp_path / "ours.parquet"
    FRAME.write_parquet(ours)
    expected = read_wells(ours, config_of(ours))
    assert found.label == expected.label and found.noun == "gene"
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.is_control, expected.is_control)
    assert set(found.batch) == {"exp1/1", "exp1/2", "exp2/1"}  # plates are numbered anew in each experiment
    write_annotations(tmp_path / "annotations")
    flags = {"metadata": str(metadata), "annotations": str(tmp_path / "annotations"), "runs": str(tmp_path / "runs")}
    paths, summary = run_here(config_of(embeddings, **flags), command=["test"], progress=silent())
    assert summary.exit_code == 0
    recall = pl.read_parquet(paths.recall).filter(pl.col("source") == "encoder")["recall"][0]
    assert recall > 0.5


def test_metadata_that_do_not_fit_are_named(tmp_path: Path) -> None:
    embeddings, metadata = rxrx3(tmp_path)
    with pytest.raises(UsageError, match=r"join=id: embeddings \S+ has no such column; there are well_id"):
        read_wells(embeddings, config_of(embeddings, "join=id", metadata=str(metadata)))
    with pytest.raises(UsageError, match=r"metadata=\S+nothing.csv: no such file"):
        read_wells(embeddings, config_of(embeddings, metadata=str(tmp_path / "nothing.csv")))
    table = pl.read_csv(metadata)
    short = tmp_path / "short.csv"
    table.tail(-1).write_csv(short)
    missing = table["well_id"][0]
    with pytest.raises(UsageError, match=rf"short.csv: no row for 1 of 148 wells, well_id {missing} among them"):
        read_wells(embeddings, config_of(embeddings, metadata=str(short)))
    pl.concat([table, table.head(1)]).write_csv(short)
    with pytest.raises(UsageError, match=rf"short.csv: well_id {missing} is there more than once"):
        read_wells(embeddings, config_of(embeddings, metadata=str(short)))
    with pytest.raises(
        UsageError, match=r"no column gene, perturbation, treatment or is_control .* columns.treatment=NAME"
    ):
        read_wells(embeddings, config_of(embeddings))


def cellprofiler(folder: Path) -> Path:
    """Profiles with names of a laboratory's own, a count that is no feature, and a feature that failed in one well."""
    renamed = {name: f"{'Cells' if number % 2 else 'Nuclei'}_Texture_{number}" for number, name in enumerate(FEATURES)}
    frame = FRAME.select("plate", "well", "gene", *FEATURES).rename(renamed)
    frame = frame.rename({"plate": "Metadata_Assay_Plate", "well": "Metadata_Well", "gene": "Metadata_Target"})
    kind = pl.Series("Metadata_control_type", ["negcon" if gene is None else None for gene in FRAME["gene"]])
    failed = pl.when(pl.int_range(pl.len()) == 7).then(float("nan")).otherwise(0.0).alias("Cells_Failed")
    path = folder / "profiles.parquet"
    frame.with_columns(kind, failed, pl.lit(12.0).alias("Count_Cells")).write_parquet(path)
    return path


NAMES = ("columns.plate=Metadata_Assay_Plate", "columns.gene=Metadata_Target", "columns.is_control=Metadata_control_type",
         "control=negcon", "columns.features=[Cells_, Nuclei_]")  # fmt: skip


def test_profiles_with_other_names_are_read_as_told(tmp_path: Path) -> None:
    source = cellprofiler(tmp_path)
    found = read_wells(source, config_of(source, *NAMES, "bad_features=drop"))
    assert found.features.shape == (148, len(FEATURES)) and found.num_dropped == 1
    np.testing.assert_array_equal(np.sort(found.features[0]), np.sort(FRAME.select(FEATURES).row(0)))
    assert found.is_control.tolist() == FRAME["gene"].is_null().to_list()
    assert set(found.batch) == set(FRAME["plate"]) and set(found.label) == {"", *GENES}


@pytest.mark.parametrize(
    ("left_out", "more", "message"),
    [
        ("bad_features", (), r"feature Cells_Failed is no finite number in 1 of 148 wells .* set bad_features=drop"),
        ("columns.plate", (), r"no column plate to tell batches by; name it with columns.plate=NAME"),
        ("columns.gene", (), r"no column|no well but controls has a value in gene, perturbation, treatment"),
        (
            "columns.plate",
            ("columns.plate=Plaet",),
            r"columns.plate=Plaet: \S+ has no such column; there are .*assay_plate",
        ),
        ("columns.features", ("columns.features=[Axons_]",), r"columns.features=\['Axons_'\]: no numeric column of"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, left_out: str, more: tuple[str, ...], message: str) -> None:
    source = cellprofiler(tmp_path)
    kept = [word for word in (*NAMES, "bad_features=drop") if not word.startswith(left_out + "=")]
    with pytest.raises(UsageError, match=message) as caught:
        read_wells(source, config_of(source, *kept, *more))
    assert "\n" not in str(caught.value)


def test_compounds_are_known_by_name_and_dose(tmp_path: Path) -> None:
    """Wells with a treatment and no gene are compounds, each dose for itself; they belong to no row of the map."""
    frame = FRAME.head(60).with_columns(
        gene=pl.when(pl.int_range(pl.len()) < 6).then(None).otherwise("gene"),
        treatment=pl.when(pl.int_range(pl.len()) < 6).then(pl.lit("aspirin")).otherwise("treatment"),
        concentration_um=pl.when(pl.int_range(pl.len()) < 3).then(0.5).otherwise(2.0),
        is_control=pl.int_range(pl.len()) > 55,
    )
    frame.write_parquet(tmp_path / "compounds.parquet")
    found = read_wells(tmp_path / "compounds.parquet", config_of(tmp_path, "align=none"))
    assert found.compound[:7] == ["aspirin@0.5"] * 3 + ["aspirin@2.0"] * 3 + [""]
    assert found.label[:6] == [""] * 6


def test_crops_are_not_taken_for_wells(tmp_path: Path) -> None:
    (tmp_path / "emb" / "crops").mkdir(parents=True)
    source = tmp_path / "emb" / "crops" / "P.parquet"
    FRAME.with_columns(level=pl.lit("crop")).write_parquet(source)
    with pytest.raises(
        UsageError, match=r"P\.parquet: these are crops, each a part of a well; name the folder of the wells, "
    ):
        read_wells(source, config_of(source))


def test_a_compound_may_be_called_anything(tmp_path: Path) -> None:
    frame = FRAME.head(60).with_columns(
        gene=pl.when(pl.int_range(pl.len()) < 6).then(None).otherwise("gene"),
        treatment=pl.lit("a@b"),
        concentration_um=pl.when(pl.int_range(pl.len()) < 3).then(0.5).otherwise(None),
        is_control=pl.int_range(pl.len()) > 55,
    )
    frame.write_parquet(tmp_path / "compounds.parquet")
    found = read_wells(tmp_path / "compounds.parquet", config_of(tmp_path, "align=none"))
    assert {name.rpartition(DOSE)[0] for name in found.compound if name} == {"a@b"}


@given(st.lists(st.integers(1, 9), min_size=3, max_size=60), st.integers(0, 5))
def test_of_many_wells_retrieval_sees_all_of_some_perturbations(counts: list[int], seed: int) -> None:
    names = [f"g{number}" for number, count in enumerate(counts) for _ in range(count)]
    rows, most = np.arange(len(names)) + 7, max(9, len(names) // 2)
    chosen = retrieved_rows(rows, names, seed, most)
    assert 0 < len(chosen) <= max(most, len(names) if len(names) <= most else 0)
    kept = [names[row - 7] for row in chosen]
    assert all(kept.count(name) == names.count(name) for name in set(kept))
    assert chosen.tolist() == retrieved_rows(rows, names, seed, most).tolist()

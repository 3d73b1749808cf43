"""Embeddings read back: ours, and anybody's Parquet."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from phenomhpc.embed.table import feature_columns, read_embeddings
from phenomhpc.errors import UsageError


def _ours(folder: Path, plate: str, statuses: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "embeddings.json").write_text("{}")
    values = [1.0 if status == "ok" else None for status in statuses]
    pl.DataFrame(
        {
            "plate": plate,
            "well": [f"A{i + 1:02d}" for i in range(len(statuses))],
            "status": statuses,
            "num_crops": [4] * len(statuses),
            "feature_0000": values,
            "feature_0001": values,
        },
        schema_overrides={"feature_0000": pl.Float32, "feature_0001": pl.Float32, "num_crops": pl.UInt16},
    ).write_parquet(folder / f"{plate}.parquet")


def test_a_folder_gives_the_wells_of_all_plates_that_have_an_embedding(tmp_path: Path) -> None:
    _ours(tmp_path / "emb", "e__P1", ["ok", "missing_plane"])
    _ours(tmp_path / "emb", "e__P2", ["ok"])
    frame = read_embeddings(tmp_path / "emb")
    assert frame.select("plate", "well").rows() == [("e__P1", "A01"), ("e__P2", "A01")]
    assert feature_columns(frame) == ["feature_0000", "feature_0001"]
    assert frame.columns[-2:] == ["feature_0000", "feature_0001"]
    assert read_embeddings(tmp_path / "emb", missing=True).height == 3


def test_a_foreign_table_comes_out_under_our_names(tmp_path: Path) -> None:
    path = tmp_path / "profiles.parquet"
    pl.DataFrame(
        {
            "Cells_AreaShape": [1.0, 2.0],
            "Metadata_Plate": ["P1", "P1"],
            "Metadata_Well": ["A01", "A02"],
            "Metadata_Symbol": ["TP53", "MYC"],
            "Metadata_JCP2022": [7, 8],
            "Nuclei_Texture": [3, 4],
        }
    ).write_parquet(path)
    frame = read_embeddings(path)
    assert frame.columns == ["plate", "well", "gene", "meta_jcp2022", "Cells_AreaShape", "Nuclei_Texture"]
    assert feature_columns(frame) == ["Cells_AreaShape", "Nuclei_Texture"]


def test_rxrx3_columns_are_known(tmp_path: Path) -> None:
    path = tmp_path / "rxrx3.parquet"
    pl.DataFrame(
        {
            "well_id": ["HUVEC-1_1_AA02"],
            "experiment_name": ["HUVEC-1"],
            "address": ["AA02"],
            "SMILES": ["C"],
            "concentration": [0.5],
            "feature_0": [0.1],
            "feature_1": [0.2],
        }
    ).write_parquet(path)
    frame = read_embeddings(path)
    assert {"experiment", "well", "smiles", "concentration_um"} <= set(frame.columns)
    assert feature_columns(frame) == ["feature_0", "feature_1"]


def test_a_name_outranks_its_alias(tmp_path: Path) -> None:
    path = tmp_path / "both.parquet"
    pl.DataFrame({"Metadata_Symbol": ["alias"], "Metadata_Gene": ["name"], "x": [1.0]}).write_parquet(path)
    frame = read_embeddings(path)
    assert frame["gene"].to_list() == ["name"]
    assert frame["meta_symbol"].to_list() == ["alias"]


@pytest.mark.parametrize("case", ["absent", "unbound", "empty", "no_features", "garbage"])
def test_bad_input_is_refused_in_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    source = tmp_path / "emb"
    if case == "unbound":
        source.mkdir()
    elif case == "empty":
        source.mkdir()
        (source / "embeddings.json").write_text("{}")
    elif case == "no_features":
        pl.DataFrame({"Metadata_Well": ["A01"], "name": ["x"]}).write_parquet(source)
    elif case == "garbage":
        source.write_bytes(b"no parquet")
    with pytest.raises(UsageError) as error:
        read_embeddings(source)
    assert "\n" not in str(error.value) and str(source) in str(error.value)

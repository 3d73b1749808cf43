"""What evaluate reads: annotation folders, and embeddings of anybody's making."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from phenomhpc.config import EmbedConfig, EvaluateConfig, dump
from phenomhpc.errors import UsageError
from phenomhpc.jobs.evaluation.annotations import read_annotations
from phenomhpc.jobs.evaluation.wells import embeddings_source, read_wells
from phenomhpc.runs import create_run
from tests.unit.evaluation_data import CONTROL, GENES, pathway_pairs, wells, write_annotations, write_embeddings


def _config(source: Path | str = "", **settings: object) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"embeddings": str(source), **settings})


def _parquet(folder: Path, frame: pl.DataFrame) -> Path:
    frame.write_parquet(folder / "profiles.parquet")
    return folder / "profiles.parquet"


def _foreign() -> pl.DataFrame:
    """The same wells under names that CellProfiler's tables have."""
    frame = wells(0.9).drop("is_control", "level", "num_crops", "status", "experiment", "batch", "perturbation", "gene")
    frame = frame.drop("perturbation_type")
    features = {name: f"Cells_Texture_{name[-2:]}" for name in frame.columns if name.startswith("feature_")}
    return frame.rename(
        {**features, "plate": "Metadata_Plate", "well": "Metadata_Well", "treatment": "Metadata_treatment"}
    )


def test_a_folder_of_annotations_is_read_whole(tmp_path: Path) -> None:
    folder = write_annotations(tmp_path / "annotations")
    (folder / "MORE.csv").write_text("\ufeffEntity1,entity2\r\nA,B\r\nB,A\r\nA,A\r\n")
    (folder / "TABBED.txt").write_text("A\tB\nB\tC\n")
    (folder / "README.txt").write_text("Known relationships of genes\n")
    (folder / "complexes.csv").write_text("id,gene,complex\n1,A,X\n")
    annotations = read_annotations(folder)
    assert annotations.relationships == {
        "MORE": [("A", "B")],
        "PATHWAYS": sorted(pathway_pairs()),
        "TABBED": [("A", "B"), ("B", "C")],
    }
    assert annotations.arms["GENE01"] == "1p" and annotations.arms["GENE02"] == "2q"
    assert annotations.unexpressed == set(GENES[-26:])
    assert annotations.set_aside == (
        ("README.txt", "no file of two columns"),
        ("complexes.csv", "no file of two columns"),
    )


def test_another_file_of_unexpressed_genes_counts_instead(tmp_path: Path) -> None:
    folder = write_annotations(tmp_path / "annotations")
    other = folder / "silent.txt"
    other.write_text("GENE01\nGENE02\n")
    annotations = read_annotations(folder, other)
    assert annotations.unexpressed == {"GENE01", "GENE02"}
    assert list(annotations.relationships) == ["PATHWAYS"]
    with pytest.raises(UsageError, match=r"unexpressed=.*nothing.txt: no such file"):
        read_annotations(folder, tmp_path / "nothing.txt")


@pytest.mark.shared
def test_the_published_annotations_are_read(shared_data: Path) -> None:
    annotations = read_annotations(shared_data / "annotations")
    counts = {name: len(pairs) for name, pairs in annotations.relationships.items()}
    assert counts == {"HuMAP": 58_538, "Reactome": 18_565, "StringDB": 58_059}
    assert len(annotations.arms) > 45_000 and annotations.set_aside == ()


def test_annotations_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        read_annotations(tmp_path / "absent")
    with pytest.raises(UsageError, match="no file of two columns"):
        read_annotations(tmp_path)
    (tmp_path / "P.txt").write_text("entity1,entity2\nA,B\nA\n")
    with pytest.raises(UsageError, match=r"P.txt: row 3 is 'A', no pair"):
        read_annotations(tmp_path)
    (tmp_path / "P.txt").write_text("A,B\n")
    (tmp_path / "P.csv").write_text("A,B\n")
    with pytest.raises(UsageError, match="two files called P"):
        read_annotations(tmp_path)
    (tmp_path / "P.csv").unlink()
    (tmp_path / "gene_chromosome_map.tsv").write_text("gene\tLocus\nA\t1p36\n")
    with pytest.raises(UsageError, match="has the columns gene, Locus; it needs Approved_symbol and Locus, or"):
        read_annotations(tmp_path)
    (tmp_path / "gene_chromosome_map.tsv").unlink()
    (tmp_path / "P.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"P.txt: not readable as text"):
        read_annotations(tmp_path)


def test_our_embeddings_become_arrays(tmp_path: Path) -> None:
    source = write_embeddings(tmp_path / "emb").root
    found = read_wells(source, _config(source))
    frame = wells(0.9)
    assert found.noun == "gene" and found.features.dtype == np.float64
    assert found.is_control.tolist() == frame["is_control"].to_list()
    assert found.label == [gene or "" for gene in frame["gene"].to_list()]
    assert set(found.batch) == {"exp1__Plate1", "exp1__Plate2", "exp2__Plate1"}


def test_a_foreign_table_needs_only_metadata_and_numbers(tmp_path: Path) -> None:
    source = _parquet(tmp_path, _foreign())
    found = read_wells(source, _config(source))
    assert found.noun == "treatment"
    assert found.is_control.sum() == 48
    assert "GENE00_guide_1" in found.label and CONTROL not in found.label


def test_plates_numbered_anew_in_every_experiment_stay_apart(tmp_path: Path) -> None:
    frame = wells(0.9).with_columns(pl.col("plate").str.split("__").list.last())
    assert frame["plate"].n_unique() == 2
    found = read_wells(_parquet(tmp_path, frame), _config())
    assert set(found.batch) == {"exp1/Plate1", "exp1/Plate2", "exp2/Plate1"}


def test_wells_of_a_table_with_crops_count_once(tmp_path: Path) -> None:
    frame = wells(0.9)
    crops = frame.with_columns(pl.lit("crop").alias("level"))
    assert len(read_wells(_parquet(tmp_path, pl.concat([frame, crops])), _config()).label) == len(frame)


def test_tables_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    frame = wells(0.9)
    with pytest.raises(UsageError, match="no column plate to tell batches by"):
        read_wells(_parquet(tmp_path, frame.drop("plate")), _config())
    with pytest.raises(UsageError, match="no column gene, perturbation, treatment"):
        read_wells(_parquet(tmp_path, frame.drop("gene", "perturbation", "treatment", "is_control")), _config())
    with pytest.raises(UsageError, match=r"feature feature_0003 is no finite number in 1 of 148 wells \(1 such"):
        hole = pl.when(pl.int_range(pl.len()) == 5).then(None).otherwise(pl.col("feature_0003")).alias("feature_0003")
        read_wells(_parquet(tmp_path, frame.with_columns(hole)), _config())
    with pytest.raises(UsageError, match=r"control=DMSO: no well has it in .* commonest treatments are EMPTY_control"):
        read_wells(_parquet(tmp_path, _foreign()), _config(control="DMSO"))
    with pytest.raises(UsageError, match="is_control is true for no well"):
        read_wells(_parquet(tmp_path, frame.with_columns(pl.lit(False).alias("is_control"))), _config())
    with pytest.raises(UsageError, match="plate is missing in 148 wells"):
        read_wells(_parquet(tmp_path, frame.with_columns(pl.lit(None, pl.String).alias("plate"))), _config())
    with pytest.raises(UsageError, match="no well but controls has a value"):
        read_wells(_parquet(tmp_path, frame.filter("is_control")), _config())
    with pytest.raises(UsageError, match="no well has an embedding"):
        read_wells(_parquet(tmp_path, frame.with_columns(pl.lit("failed").alias("status"))), _config())


def test_without_alignment_neither_controls_nor_batches_are_needed(tmp_path: Path) -> None:
    frame = wells(0.9).filter(~pl.col("is_control")).drop("plate", "is_control")
    found = read_wells(_parquet(tmp_path, frame), _config(align="none"))
    assert not found.is_control.any() and set(found.batch) == {"all"}


def test_a_run_of_embed_stands_for_its_embeddings(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    ours = create_run(runs, "embed", dump(EmbedConfig()), {}, name="embed-1")
    elsewhere = create_run(runs, "embed", dump(EmbedConfig(out=str(tmp_path / "emb"))), {}, name="embed-2")
    create_run(runs, "evaluate", dump(EvaluateConfig()), {}, name="other-1")
    assert embeddings_source(_config("embed-1", runs=str(runs))) == ours.embeddings
    assert embeddings_source(_config(elsewhere.root, runs=str(runs))) == tmp_path / "emb"
    with pytest.raises(UsageError, match="is a run of evaluate"):
        embeddings_source(_config("other-1", runs=str(runs)))
    with pytest.raises(UsageError, match="no such folder or Parquet file"):
        embeddings_source(_config(tmp_path / "absent", runs=str(runs)))

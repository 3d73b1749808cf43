"""Perturbation tables: joined by experiment, plate and well, or refused by line and column."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from phenomhpc.errors import UsageError
from phenomhpc.plates import ReadOptions, find_plates, read_plate
from phenomhpc.plates.metadata import wells_of_plate
from phenomhpc.plates.synthetic import write_plates
from phenomhpc.progress import silent
from tests.unit.raw_plates import SMALL


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "raw"
    write_plates(folder, SMALL, silent(), workers=1)
    return folder


def test_rxrx_metadata_are_joined_by_experiment_plate_and_well(raw: Path) -> None:
    plate = read_plate(find_plates([str(raw / "SYN-02")])[0])
    assert len(plate.fields) == 6 and (plate.rows, plate.columns) == (8, 12)
    assert [channel.name for channel in plate.channels] == ["DNA", "ER", "AGP", "RNA", "Mito", "Golgi"]
    controls = [well for well, row in plate.metadata.items() if row["is_control"] == "true"]
    assert len(controls) == SMALL.num_controls
    assert all(plate.metadata[well]["perturbation"] == "EMPTY_control" for well in controls)
    treated = next(row for row in plate.metadata.values() if row["is_control"] == "false")
    assert treated["perturbation"] == treated["gene"] and treated["perturbation_type"] == "gene"


def test_smiles_with_commas_and_rxrx1_names_are_read(raw: Path, tmp_path: Path) -> None:
    table = tmp_path / "m.csv"
    table.write_text('experiment,plate,well,sirna,SMILES,my_note\nSYN-01,1,A01,s1,"C(C,N)",hello\n')
    plate = read_plate(find_plates([str(raw / "SYN-01")])[0], ReadOptions(metadata=table))
    row = plate.metadata["A01"]
    assert (row["smiles"], row["treatment"], row["perturbation"], row["meta_my_note"]) == (
        "C(C,N)",
        "s1",
        "s1",
        "hello",
    )


def test_a_csv_with_a_wrong_well_is_refused_by_line(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("plate,well,gene\n1,A01,G\n1,77,G\n")
    with pytest.raises(UsageError, match=r"m.csv: line 3: '77' is no well"):
        read_plate(find_plates([str(raw / "SYN-01")])[0], ReadOptions(metadata=tmp_path / "m.csv"))


def table(folder: Path, text: str) -> Path:
    path = folder / "m.csv"
    path.write_text(text)
    return path


RXRX3 = "well_id,experiment_name,plate,address,gene,treatment,SMILES,concentration,perturbation_type,cell_type\n"


def test_rxrx3_rows_get_the_names_of_the_store(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        RXRX3
        + 'x,compound-001,1,AA02,,Aspirin,"CC(=O)OC1=CC=CC=C1C(=O)O,Cl",2.5,COMPOUND,HUVEC\n'
        + "y,compound-001,1,A1,TP53,TP53_guide_3,,,CRISPR,HUVEC\n"
        + "z,compound-001,1,A2,EMPTY_control,EMPTY_control,,,CRISPR,HUVEC\n"
        + "other,gene-001,1,A3,MYC,MYC_guide_1,,,CRISPR,HUVEC\n",
    )
    wells = wells_of_plate(path, "compound-001", ("1", "Plate1"))
    assert sorted(wells) == ["A01", "A02", "AA02"]
    said = [wells[name][column] for name in ("AA02", "A01", "A02") for column in ("perturbation", "perturbation_type")]
    assert said == ["Aspirin", "compound", "TP53", "gene", "EMPTY_control", "control"]
    assert [wells[name]["is_control"] for name in ("AA02", "A01", "A02")] == ["false", "false", "true"]
    assert wells["AA02"]["smiles"].endswith(",Cl") and wells["AA02"]["concentration_um"] == "2.5"
    assert wells["A01"]["meta_well_id"] == "y"


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            "experiment_name,address,gene",
            "has no column for the plate; one of plate, .* is needed, it has experiment_name, ",
        ),
        ("experiment_name,plate,gene", "has no column for the well; one of address, well, "),
        (
            "experiment_name,plate,address",
            r"for the treatment or gene; one of treatment, .*or map it: metadata_columns\.[a-z]+=NAME",
        ),
        ("", "it has none"),
    ],
)
def test_a_missing_column_is_named_with_what_is_there(header: str, said: str, tmp_path: Path) -> None:
    path = table(tmp_path, f"{header}\n1,2,3\n")
    with pytest.raises(UsageError, match=said) as caught:
        wells_of_plate(path, "E", ("1",))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_unquoted_comma_is_refused_by_line_instead_of_moving_the_columns(tmp_path: Path) -> None:
    path = table(tmp_path, "plate,well,treatment,SMILES,note\n1,A1,x,CC,n\n1,A2,x,C(C,N),n\n")
    with pytest.raises(UsageError, match="line 3 has 6 cells, the header 5; put quotes"):
        wells_of_plate(path, "E", ("1",))


def test_rows_per_site_keep_what_they_agree_on(tmp_path: Path) -> None:
    rows = "HUVEC-01,1,B02,1,s1,treatment\nHUVEC-01,1,B02,2,s1,treatment\nHUVEC-01,1,B03,1,EMPTY,negative_control\n"
    path = table(tmp_path, "experiment,plate,well,site,sirna,well_type\n" + rows)
    wells = wells_of_plate(path, "HUVEC-01", ("1",))
    assert wells["B02"]["perturbation"] == "s1" and "meta_site" not in wells["B02"]
    assert wells["B03"]["is_control"] == "true" and wells["B03"]["perturbation"] == "EMPTY_control"


def test_a_well_with_two_treatments_is_refused_by_both_lines(tmp_path: Path) -> None:
    path = table(tmp_path, "plate,well,gene\nPlate1,A01,TP53\n1,a1,MYC\n")
    with pytest.raises(UsageError, match="plate 1 well A01: lines 2 and 3 differ; or add a column experiment_name"):
        wells_of_plate(path, "E", ("1",))


def test_plates_of_one_number_in_two_experiments_are_refused_where_the_layout_names_none(tmp_path: Path) -> None:
    path = table(tmp_path, "experiment,plate,well,gene\nE1,P,A01,TP53\nE2,P,A01,TP53\n")
    with pytest.raises(UsageError, match="lines 2 and 3 differ"):
        wells_of_plate(path, None, ("P",))
    assert wells_of_plate(path, "E2", ("P",))["A01"]["gene"] == "TP53"


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b'plate,well,gene\n1,"A1'])
def test_what_is_no_csv_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(data)
    with pytest.raises(UsageError, match="is no CSV in UTF-8"):
        wells_of_plate(tmp_path / "m.csv", "E", ("1",))


def test_a_csv_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        wells_of_plate(tmp_path / "absent.csv", "E", ("1",))


def test_a_corrected_csv_is_read_again(tmp_path: Path) -> None:
    path = table(tmp_path, "plate,well,gene\n1,A01,TP53\n")
    assert wells_of_plate(path, "E", ("1",))["A01"]["gene"] == "TP53"
    path.write_text("plate,well,gene\n1,A01,BRCA1\n")
    assert wells_of_plate(path, "E", ("1",))["A01"]["gene"] == "BRCA1"


def test_the_public_sets_have_their_metadata_beside_the_folder_of_images(raw: Path, tmp_path: Path) -> None:
    """rxrx1/metadata.csv and rxrx1/images/EXP/PlateN, as the public archives unpack; no other folder is looked into so far up."""
    for name, known in (("images", True), ("pictures", False)):
        shutil.copytree(raw / "SYN-01", tmp_path / name / "set" / name / "SYN-01")
        shutil.copy(raw / "metadata.csv", tmp_path / name / "set" / "metadata.csv")
        plate = read_plate(find_plates([str(tmp_path / name / "set" / name)])[0])
        assert bool(plate.metadata) == known


def test_metadata_of_an_experiment_folder_go_before_those_above(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw, tmp_path / "raw")
    (tmp_path / "raw" / "SYN-01" / "metadata.csv").write_text("plate,well,gene\n1,A01,NEAR\n")
    near, above = find_plates([str(tmp_path / "raw")])
    assert read_plate(near).metadata["A01"]["gene"] == "NEAR"
    assert len(read_plate(above).metadata) == 6

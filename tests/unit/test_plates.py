"""Plates: positions, layouts, metadata, planes, synthetic screens."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from phenomhpc.errors import UsageError
from phenomhpc.plates import UnreadableImage, Well, find_plates, plane_shape, read_plane, read_plate
from phenomhpc.plates.synthetic import SyntheticSpec, genes_of, write_plates
from phenomhpc.plates.synthetic.writing import encode
from phenomhpc.progress import silent

SMALL = SyntheticSpec(experiments=2, plate_rows=2, plate_columns=3, field_px=64, num_genes=4, num_unexpressed=1)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "raw"
    write_plates(folder, SMALL, silent(), workers=1)
    return folder


def phenix(
    folder: Path, images: str, plate: str = "<PlateRows>16</PlateRows><PlateColumns>24</PlateColumns>", head: str = ""
) -> Path:
    """A measurement with this index."""
    folder.mkdir(parents=True)
    text = (
        f'<?xml version="1.0"?>{head}<EvaluationInputData xmlns="http://www.perkinelmer.com/PEHH/HarmonyV5"><Plates><Plate>'
        f"<PlateID>P1</PlateID>{plate}</Plate></Plates><Images>{images}</Images></EvaluationInputData>"
    )
    (folder / "Index.idx.xml").write_text(text)
    return folder


def image(channel: int, url: str, row: int = 1, column: int = 1, field: int = 1) -> str:
    place = f"<Row>{row}</Row><Col>{column}</Col><FieldID>{field}</FieldID><PlaneID>1</PlaneID>"
    return (
        f"<Image><URL>{url}</URL>{place}<ChannelID>{channel}</ChannelID><ChannelName>c{channel}</ChannelName></Image>"
    )


@pytest.mark.parametrize(
    ("text", "row", "column"), [("A1", 1, 1), ("a01", 1, 1), ("Z24", 26, 24), ("AA02", 27, 2), ("AF48", 32, 48)]
)
def test_a_well_is_read_and_written(text: str, row: int, column: int) -> None:
    well = Well.parse(text)
    assert (well.row, well.column) == (row, column)
    assert Well.parse(well.name) == well


@pytest.mark.parametrize("text", ["", "A", "1", "A0", "AAA1", "A1B", "Ä1", "A-1"])
def test_what_is_no_well_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is no well"):
        Well.parse(text)


def test_the_real_phenix_plate_is_16_by_24_and_its_well_a01(shared_data: Path) -> None:
    (found,) = find_plates([str(shared_data / "phenix")])
    plate = read_plate(found)
    assert (plate.rows, plate.columns, plate.key) == (16, 24, "BR00121482")
    assert [field.well.name for field in plate.fields] == ["A01"]
    assert [channel.name for channel in plate.channels][-2:] == ["HOECHST 33342", "Brightfield"]
    assert plate.fields[0].pixel_size_um == pytest.approx(0.5979760809567617)
    assert plane_shape(plate.fields[0].planes[0]) == (1080, 1080, "uint16")  # type: ignore[arg-type]


def test_a_phenix_plane_that_is_not_listed_stays_a_hole_and_order_is_declared(tmp_path: Path) -> None:
    images = image(10, "d.tiff", row=2) + image(1, "a.tiff", row=2) + image(2, "b.tiff") + image(1, "c.tiff")
    plate = read_plate(find_plates([str(phenix(tmp_path / "m", images))])[0])
    assert [channel.name for channel in plate.channels] == ["c1", "c2", "c10"]
    names = [[plane.name if plane else None for plane in field.planes] for field in plate.fields]
    assert names == [["c.tiff", "b.tiff", None], ["a.tiff", None, "d.tiff"]]


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("images", "plate", "head", "said"),
    [
        (image(1, "../../etc/passwd"), None, "", "leaves the measurement's folder"),
        (image(1, "/etc/passwd"), None, "", "leaves the measurement's folder"),
        (image(1, "a") + image(1, "b"), None, "", "listed twice"),
        ("", None, "", "lists no image"),
        (image(1, "a", row=0), None, "", "row 0"),
        (image(1, "a", row=17), None, "", "Q01 lies outside the plate of 16 x 24"),
        (image(1, "a"), "", "", "lacks 'PlateRows'"),
        (image(1, "a"), None, BOMB, "malformed or hostile"),
        ("<Image", None, "", "malformed or hostile"),
    ],
)
def test_a_malformed_or_hostile_index_is_refused_in_one_line(
    images: str, plate: str | None, head: str, said: str, tmp_path: Path
) -> None:
    folder = phenix(tmp_path / "m", images, head=head) if plate is None else phenix(tmp_path / "m", images, plate, head)
    with pytest.raises(UsageError, match=said) as caught:
        read_plate(find_plates([str(folder)])[0])
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_rxrx_plates_are_found_from_root_experiment_plate_and_glob(raw: Path) -> None:
    keys = ["SYN-01__Plate1", "SYN-02__Plate1"]
    assert [found.key for found in find_plates([str(raw)])] == keys
    assert [found.key for found in find_plates([str(raw / "SYN-01")])] == keys[:1]
    assert [found.key for found in find_plates([str(raw / "SYN-*")])] == keys
    assert [found.key for found in find_plates([str(raw / "SYN-02" / "Plate1"), str(raw / "SYN-01")])] == keys


def test_rxrx_metadata_are_joined_by_experiment_plate_and_well(raw: Path) -> None:
    plate = read_plate(find_plates([str(raw / "SYN-02")])[0])
    assert len(plate.fields) == 6 and (plate.rows, plate.columns) == (8, 12)
    assert [channel.name for channel in plate.channels] == ["DNA", "ER", "AGP", "RNA", "Mito", "Golgi"]
    controls = [well for well, row in plate.metadata.items() if row["is_control"] == "true"]
    assert len(controls) == SMALL.num_controls
    assert all(plate.metadata[well]["perturbation"] == "EMPTY_control" for well in controls)
    treated = next(row for row in plate.metadata.values() if row["is_control"] == "false")
    assert treated["perturbation"] == treated["gene"] and treated["perturbation_type"] == "gene"


def test_missing_files_and_wells_keep_their_slots(raw: Path, tmp_path: Path) -> None:
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    folder = copy / "SYN-01" / "Plate1"
    (folder / "A01_s1_w3.png").unlink()
    for plane in folder.glob("A02_*"):
        plane.unlink()
    plate = read_plate(find_plates([str(folder)])[0])
    assert [field.well.name for field in plate.fields] == ["A01", "A02", "A03", "B01", "B02", "B03"]
    assert [plane is None for plane in plate.fields[0].planes] == [False, False, True, False, False, False]
    assert all(plane is None for plane in plate.fields[1].planes)


def test_two_sources_of_one_key_are_refused_naming_both(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "SYN-01", tmp_path / "SYN-01")
    with pytest.raises(UsageError, match=f"two sources, {raw}.* and {tmp_path}"):
        find_plates([str(raw), str(tmp_path / "SYN-01")])


@pytest.mark.parametrize(
    ("pattern", "said"), [("absent", "no such folder"), ("file", "is a file"), ("empty", "is no plate")]
)
def test_what_is_no_plate_is_refused_with_what_was_looked_for(pattern: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=said):
        find_plates([str(tmp_path / pattern)])


def test_smiles_with_commas_and_rxrx1_names_are_read(raw: Path, tmp_path: Path) -> None:
    table = tmp_path / "m.csv"
    table.write_text('experiment,plate,well,sirna,SMILES,my_note\nSYN-01,1,A01,s1,"C(C,N)",hello\n')
    plate = read_plate(find_plates([str(raw / "SYN-01")])[0], table)
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
        read_plate(find_plates([str(raw / "SYN-01")])[0], tmp_path / "m.csv")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("image_format", ["png", "jp2", "tif"])
def test_every_format_comes_back_and_a_cut_file_never_passes_for_a_whole_one(
    dtype: str, image_format: str, tmp_path: Path
) -> None:
    noise = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (61, 83)).astype(dtype)
    data = encode(noise, image_format)
    assert np.array_equal(read_plane(data, "x"), noise)
    path = tmp_path / f"x.{image_format}"
    path.write_bytes(data)
    assert plane_shape(path) == (61, 83, dtype)
    for cut in [*range(0, len(data), max(1, len(data) // 60)), len(data) - 1]:
        try:
            plane = read_plane(data[:cut], "x")
        except UnreadableImage as error:
            assert "\n" not in str(error)
        else:
            assert np.array_equal(plane, noise), f"cut after {cut} of {len(data)} bytes gave wrong pixels"


def test_colour_images_and_floats_are_refused() -> None:
    with pytest.raises(UnreadableImage, match="colour"):
        read_plane(bytes(imagecodecs.png_encode(np.zeros((5, 6, 3), np.uint8))), "x")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((5, 6), np.float32))
    with pytest.raises(UnreadableImage, match="float32"):
        read_plane(buffer.getvalue(), "x")


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(raw: Path, tmp_path: Path) -> None:
    write_plates(tmp_path / "again", SMALL, silent(), workers=2)
    files = sorted(path.relative_to(raw) for path in raw.rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()
    )
    for file in files:
        assert (raw / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_relationships_arms_and_unexpressed_genes_are_written_beside(raw: Path) -> None:
    genes = genes_of(SMALL)
    lines = (raw / "annotations" / "PATHWAYS.txt").read_text().splitlines()
    together = {tuple(line.split(",")) for line in lines[1:]}
    by_name = {gene.name: gene for gene in genes}
    assert lines[0] == "entity1,entity2" and together
    assert all(by_name[one].pathway == by_name[other].pathway is not None for one, other in together)
    unexpressed = (raw / "annotations" / "unexpressed.txt").read_text().split()
    assert unexpressed == [gene.name for gene in genes if gene.pathway is None]
    arms = (raw / "annotations" / "gene_chromosome_map.tsv").read_text().splitlines()
    assert arms[0] == "Approved_symbol\tLocus\tChromosome" and len(arms) == 1 + len(genes)


def test_missing_planes_are_missing_files(tmp_path: Path) -> None:
    spec = SyntheticSpec(
        experiments=1, plate_rows=2, plate_columns=6, field_px=64, num_genes=4, missing_plane_share=0.3
    )
    write_plates(tmp_path, spec, silent(), workers=1)
    count = len(list(tmp_path.rglob("*.png")))
    assert 0.5 * 72 < count < 0.9 * 72


def test_perturbed_wells_differ_from_controls_and_pathways_look_alike(tmp_path: Path) -> None:
    """Without plate effects, the mean absolute difference of simple statistics is smaller within a pathway."""
    spec = SyntheticSpec(
        experiments=1, plate_rows=6, plate_columns=8, field_px=160, num_genes=8, genes_per_pathway=2, num_unexpressed=0,
        plate_effect=0.0, batch_effect=0.0, gene_effect=0.2, arm_effect=0.0, pathway_effect=3.0,
    )  # fmt: skip
    write_plates(tmp_path, spec, silent(), workers=1)
    plate = read_plate(find_plates([str(tmp_path)])[0])
    by_gene: dict[str, list[np.ndarray]] = {}
    for field in plate.fields:
        planes = [read_plane(plane.read_bytes(), "x").astype(float) for plane in field.planes if plane]
        grain = [np.abs(np.diff(plane, axis=0)).mean() for plane in planes]
        by_gene.setdefault(plate.metadata[field.well.name].get("gene", "control"), []).append(
            np.log([*(plane.mean() for plane in planes), *(plane.std() for plane in planes), *grain])
        )
    means = {
        gene: np.mean(rows, axis=0) - np.mean(by_gene["control"], axis=0)
        for gene, rows in by_gene.items()
        if gene != "control"
    }
    pathway = {gene.name: gene.pathway for gene in genes_of(spec)}
    unit = {gene: mean / np.linalg.norm(mean) for gene, mean in means.items()}
    pairs = [(one, other) for one in unit for other in unit if one < other]
    within = [float(unit[one] @ unit[other]) for one, other in pairs if pathway[one] == pathway[other]]
    between = [float(unit[one] @ unit[other]) for one, other in pairs if pathway[one] != pathway[other]]
    assert np.mean(within) > np.mean(between) + 0.3

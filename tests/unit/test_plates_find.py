"""Plates: positions, keys, what is found where, and slots that stay."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from phenomhpc.errors import UsageError
from phenomhpc.plates import (
    Channel,
    Field,
    Plane,
    Plate,
    PlateFolder,
    ReadOptions,
    Well,
    find_plates,
    plate_key,
    read_plate,
)
from phenomhpc.plates.find import LAYOUTS
from phenomhpc.plates.synthetic import write_plates
from phenomhpc.progress import silent
from tests.unit.raw_plates import SMALL, image, phenix


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "raw"
    write_plates(folder, SMALL, silent(), workers=1)
    return folder


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


def test_rxrx_plates_are_found_from_root_experiment_plate_and_glob(raw: Path) -> None:
    keys = ["SYN-01__Plate1", "SYN-02__Plate1"]
    assert [found.key for found in find_plates([str(raw)])] == keys
    assert [found.key for found in find_plates([str(raw / "SYN-01")])] == keys[:1]
    assert [found.key for found in find_plates([str(raw / "SYN-*")])] == keys
    assert [found.key for found in find_plates([str(raw / "SYN-02" / "Plate1"), str(raw / "SYN-01")])] == keys


def test_missing_files_and_wells_keep_their_slots(raw: Path, tmp_path: Path) -> None:
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    folder = copy / "SYN-01" / "Plate1"
    (folder / "A01_s1_w3.png").unlink()
    for plane in folder.glob("A02_*"):
        plane.unlink()
    plate = read_plate(find_plates([str(folder)])[0])
    assert [field.well.name for field in plate.fields] == ["A01", "A02", "A03", "B01", "B02", "B03"]
    assert [plane is None for (plane,) in plate.fields[0].planes] == [False, False, True, False, False, False]
    assert all(plane is None for (plane,) in plate.fields[1].planes)


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


def test_a_well_without_images_that_the_metadata_list_keeps_its_slot(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw, tmp_path / "raw")
    folder = tmp_path / "raw" / "SYN-01" / "Plate1"
    for plane in folder.glob("A02_*"):
        plane.unlink()
    (tmp_path / "raw" / "metadata.csv").unlink()
    without = read_plate(find_plates([str(folder)])[0])
    assert [field.well.name for field in without.fields] == ["A01", "A03", "B01", "B02", "B03"]
    known = read_plate(find_plates([str(folder)])[0], ReadOptions(metadata=raw / "metadata.csv"))
    assert [field.well.name for field in known.fields] == ["A01", "A02", "A03", "B01", "B02", "B03"]
    assert known.fields[1].planes == ((None,),) * 6


def test_fields_go_by_row_column_and_site_past_z(tmp_path: Path) -> None:
    folder = tmp_path / "EXP" / "Plate1"
    folder.mkdir(parents=True)
    names = ["AA02_s2_3.jp2", "AA02_s1_w1.png", "B10_s1_w1.tif", "b2_s1_w3.PNG", "Z01_s1_w1.png", "thumb.png"]
    for name in names:
        (folder / name).touch()
    plate = read_plate(find_plates([str(folder)])[0])
    places = [(field.well.name, field.site) for field in plate.fields]
    assert places == [(well, site) for well in ("B02", "B10", "Z01", "AA02") for site in (1, 2)]
    assert (plate.rows, plate.columns) == (32, 48)
    assert [channel.name for channel in plate.channels] == ["w1", "w3"]
    last = plate.fields[-1].planes
    assert last == ((None,), (Plane(folder / "AA02_s2_3.jp2"),))


def test_two_files_of_one_plane_spoil_their_field_only_and_what_is_no_well_is_a_stray(tmp_path: Path) -> None:
    folder = tmp_path / "EXP" / "Plate1"
    folder.mkdir(parents=True)
    for name in ("A01_s1_w1.png", "A01_s1_1.jp2", "A02_s1_w1.png", "A00_s1_w1.png", "ZZ01_s1_w1.png"):
        (folder / name).touch()
    (found,) = find_plates([str(folder)])
    plate = read_plate(found)
    assert [field.problem for field in plate.fields] == [
        ("duplicate", "A01_s1_1.jp2 and A01_s1_w1.png are the same plane"), None
    ]  # fmt: skip
    assert [thing for thing, _ in plate.strays] == ["'A00_s1_w1.png'", "'ZZ01_s1_w1.png'"]
    assert (plate.rows, plate.columns) == (8, 12)
    assert read_plate(found, ReadOptions(plate_format=1536)).columns == 48
    (folder / "Q01_s1_w1.png").touch()
    small = read_plate(found, ReadOptions(plate_format=96))
    assert len(small.fields) == 2 and "lie outside a plate of 96 wells" in small.strays[1][1]
    for path in folder.glob("[AQ]0[12]*"):
        path.unlink()
    with pytest.raises(UsageError, match=r"no image .* is left in it \(first: 'A00_s1_w1.png': 'A00' is no well"):
        read_plate(found)


def test_plates_of_several_layouts_below_one_folder_are_all_found(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "SYN-01", tmp_path / "SYN-01")
    phenix(tmp_path / "2021" / "P1-Measurement1" / "Images", image(1, "a.tiff"))
    found = find_plates([str(tmp_path)])
    assert [(plate.key, plate.layout) for plate in found] == [("P1", "phenix"), ("SYN-01__Plate1", "rxrx")]
    assert [plate.key for plate in find_plates([str(tmp_path)], "rxrx")] == ["SYN-01__Plate1"]
    with pytest.raises(UsageError, match="--layout cellvoyage: no such layout; allowed: auto, phenix, cellvoyager"):
        find_plates([str(tmp_path)], "cellvoyage")


def test_one_plate_named_twice_is_one_plate(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(raw / "SYN-01")
    found = find_plates([".", "Plate1", "../SYN-01/Plate1/", str(raw / "SYN-0?")])
    assert [plate.key for plate in found] == ["SYN-01__Plate1", "SYN-02__Plate1"]
    assert ".." not in found[0].path.parts


def test_no_folder_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="no folder is named"):
        find_plates([])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "EXP").mkdir(mode=0)
    with pytest.raises(UsageError, match="EXP cannot be read"):
        find_plates([str(tmp_path)])


class OneWell:
    """A layout of one well: plate.txt names its single image."""

    NAME = "one-well"
    LOOKED_FOR = "one well (plate.txt)"

    def sniff(self, folder: Path) -> bool:
        return (folder / "plate.txt").is_file()

    def describe(self, folder: Path) -> PlateFolder:
        return PlateFolder(path=folder, layout=self.NAME, key=folder.name, experiment="E", plate=folder.name)

    def read(self, found: PlateFolder, options: ReadOptions) -> Plate:
        plane = Plane(found.path / (found.path / "plate.txt").read_text())
        return Plate(
            key=found.key, experiment="E", plate=found.plate, rows=1, columns=1, channels=(Channel(index=0, name="c"),),
            fields=(Field(index=0, well=Well(row=1, column=1), site=1, planes=((plane,),)),), root=found.path, layout=self.NAME,
        )  # fmt: skip


def test_another_layout_plugs_in_as_one_object(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, OneWell.NAME, OneWell())
    shutil.copytree(raw, tmp_path / "raw")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "plate.txt").write_text("image.tif")
    found = {plate.key: plate for plate in find_plates([str(tmp_path / "raw"), str(tmp_path / "mine")])}
    assert set(found) == {"SYN-01__Plate1", "SYN-02__Plate1", "mine"}
    assert read_plate(found["mine"]).fields[0].planes == ((Plane(tmp_path / "mine" / "image.tif"),),)


def test_plate_names_become_keys_that_never_meet() -> None:
    assert plate_key("SYN-01", "Plate1") == "SYN-01__Plate1"
    keys = [plate_key(*parts) for parts in (("P 1",), ("P-1",), ("P/1",), ("P_1",), ("Ä", "1"), ("Ö", "1"), ("-", "1"))]
    assert len(set(keys)) == len(keys)
    assert all(key.isascii() and not set(key) & set(" /") for key in keys)


@pytest.mark.parametrize("name", ["", " ", "..", ".hidden", "x" * 161])
def test_names_that_no_file_can_have_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(UsageError, match="no usable name; rename it") as caught:
        plate_key(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_finding_plates_imports_no_image_library(raw: Path) -> None:
    code = (
        "import sys; from phenomhpc.plates import find_plates; assert len(find_plates(sys.argv[1:])) == 2; "
        "print([name for name in ('numpy', 'tifffile', 'imagecodecs', 'polars', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(raw)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

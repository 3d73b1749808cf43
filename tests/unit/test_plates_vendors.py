"""ImageXpress, CellVoyager and the Gallery: real samples, and what is missing, doubled, contradictory or hostile in them."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from phenomhpc.errors import UsageError
from phenomhpc.plates import Plate, ReadOptions, find_plates, gallery, read_plate
from phenomhpc.plates.metaseries import parse_metaseries, read_htd
from phenomhpc.plates.synthetic.layouts import tiff, write_layout
from phenomhpc.progress import silent
from phenomhpc.store import open_store
from phenomhpc.store.verify import verify
from tests.unit.test_plates_layouts import convert, plate

__all__ = ["plate"]


def reread(folder: Path, **options: object) -> Plate:
    (found,) = find_plates([str(folder)])
    return read_plate(found, ReadOptions(**options))  # type: ignore[arg-type]


def test_the_real_imagexpress_sample_is_placed_by_its_stage_labels(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "imagexpress"
    plate = reread(source)
    assert [(field.well.name, field.site, field.timepoint) for field in plate.fields] == [
        ("C07", 1, 1), ("C07", 1, 2), ("C07", 2, 1), ("C07", 2, 2)
    ]  # fmt: skip
    assert [channel.name for channel in plate.channels] == ["FITC", "Cy3", "Texas Red"]
    assert (plate.rows, plate.columns) == (8, 12)
    assert reread(source, plate_format=384).columns == 24
    convert(tmp_path, source, timepoint=2)
    store = open_store(tmp_path / "store")
    array = zarr.open_array(store.paths.images(plate.key), mode="r")
    files = sorted((source / "2024-04-22" / "1697" / "TimePoint_2").iterdir())
    expected = np.array([tifffile.imread(path) for path in files]).reshape(2, 3, 256, 256)
    assert np.array_equal(array[:], expected) and not verify(store, silent()).damage


def test_the_real_cellvoyager_sample_is_declared_by_its_lists(shared_data: Path, tmp_path: Path) -> None:
    source = tmp_path / "CV8000"
    shutil.copytree(shared_data / "cellvoyager" / "measurement" / "CV8000-stack", source)
    plate = reread(source)
    assert {field.well.name for field in plate.fields} == {"D08", "E03", "F08"} and len(plate.fields) == 3 * 4 * 4
    assert [(channel.name, channel.excitation_nm) for channel in plate.channels] == [
        ("BP445/45", 405.0),
        ("BP525/50", 488.0),
    ]
    assert (plate.rows, plate.columns, plate.fields[0].pixel_size_um) == (8, 12, 0.325)
    rng = np.random.default_rng(3)
    keyed = {}
    for path in sorted(source.glob("*_E03_*F002*.tif")):  # the sample's pixels are all zero
        keyed[path.name] = rng.integers(0, 2**16, (64, 64), np.uint16)
        path.chmod(0o644)
        path.write_bytes(tiff(keyed[path.name], compression="zlib"))
    index = source / "MeasurementData.mlf"
    index.chmod(0o644)
    lines = [line for line in index.read_text().splitlines() if "Record" not in line or "_E03_T0001F002" in line]
    index.write_text("\n".join(lines))
    convert(tmp_path, source, z="max")
    store = open_store(tmp_path / "store")
    array = zarr.open_array(store.paths.images(f"{tmp_path.name}__CV8000"), mode="r")
    for channel, name in enumerate(("C01", "C02")):
        stack = [pixels for file, pixels in keyed.items() if file.endswith(f"{name}.tif")]
        assert len(stack) == 4 and np.array_equal(array[0, channel], np.max(stack, axis=0))


def test_what_the_htd_declares_and_nobody_took_is_a_missing_plane(plate: Plate, tmp_path: Path) -> None:
    folder = write_layout(plate, tmp_path / "raw", "imagexpress")
    for path in (folder / "TimePoint_1").glob("*_B02_*"):
        path.unlink()
    next((folder / "TimePoint_1").glob("*_A01_s2_w4*")).unlink()
    (folder / "TimePoint_1" / "SYN-01_H12_s1_w1.tif").touch()
    (folder / "TimePoint_1" / "SYN-01_A01_s1_w1_thumb.tif").touch()
    read = reread(folder)
    assert [(field.well, field.site) for field in read.fields] == [(field.well, field.site) for field in plate.fields]
    holes = {
        (field.well.name, field.site, at)
        for field in read.fields
        for at, stack in enumerate(field.planes)
        if stack == (None,)
    }
    assert holes == {("A01", 2, 3), *(("B02", site, at) for site in (1, 2) for at in range(6))}
    assert [(thing.rsplit("/", 1)[1], reason) for thing, reason in read.strays] == [
        ("SYN-01_H12_s1_w1.tif", "the HTD does not declare it")
    ]


def test_a_stage_label_that_contradicts_the_name_spoils_both_fields(plate: Plate, tmp_path: Path) -> None:
    folder = write_layout(plate, tmp_path / "raw", "imagexpress-bare")
    one = next((folder / "TimePoint_1").glob("*_A01_s1_w1*"))
    one.rename(one.with_name(one.name.replace("_A01_s1_", "_B03_s2_").replace("w10", "w1F")))
    read = reread(folder)
    spoiled = {(field.well.name, field.site): field.problem for field in read.fields if field.problem}
    assert set(spoiled) == {("A01", 1), ("B03", 2)}
    assert all("its stage label says A01 site 1, its name B03 site 2" in problem[1] for problem in spoiled.values())


def test_two_htds_and_a_senseless_one_are_refused_in_one_line(plate: Plate, tmp_path: Path) -> None:
    folder = write_layout(plate, tmp_path / "raw", "imagexpress")
    htd = next(folder.glob("*.HTD"))
    text = htd.read_text()
    for bad, said in (
        (text.replace('"XWells", 12', '"XWells", 99999'), "XWells is '99999'"),
        (text.replace('"YWells", 8', '"YWells", -1'), "YWells is '-1'"),
        (re.sub("TRUE", "FALSE", text), "it selects no well"),
        (text[:20], "XWells is ''"),
        ('"a' * 200_000, "larger than field limit"),
    ):
        htd.write_text(bad)
        with pytest.raises(UsageError, match=said) as caught:
            reread(folder)
        assert "\n" not in str(caught.value)
    (folder / "other.htd").write_text(text)
    with pytest.raises(UsageError, match="has 2 HTD files"):
        reread(folder)


def test_sites_of_a_grid_are_numbered_as_the_names_are(tmp_path: Path) -> None:
    htd = tmp_path / "x.HTD"
    htd.write_text(
        '"XWells", 2\n"YWells", 1\n"WellsSelection1", TRUE, FALSE\n"Sites", TRUE\n"XSites", 2\n"YSites", 2\n'
        '"SiteSelection1", FALSE, TRUE\n"SiteSelection2", FALSE, TRUE\n"EndFile"\n',
        encoding="utf-16",
    )
    said = read_htd(htd)
    assert said.grid_sites == (2, 4) and [well.name for well in said.wells] == ["A01"]
    assert said.sites({2, 4}) == (2, 4) and said.sites({1, 2}) == (1, 2) and said.sites(set()) == (2, 4)


@pytest.mark.parametrize(
    "text", ["", "no xml", "<MetaData>", "<MetaData><PlaneInfo>", "<!DOCTYPE x [<!ENTITY a 'b'>]><MetaData>&a;</MetaData>",
             '<MetaData><prop id="stage-label" value="??"/><prop id="spatial-calibration-x" value="INF"/></MetaData>'],
)  # fmt: skip
def test_a_senseless_description_says_nothing(text: str) -> None:
    facts = parse_metaseries(text)
    assert (facts.well, facts.site, facts.pixel_size_um) == (None, None, None)


def test_a_plane_that_the_microscope_reports_as_failed_is_missing_with_its_words(plate: Plate, tmp_path: Path) -> None:
    folder = write_layout(plate, tmp_path / "raw", "cellvoyager")
    index = folder / "MeasurementData.mlf"
    text = index.read_text()
    lines = text.splitlines()
    failed = lines[3].replace('"IMG"', '"ERR"').split(">", 1)[0] + ">autofocus failed</bts:MeasurementRecord>"
    shading = re.sub(r">[^<]+<", ">SC_BP445_CH01.tif<", lines[1])
    dark = re.sub(r">[^<]+<", ">DC_sCMOS#1_CAM1.tif<", lines[1])
    hostile = re.sub(r">[^<]+<", ">../../../etc/passwd<", lines[20])
    stray = lines[1].replace('Row="1"', 'Row="77"')
    index.write_text(
        "\n".join([*lines[:3], failed, *lines[4:20], hostile, *lines[21:-1], lines[9], shading, dark, stray, lines[-1]])
    )
    read = reread(folder)
    assert [(field.well, field.site) for field in read.fields] == [(field.well, field.site) for field in plate.fields]
    problems = [field.problem for field in read.fields if field.problem]
    assert [problem[0] for problem in problems] == ["missing_plane", "duplicate", "hostile"]
    assert "channel 3: the microscope says 'autofocus failed'" in problems[0][1]
    assert len(read.strays) == 1 and "row '77'" not in read.strays[0][0] and "lies outside" in read.strays[0][1]


@pytest.mark.parametrize(
    "text", ["", "<x", "<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><x>&b;</x>", "<x/>", "\0\1\2"]
)
@pytest.mark.parametrize("layout", ["phenix", "phenix-7", "cellvoyager"])
def test_an_index_that_is_no_index_is_refused_in_one_line(layout: str, text: str, plate: Plate, tmp_path: Path) -> None:
    folder = write_layout(plate, tmp_path / "raw", layout)
    index = next(path for name in ("*.mlf", "Images/Index*") for path in folder.glob(name))
    index.write_text(text)
    with pytest.raises(UsageError) as caught:
        reread(folder)
    assert "\n" not in str(caught.value) and index.name in str(caught.value)


def test_the_gallerys_table_finds_images_around_it_and_nowhere_else(plate: Plate, tmp_path: Path) -> None:
    folder = write_layout(plate, tmp_path / "raw", "gallery")
    table = folder / "load_data_with_illum.csv"
    text = table.read_text()
    whole = reread(folder)
    said = [json.loads(text) for text in whole.illumination if text]
    assert [entry["kind"] for entry in said] == ["npy"] * 6 and all(Path(entry["path"]).is_file() for entry in said)
    lines = text.splitlines()
    first = lines[1].split(",")
    file = next(cell for cell in first if cell.endswith("_1.tiff"))
    (tmp_path / "secret.tiff").write_bytes(tiff(np.ones((40, 40), np.uint16)))
    for bad, status in (
        (f"../{file}", "hostile"),
        ("gone.tiff", "missing_plane"),
        (str(tmp_path / "secret.tiff"), "hostile"),
    ):
        table.write_text("\n".join([lines[0], lines[1].replace(file, bad), *lines[2:]]))
        problems = [field.problem for field in reread(folder).fields]
        assert problems[0] is not None and problems[0][0] == status and not any(problems[1:])
    cloud = lines[1].replace("/home/ubuntu/bucket", "s3://cellpainting-gallery")
    table.write_text("\n".join([lines[0], cloud, *lines[2:]]))
    problem = reread(folder).fields[0].problem
    assert problem is not None and "is no folder here; copy the images beside the CSV" in problem[1]
    other = lines[2].replace(f",{plate.plate},", ",other,").replace(f"{plate.plate},", "other,", 1)
    table.write_text("\n".join([lines[0], lines[1], other]))
    with pytest.raises(UsageError, match="make one CSV for each"):
        reread(folder)


def test_a_packed_table_of_the_gallery_is_read_and_a_damaged_one_or_a_bomb_refused(
    plate: Plate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_layout(plate, tmp_path / "raw", "gallery")
    table = folder / "load_data_with_illum.csv"
    text, whole = table.read_bytes(), reread(folder)
    table.unlink()
    packed = table.with_name("load_data_with_illum.csv.gz")
    packed.write_bytes(gzip.compress(text))
    assert reread(folder) == whole
    (found,) = find_plates([str(folder)])
    lines = text.splitlines(keepends=True)
    endless = gzip.compress(b"".join(lines[:2]) + lines[2].rstrip() + b"x" * 64 * 2**20, 1)
    monkeypatch.setattr(gallery, "_MAX_BYTES", 2**22)
    many = gzip.compress(lines[0] + lines[1] * (2**22 // len(lines[1]) + 1))
    for data, said in (
        (gzip.compress(text)[:-9], "is no CSV in UTF-8"),
        (endless, "a line of more than 1048576 characters"),
        (many, "more than 4 MiB"),
    ):
        packed.write_bytes(data)
        with pytest.raises(UsageError, match=said) as caught:
            read_plate(found)
        assert "\n" not in str(caught.value) and packed.name in str(caught.value)
    packed.write_bytes(b"no gzip")
    with pytest.raises(UsageError, match="is no plate"):
        reread(folder)


def test_the_real_table_of_the_gallery_names_the_real_planes(shared_data: Path) -> None:
    (found,) = find_plates([str(shared_data / "phenix")], "gallery")
    read = read_plate(found)
    assert found.plate == "BR00121482" and [channel.name for channel in read.channels] == [
        "RNA", "ER", "AGP", "Mito", "Brightfield", "DNA"
    ]  # fmt: skip
    (field,) = read.fields
    assert field.planes[5][0].path.name == "r01c01f01p01-ch5sk1fk1fl1.tiff"  # type: ignore[union-attr]
    assert (field.well.name, field.pixel_size_um) == ("A01", pytest.approx(0.5979760809567617))


RACE = """
import importlib.machinery, sys, threading, time, types
import phenomhpc.plates.metaseries as metaseries
import xml.etree.ElementTree

class Patched(types.ModuleType):
    def __setattr__(self, name, value):
        time.sleep(0.5)
        super().__setattr__(name, value)

class Slow:
    '''Lets another thread come in while defusedxml has a second copy of the module in the place of the first.'''

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "xml.etree.ElementTree":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def slowly(module):
            came.set()
            time.sleep(0.5)
            run(module)
            module.__class__ = Patched

        spec.loader.exec_module = slowly
        return spec

came, broken = threading.Event(), "<MetaData><prop></MetaData>"
sys.meta_path.insert(0, Slow)
ends = []

def parse():
    try:
        ends.append(metaseries.parse_metaseries(broken))
    except Exception as error:
        ends.append(error)

first = threading.Thread(target=parse)
first.start()
came.wait()
second = threading.Thread(target=parse)
second.start()
first.join(), second.join()
assert ends == [metaseries.ImageFacts()] * 2, ends
"""


def test_two_threads_that_meet_their_first_broken_xml_at_once_both_catch_it() -> None:
    """defusedxml replaces a module of the standard library while it is imported: an exception's class came from the other one."""
    subprocess.run([sys.executable, "-c", RACE], check=True, timeout=60)

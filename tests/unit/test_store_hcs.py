"""Exported plates: as the specification says, as other readers see them, whole after kills, and back again."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr

from phenomhpc.errors import UsageError, WorkError
from phenomhpc.jobs.export_hcs import Exported, export_hcs
from phenomhpc.plates import Plate, Well, find_plates, read_plate
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.plates.synthetic.layouts import write_layout
from phenomhpc.progress import silent
from phenomhpc.store import Snapshot, open_store
from phenomhpc.store.hcs import CHUNK_PX, colours, site_images
from phenomhpc.store.verify import verify
from tests.unit.test_plates_layouts import convert

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what ngio's own dependencies deprecate is not ours
    import ngio
    import ome_zarr_models.v05

KEY = "SYN-01__Plate1"
# An odd size of three levels; two sites.
SIZE = 2 * CHUNK_PX + 11
SPEC = SyntheticSpec(
    experiments=1, plates_per_experiment=1, plate_rows=1, plate_columns=3, sites=2, field_px=SIZE, num_genes=1,
    num_unexpressed=0, image_format="tif", dtype="uint16",
)  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_plates(folder, SPEC, silent(), workers=1)
    return folder


@pytest.fixture(scope="module")
def exported(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `store` and its export `out`."""
    folder = tmp_path_factory.mktemp("exported")
    convert(folder, raw)
    done = export(folder)
    assert (done.fields, done.written, done.left_out, done.split) == (6, 6, (), ())
    return folder


def export(folder: Path, **settings: Any) -> Exported:
    return export_hcs(open_store(folder / "store"), folder / "out", silent(), **{"workers": 1, **settings})


def stored(folder: Path, key: str = KEY) -> dict[tuple[str, int, int, str], np.ndarray]:  # type: ignore[type-arg]
    """Pixels of the usable fields of a store by well, site, timepoint and z."""
    store = open_store(folder / "store")
    array = zarr.open_array(store.paths.images(key), mode="r")
    rows = Snapshot.open(store).fields().to_dicts()
    return {
        (row["well"], row["site"], row["timepoint"], row["z"]): np.asarray(array[row["field_index"]])
        for row in rows
        if row["status"] == "ok" and row["plate"] == key
    }


def naive(pixels: np.ndarray, level: int) -> np.ndarray:  # type: ignore[type-arg]
    """Means of whole blocks, halves up; what lies behind the edge counts as not there."""
    edge = 2**level
    height, width = (-(-size // edge) for size in pixels.shape[1:])
    sums, counts = (
        np.pad(values, [(0, 0), (0, height * edge - values.shape[1]), (0, width * edge - values.shape[2])])
        .reshape(len(values), height, edge, width, edge)
        .sum(axis=(2, 4), dtype=np.float64)
        for values in (pixels, np.ones_like(pixels))
    )
    return np.floor(sums / counts + 0.5).astype(pixels.dtype)


def open_other(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(
        tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}).result().read().result()
    )


def said(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "zarr.json").read_bytes())["attributes"]["ome"]
    return found


# -- what is in it ----------------------------------------------------------------------------------------------------


def test_pixels_and_pyramids_as_zarr_and_tensorstore_read_them(exported: Path) -> None:
    for (well, site, _, _), pixels in stored(exported).items():
        image = exported / "out" / f"{KEY}.zarr" / "A" / str(int(well[1:])) / str(site)
        paths = [entry["path"] for entry in said(image)["multiscales"][0]["datasets"]]
        assert paths == ["0", "1", "2"]
        for level, path in enumerate(paths):
            array = zarr.open_array(image / path, mode="r")
            assert array.dtype == "uint16" and array.chunks == (1, CHUNK_PX, CHUNK_PX)
            assert np.array_equal(array[:], open_other(image / path))
            if (well, site) == ("A02", 1) or level == 0:
                assert np.array_equal(array[:], naive(pixels, level) if level else pixels)


def test_metadata_are_what_the_specifications_models_accept(exported: Path) -> None:
    plate = exported / "out" / f"{KEY}.zarr"
    hcs = ome_zarr_models.v05.HCS.from_zarr(zarr.open_group(plate, mode="r"))
    about = hcs.ome_attributes.plate
    assert [row.name for row in about.rows] == list("ABCDEFGH")
    assert [column.name for column in about.columns] == [str(number) for number in range(1, 13)]
    assert [well.path for well in about.wells] == ["A/1", "A/2", "A/3"] and about.field_count == 2
    assert about.acquisitions is not None and about.acquisitions[0].maximumfieldcount == 2
    for well in hcs.well_groups:
        assert [image.path for image in well.ome_attributes.well.images] == ["1", "2"]
    image = ome_zarr_models.v05.Image.from_zarr(zarr.open_group(plate / "A/1/1", mode="r"))
    assert [axis.name for axis in image.ome_attributes.multiscales[0].axes] == ["c", "y", "x"]
    assert {path.name for path in plate.iterdir()} == {"zarr.json", "A", "tables"}  # no empty rows


def test_ngio_opens_plate_image_levels_channels_and_the_table_of_wells(exported: Path) -> None:
    plate = ngio.open_ome_zarr_plate(exported / "out" / f"{KEY}.zarr", mode="r")
    assert (len(plate.rows), len(plate.columns)) == (8, 12)
    pixels = stored(exported)["A02", 2, 0, ""]
    container = plate.get_image(row="A", column="2", image_path="2")
    assert container.channel_labels == ["DNA", "ER", "AGP", "RNA", "Mito", "Golgi"]
    assert np.array_equal(container.get_image(path="0").get_as_numpy(), pixels)
    assert np.array_equal(container.get_image(path="1").get_as_numpy(), naive(pixels, 1))
    table = plate.get_table("wells").dataframe
    fields = Snapshot.open(open_store(exported / "store")).fields().filter(site=1)
    assert table["well"].to_list() == ["A01", "A02", "A03"]
    for name in ("gene", "perturbation", "perturbation_type", "is_control"):
        assert [None if value == "" else value for value in table[name]] == fields[name].to_list()


def test_windows_come_from_the_pixels_and_colours_from_names(exported: Path) -> None:
    image = said(exported / "out" / f"{KEY}.zarr" / "A/3/1")
    sample = np.stack([pixels[:, ::4, ::4] for pixels in stored(exported).values()])
    for channel, entry in enumerate(image["omero"]["channels"]):
        window = entry["window"]
        low, high = np.percentile(sample[:, channel], (1, 99.8), method="inverted_cdf")
        assert window == {"min": 0, "max": 65535, "start": low, "end": high}
    assert [entry["color"] for entry in image["omero"]["channels"]] == [
        "0000FF", "00FF00", "FF8000", "FFFF00", "FF0000", "00FFFF"
    ]  # fmt: skip
    assert colours(["HOECHST 33342", "Alexa 647", "Brightfield"]) == ["0000FF", "FF0000", "FFFFFF"]
    assert len(set(colours(["w1", "w2", "w3", "w4", "w5", "w6"]))) == 6


def test_the_largest_plate_has_all_of_its_rows_and_columns(raw: Path, tmp_path: Path) -> None:
    plate = read_plate(find_plates([str(raw)])[0])
    last = replace(plate.fields[0], well=Well(row=32, column=48))
    write_layout(replace(plate, rows=32, columns=48, fields=(last,)), tmp_path / "raw", "phenix")
    convert(tmp_path, tmp_path / "raw")
    (key,) = export(tmp_path).plates
    about = said(tmp_path / "out" / f"{key}.zarr")["plate"]
    assert [row["name"] for row in about["rows"]][24:28] == ["Y", "Z", "AA", "AB"] and len(about["rows"]) == 32
    assert about["wells"] == [{"path": "AF/48", "rowIndex": 31, "columnIndex": 47}] and len(about["columns"]) == 48
    ome_zarr_models.v05.HCS.from_zarr(zarr.open_group(tmp_path / "out" / f"{key}.zarr", mode="r"))


def test_size_of_a_pixel_and_position_of_a_field(raw: Path, tmp_path: Path) -> None:
    """The synthetic Phenix plate has 0.6 um pixels, and sites 100 um apart."""
    write_layout(read_plate(find_plates([str(raw)])[0]), tmp_path / "raw", "phenix")
    convert(tmp_path, tmp_path / "raw")
    (key,) = export(tmp_path).plates
    scales = said(tmp_path / "out" / f"{key}.zarr" / "A/1/2")["multiscales"][0]
    assert [axis.get("unit") for axis in scales["axes"]] == [None, "micrometer", "micrometer"]
    steps = [entry["coordinateTransformations"] for entry in scales["datasets"]]
    assert steps[0][0]["scale"] == pytest.approx([1, 0.6, 0.6]) and steps[2][0]["scale"] == pytest.approx([1, 2.4, 2.4])
    assert steps[0][1]["translation"] == pytest.approx([0, 0, 200])
    assert steps[2][1]["translation"] == pytest.approx([0, 0.9, 200.9])  # the middle of a block of four


@pytest.mark.parametrize("settings", [{"dtype": "uint8"}, {"overrides": "raw"}])
def test_other_stores(settings: dict[str, str], raw: Path, tmp_path: Path) -> None:
    """8 bits through a look-up table, which stands in the plate; chunks that are not compressed."""
    how: dict[str, Any] = {"codec": {"compress": False}} if "overrides" in settings else settings
    convert(tmp_path, raw, **how)
    export(tmp_path, levels=2)
    image = tmp_path / "out" / f"{KEY}.zarr" / "A/1/1"
    pixels = stored(tmp_path)["A01", 1, 0, ""]
    assert np.array_equal(zarr.open_array(image / "0", mode="r")[:], pixels)
    assert np.array_equal(open_other(image / "1"), naive(pixels, 1)) and not (image / "2").exists()
    attributes = json.loads((tmp_path / "out" / f"{KEY}.zarr" / "zarr.json").read_bytes())["attributes"]
    if how is settings:
        assert len(attributes["phenomhpc"]["lookup"]["low"]) == 6
        assert said(image)["omero"]["channels"][0]["window"]["max"] == 255


@pytest.mark.shared
def test_the_real_phenix_field(shared_data: Path, tmp_path: Path) -> None:
    import tifffile

    convert(tmp_path, shared_data / "phenix")
    (key,) = export(tmp_path).plates
    image = ngio.open_ome_zarr_plate(tmp_path / "out" / f"{key}.zarr", mode="r").get_image("A", 1, "1")
    planes = [
        tifffile.imread(shared_data / "phenix" / "images" / f"r01c01f01p01-ch{number}sk1fk1fl1.tiff")
        for number in range(1, 7)
    ]
    assert np.array_equal(image.get_image(path="0").get_as_numpy(), np.stack(planes))
    assert image.get_image(path="3").shape == (6, 135, 135)
    assert image.get_image(path="0").pixel_size.x == pytest.approx(0.597976, abs=1e-6)


# -- stacks and time --------------------------------------------------------------------------------------------------


def small(raw: Path, **changes: Any) -> Plate:
    """The synthetic plate as fields of 40 x 40, for what does not depend on the size."""
    return replace(read_plate(find_plates([str(raw)])[0]), **changes)


@pytest.fixture(scope="module")
def small_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_plates(folder, replace(SPEC, field_px=40), silent(), workers=1)
    return folder


def test_stacks_and_timepoints_become_axes(small_raw: Path, tmp_path: Path) -> None:
    plate = small(small_raw)
    later = tuple(replace(field, timepoint=1, planes=plate.fields[0].planes) for field in plate.fields)
    write_layout(replace(plate, fields=(*plate.fields, *later)), tmp_path / "raw", "cellvoyager", stack=3)
    convert(tmp_path, tmp_path / "raw")
    done = export(tmp_path)
    (key,) = done.plates
    assert (done.fields, done.split) == (36, ())
    image = tmp_path / "out" / f"{key}.zarr" / "A/2/1"
    assert [axis["name"] for axis in said(image)["multiscales"][0]["axes"]] == list("tczyx")
    array = zarr.open_array(image / "0", mode="r")
    assert array.shape == (2, 6, 3, 40, 40) and np.array_equal(array[:], open_other(image / "0"))
    for (well, site, timepoint, z), pixels in stored(tmp_path, key).items():
        if (well, site) == ("A02", 1):
            assert np.array_equal(array[timepoint - 1, :, int(z) - 1], pixels)
    seen = ngio.open_ome_zarr_plate(tmp_path / "out" / f"{key}.zarr", mode="r").get_image("A", 2, "1").get_image()
    assert np.array_equal(seen.get_as_numpy(axes_order=("t", "c", "z", "y", "x")), array[:])
    ome_zarr_models.v05.HCS.from_zarr(zarr.open_group(tmp_path / "out" / f"{key}.zarr", mode="r"))
    assert_same_again(tmp_path)


def test_a_stack_that_lacks_a_plane_becomes_single_images_and_what_is_set_aside_is_named(
    small_raw: Path, tmp_path: Path
) -> None:
    written = write_layout(small(small_raw), tmp_path / "raw", "phenix", stack=2)
    next((written / "Images").glob("r01c01f01p02-ch3*")).unlink()
    for plane in (written / "Images").glob("r01c03*"):
        plane.write_bytes(b"")
    convert(tmp_path, written, max_set_aside=0.9)
    (key,) = open_store(tmp_path / "store").paths.converted_plates()
    done = export(tmp_path)
    assert done.split == (f"{key} A01 site 1",) and done.fields == 7 and len(done.left_out) == 5
    assert done.left_out[0][0] == f"{key} A01 site 1" and "does not exist" in done.left_out[0][1]
    plate = tmp_path / "out" / f"{key}.zarr"
    assert [well["path"] for well in said(plate)["plate"]["wells"]] == ["A/1", "A/2"]
    assert [image["path"] for image in said(plate / "A/1")["well"]["images"]] == ["1p1", "2"]
    assert zarr.open_array(plate / "A/1/1p1/0", mode="r").shape == (6, 40, 40)
    assert zarr.open_array(plate / "A/1/2/0", mode="r").shape == (6, 2, 40, 40)
    rows = list(csv.DictReader((tmp_path / "out" / f"{key}.left_out.csv").read_text().splitlines()))
    assert [(row["well"], row["z"], row["status"]) for row in rows][:2] == [
        ("A01", "2", "missing_plane"), ("A03", "1", "unreadable")
    ]  # fmt: skip
    assert not (plate / "A/3").exists()
    assert_same_again(tmp_path)


def assert_same_again(folder: Path) -> None:
    """The exported plates, converted, are the same usable fields with the same pixels, places and metadata."""
    convert(folder / "again", folder / "out")
    once, again = (Snapshot.open(open_store(place / "store")) for place in (folder, folder / "again"))
    columns = [
        "plate", "well", "site", "timepoint", "z", "position_x_um", "position_y_um", "pixel_size_um", "crc32c", "gene",
        "perturbation", "perturbation_type", "is_control", "experiment", "meta_well_id",
    ]  # fmt: skip
    columns = [name for name in columns if name in once.fields().columns]
    usable = [snapshot.fields().filter(status="ok").select(columns) for snapshot in (once, again)]
    assert usable[0].rows() == usable[1].rows()
    assert (once.channels, once.dtype) == (again.channels, again.dtype)
    assert again.fields().filter(status="ok").height == again.fields().height
    verdict = verify(open_store(folder / "again" / "store"), silent())
    assert verdict.damage == () and verdict.sources == 6 * again.num_fields


def test_an_exported_plate_comes_back_as_the_same_snapshot(exported: Path, tmp_path: Path) -> None:
    """Not only the same pixels: the digest covers every field's place, metadata and quality."""
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    assert_same_again(tmp_path)
    digests = [open_store(place / "store").paths.latest.read_text() for place in (tmp_path, tmp_path / "again")]
    assert digests[0] == digests[1]


def test_images_of_a_site_are_one_only_where_its_grid_is_full() -> None:
    def row(timepoint: int, z: str, status: str = "ok") -> dict[str, Any]:
        return {"site": 1, "timepoint": timepoint, "z": z, "status": status}

    full = [row(time, z) for time in (1, 2) for z in ("1", "2")]
    (image,) = site_images(full[::-1])
    assert (image.axes, image.timepoints, image.path) == ("tczyx", (1, 2), "1")
    assert [image.position(number) for number in range(4)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [image.path for image in site_images(full[:3])] == ["1p1", "1p2", "1p3"]
    assert [image.axes for image in site_images([*full[:3], row(2, "2", "unreadable")])] == ["cyx"] * 3
    assert site_images([row(1, "", "bad_shape")]) == []


# -- going on ---------------------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in (folder / "out").rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if ".progress" not in path.relative_to(folder).parts
    }


KILLS = 100 if os.environ.get("PHENOMHPC_SOAK") else 3


@pytest.mark.timeout(3600 if KILLS > 5 else 600)
def test_kills_at_random_moments_leave_the_export_of_an_undisturbed_run(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "store", tmp_path / "store")
    program = (
        "import sys; from pathlib import Path; from phenomhpc.jobs.export_hcs import export_hcs;"
        "from phenomhpc.progress import silent; from phenomhpc.store import open_store; folder = Path(sys.argv[1]);"
        "export_hcs(open_store(folder / 'store'), folder / 'out', silent(), workers=2)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    began = time.monotonic()
    subprocess.run(command, check=True, timeout=120)
    whole = time.monotonic() - began
    assert content(tmp_path) == content(exported)
    moments, kills, cut = random.Random(20241124), 0, 0
    for _ in range(6 * KILLS):
        if kills == KILLS:
            break
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.3, 1.0) * whole)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        plate = tmp_path / "out" / f"{KEY}.zarr"
        if (plate / "zarr.json").is_file():
            assert all((plate / f"A/{column}/2/2/zarr.json").is_file() for column in (1, 2, 3))
            shutil.rmtree(tmp_path / "out")
        else:
            cut += plate.exists()
    assert kills == KILLS and cut
    # What a kill between write and rename leaves, where the moments above may not have fallen.
    for folder in ("", f"{KEY}.zarr", f"{KEY}.zarr/A", f"{KEY}.zarr/A/1", f"{KEY}.zarr/tables"):
        name = f"{KEY}.left_out.csv" if not folder else "zarr.json"
        (tmp_path / "out" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / folder / f"{name}.tmp-dead").touch()
    (tmp_path / "out" / ".progress" / KEY / "A01.json").unlink(missing_ok=True)
    export(tmp_path)
    assert content(tmp_path) == content(exported)


def test_what_is_there_is_not_written_again_and_what_was_lost_or_has_changed_is(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    plate = tmp_path / "out" / f"{KEY}.zarr"
    before = {path: path.stat().st_mtime_ns for path in plate.rglob("*")}
    assert export(tmp_path).written == 0
    assert before == {path: path.stat().st_mtime_ns for path in plate.rglob("*")}
    (plate / "A/2/1/1/c/0/0/0").unlink()
    assert export(tmp_path).written == 2 and content(tmp_path) == content(exported)
    assert export(tmp_path, levels=1).written == 6 and not (plate / "A/1/1/1").exists()
    assert export(tmp_path).written == 6 and content(tmp_path) == content(exported)


def test_a_well_whose_fields_were_all_set_aside_since_is_taken_out(small_raw: Path, tmp_path: Path) -> None:
    shutil.copytree(small_raw, tmp_path / "raw")
    convert(tmp_path, tmp_path / "raw")
    export(tmp_path)
    for plane in (tmp_path / "raw" / "SYN-01" / "Plate1").glob("A02_*"):
        plane.write_bytes(b"")
    convert(tmp_path, tmp_path / "raw", max_set_aside=0.9)
    done = export(tmp_path)
    plate = tmp_path / "out" / f"{KEY}.zarr"
    assert (done.fields, done.written) == (4, 0) and not (plate / "A/2").exists()
    assert [well["path"] for well in said(plate)["plate"]["wells"]] == ["A/1", "A/3"]
    assert (tmp_path / "out" / f"{KEY}.left_out.csv").is_file()


def test_a_plate_without_a_usable_field_is_taken_out_and_said(tmp_path: Path) -> None:
    write_plates(tmp_path / "raw", replace(SPEC, field_px=40, plates_per_experiment=2), silent(), workers=1)
    convert(tmp_path, tmp_path / "raw")
    assert export(tmp_path).plates == (KEY, "SYN-01__Plate2")
    for plane in (tmp_path / "raw" / "SYN-01" / "Plate2").glob("A0*"):
        plane.write_bytes(plane.read_bytes()[:-10])
    convert(tmp_path, tmp_path / "raw", max_set_aside=0.9)
    done = export(tmp_path)
    assert (done.plates, done.empty, done.written, len(done.left_out)) == ((KEY,), ("SYN-01__Plate2",), 0, 6)
    assert not (tmp_path / "out" / "SYN-01__Plate2.zarr").exists()


def test_a_damaged_field_ends_the_export_in_one_line_and_leaves_no_plate(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "store", tmp_path / "store")
    shard = open_store(tmp_path / "store").paths.shard(KEY, 0)
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 4
    shard.write_bytes(data)
    for workers in (1, 2):
        with pytest.raises(WorkError, match=f"plate {KEY}.*see store verify") as caught:
            export(tmp_path, workers=workers)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out" / f"{KEY}.zarr" / "zarr.json").exists()


def test_what_cannot_be_exported_is_refused_in_one_line(exported: Path, tmp_path: Path) -> None:
    store = open_store(exported / "store")
    (tmp_path / "foreign" / f"{KEY}.zarr").mkdir(parents=True)
    (tmp_path / "file").touch()
    for settings, where, words in (
        ({"plates": ("SYN-01__Plate2",)}, "out", f"--plate SYN-01__Plate2: the store has no such plate; it has {KEY}"),
        ({"levels": 0}, "out", "--levels 0: 1 to 9"),
        ({"levels": 10}, "out", "--levels 10: 1 to 9"),
        ({}, "foreign", f"{KEY}.zarr is there and is no export of it"),
        ({}, "file", "is a file"),
        ({}, str(exported / "store"), "is a store"),
    ):
        with pytest.raises(UsageError) as caught:
            export_hcs(store, tmp_path / where, silent(), **settings)  # type: ignore[arg-type]
        assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_two_exports_into_one_folder_do_not_meet(exported: Path, tmp_path: Path) -> None:
    import fcntl

    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "out" / ".progress" / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another export is writing there"):
            export(tmp_path)


def test_the_command_says_what_it_has_done(small_raw: Path, tmp_path: Path) -> None:
    shutil.copytree(small_raw, tmp_path / "raw")
    (tmp_path / "raw" / "SYN-01" / "Plate1" / "A02_s1_w2.tif").write_bytes(b"")
    convert(tmp_path, tmp_path / "raw", max_set_aside=0.9)
    program = str(Path(sys.executable).parent / "phenomhpc")
    command = [program, "store", "export-hcs", str(tmp_path / "store"), "--to", str(tmp_path / "out")]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "1 left out, as the store has them" in first.stdout and f"{KEY} A02 site 1" in first.stdout
    assert first.stdout.splitlines()[-1] == f"5 fields of 1 plate(s) are in {tmp_path / 'out'}, 5 written now"
    assert "export: 5/5 fields" in first.stderr
    again = subprocess.run([*command, "--json", "--plate", KEY], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["written"] == 0

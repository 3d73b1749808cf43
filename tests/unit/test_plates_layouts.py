"""The same plate in every layout: declared alike, converted to the same pixels; stacks kept, picked or projected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from phenomhpc.config import ConvertConfig
from phenomhpc.errors import SET_ASIDE, UsageError
from phenomhpc.jobs.base import Summary
from phenomhpc.jobs.here import run_here
from phenomhpc.plates import Plate, ReadOptions, decode_plane, find_plates, plane_bytes, read_plate
from phenomhpc.plates.project import Projection
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.plates.synthetic.layouts import FLAT, WRITERS, write_layout, z_plane
from phenomhpc.progress import silent
from phenomhpc.store import Snapshot, open_store
from phenomhpc.store.verify import verify

SPEC = SyntheticSpec(
    experiments=1, plates_per_experiment=1, plate_rows=2, plate_columns=3, sites=2, field_px=40, num_genes=2,
    num_unexpressed=0, image_format="tif", dtype="uint16",
)  # fmt: skip


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> Plate:
    folder = tmp_path_factory.mktemp("plates")
    write_plates(folder, SPEC, silent(), workers=1)
    (found,) = find_plates([str(folder / "SYN-01" / "Plate1")])
    # A plate that is not full: positions are declared, not counted.
    whole = read_plate(found)
    return replace(whole, rows=8, columns=12, fields=tuple(field for field in whole.fields if field.well.name != "A02"))


def pixels(plate: Plate) -> np.ndarray:  # type: ignore[type-arg]
    """(field, channel, y, x)"""
    rows = [[decode_plane(stack[0], plane_bytes(stack[0])) for stack in field.planes] for field in plate.fields]  # type: ignore[arg-type]
    return np.array(rows)


def convert(folder: Path, raw: Path, **settings: object) -> Summary:
    values = {"plates": (str(raw),), "store": str(folder / "store"), "runs": str(folder / "runs"), "workers": 1}
    config = ConvertConfig.model_validate({**values, **settings})
    return run_here(config, command=["test"], progress=silent())[1]


def stored(folder: Path) -> np.ndarray:  # type: ignore[type-arg]
    store = open_store(folder / "store")
    (key,) = store.paths.converted_plates()
    return np.asarray(zarr.open_array(store.paths.images(key), mode="r")[:])


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_declares_the_same_plate_and_converts_to_the_same_pixels(
    layout: str, plate: Plate, tmp_path: Path
) -> None:
    written = write_layout(plate, tmp_path / "raw", layout)
    (found,) = find_plates([str(written)])
    assert found.layout == layout.split("-")[0]
    read = read_plate(found)
    assert [(field.well, field.site) for field in read.fields] == [(field.well, field.site) for field in plate.fields]
    assert [channel.name for channel in read.channels] == [channel.name for channel in plate.channels]
    assert (read.rows, read.columns) == (8, 12) and read.strays == ()
    if layout != "gallery":  # there they are looked for around the table
        assert all(plane and plane.path.is_relative_to(written) for field in read.fields for (plane,) in field.planes)
    assert convert(tmp_path, written).exit_code == 0
    assert np.array_equal(stored(tmp_path), pixels(plate))
    store = open_store(tmp_path / "store")
    verdict = verify(store, silent())
    assert (verdict.damage, verdict.sources) == ((), len(plate.fields) * 6)
    fields = Snapshot.open(store).fields()
    if layout not in ("imagexpress", *FLAT):  # an HTD does not say it
        assert fields["pixel_size_um"].to_list() == pytest.approx([0.6] * len(plate.fields))


@pytest.mark.parametrize("layout", [layout for layout in WRITERS if layout not in FLAT])
def test_of_a_stack_all_planes_are_kept_or_one_or_a_projection(layout: str, plate: Plate, tmp_path: Path) -> None:
    written = write_layout(plate, tmp_path / "raw", layout, stack=3)
    (found,) = find_plates([str(written)])
    whole = read_plate(found)
    assert [field.z for field in whole.fields[:4]] == ["1", "2", "3", "1"] and len(whole.fields) == 3 * len(
        plate.fields
    )
    planes = pixels(plate)
    assert np.array_equal(pixels(whole), np.repeat(planes, 3, axis=0) * 0 + interleaved(planes))
    second = read_plate(found, ReadOptions(z="2"))
    assert np.array_equal(pixels(second), z_planes(planes, 2))
    assert [field.index for field in second.fields] == list(range(len(plate.fields)))
    assert convert(tmp_path, written, z="max").exit_code == 0
    assert np.array_equal(stored(tmp_path), np.max([z_planes(planes, z) for z in (1, 2, 3)], axis=0))
    assert set(Snapshot.open(open_store(tmp_path / "store")).fields()["z"]) == {"max"}


def z_planes(planes: np.ndarray, z: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.array([[z_plane(plane, z) for plane in field] for field in planes])


def interleaved(planes: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.stack([z_planes(planes, z) for z in (1, 2, 3)], axis=1).reshape(-1, *planes.shape[1:])


def test_a_z_plane_that_no_site_has_is_refused_with_what_there_is(plate: Plate, tmp_path: Path) -> None:
    (found,) = find_plates([str(write_layout(plate, tmp_path / "raw", "cellvoyager", stack=2))])
    for z in ("3", "maximum"):
        with pytest.raises(UsageError, match=rf"--z {z}: it has no such one; it has 1, 2 \(or all, max, focus\)"):
            read_plate(found, ReadOptions(z=z))


def test_focus_takes_the_sharp_plane_of_each_channel() -> None:
    from scipy.ndimage import gaussian_filter

    sharp = np.random.default_rng(1).integers(0, 4000, (64, 64)).astype(np.uint16)
    blurred = [gaussian_filter(sharp.astype(float), sigma).astype(np.uint16) for sigma in (3, 1)]
    projection = Projection("focus")
    for plane in (blurred[0], sharp, blurred[1] * 2):  # brighter is not sharper
        projection.add(plane)
    assert np.array_equal(projection.result(), sharp)
    with pytest.raises(ValueError, match="no planes"):
        Projection("max").result()


def test_a_stack_that_lacks_a_plane_is_set_aside_and_the_others_are_projected(plate: Plate, tmp_path: Path) -> None:
    written = write_layout(plate, tmp_path / "raw", "phenix", stack=2)
    next((written / "Images").glob("r01c01f01p02-ch3*")).unlink()
    summary = convert(tmp_path, written, z="max", max_set_aside=0.5)
    assert summary.exit_code == SET_ASIDE
    ((thing, reason),) = summary.set_aside
    assert "A01 site 1" in thing and "AGP: r01c01f01p02-ch3sk1fk1fl1.tiff does not exist" in reason
    assert stored(tmp_path)[0].max() == 0 and stored(tmp_path)[1].max() > 0


@pytest.mark.parametrize(
    ("layout", "first"),
    [
        ("cellvoyager", 1),
        ("imagexpress", 1),
        ("imagexpress-bare", 1),
        ("omezarr", 1),
        ("omezarr-4", 1),
        ("phenix", 0),
        ("phenix-7", 0),
    ],
)
def test_one_timepoint_is_converted_and_one_that_is_not_there_is_refused_by_name(
    layout: str, first: int, plate: Plate, tmp_path: Path
) -> None:
    """The second timepoint holds the pixels of other fields, in reverse order."""
    planes = [field.planes for field in plate.fields]
    later = [replace(field, timepoint=1, planes=other) for field, other in zip(plate.fields, planes[::-1], strict=True)]
    written = write_layout(replace(plate, fields=(*plate.fields, *later)), tmp_path / "raw", layout)
    assert len(read_plate(find_plates([str(written)])[0]).fields) == 2 * len(plate.fields)
    assert convert(tmp_path, written, timepoint=first + 1).exit_code == 0
    assert np.array_equal(stored(tmp_path), pixels(plate)[::-1])
    with pytest.raises(UsageError, match=f"--timepoint 3: it has no such one; it has {first}, {first + 1}"):
        read_plate(find_plates([str(written)])[0], ReadOptions(timepoint=3))


@pytest.mark.parametrize("layout", FLAT)
def test_a_layout_of_single_planes_is_not_written_with_a_stack(layout: str, plate: Plate, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has no z planes"):
        write_layout(plate, tmp_path, layout, stack=2)

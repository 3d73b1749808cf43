"""Opera Phenix: the real plate, holes and order, and indices that are malformed or hostile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from phenomhpc.errors import UsageError
from phenomhpc.plates import (
    ReadOptions,
    UnreadableImage,
    decode_plane,
    find_plates,
    plane_bytes,
    plane_shape,
    read_plane,
    read_plate,
)
from tests.unit.raw_plates import image, phenix


def test_the_real_phenix_plate_is_16_by_24_and_its_well_a01(shared_data: Path) -> None:
    (found,) = find_plates([str(shared_data / "phenix")])
    plate = read_plate(found)
    assert (plate.rows, plate.columns, plate.key) == (16, 24, "BR00121482")
    assert [field.well.name for field in plate.fields] == ["A01"]
    assert [channel.name for channel in plate.channels][-2:] == ["HOECHST 33342", "Brightfield"]
    assert plate.fields[0].pixel_size_um == pytest.approx(0.5979760809567617)
    assert plane_shape(plate.fields[0].planes[0][0]) == (1080, 1080, "uint16")  # type: ignore[arg-type]


def test_a_phenix_plane_that_is_not_listed_stays_a_hole_and_order_is_declared(tmp_path: Path) -> None:
    images = image(10, "d.tiff", row=2) + image(1, "a.tiff", row=2) + image(2, "b.tiff") + image(1, "c.tiff")
    plate = read_plate(find_plates([str(phenix(tmp_path / "m", images))])[0])
    assert [channel.name for channel in plate.channels] == ["c1", "c2", "c10"]
    names = [[plane.path.name if plane else None for (plane,) in field.planes] for field in plate.fields]
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
        (image(1, "a", field=70000), None, "", "FieldID 70000 is out of range"),
        (image(1, "a").replace("<Row>1", "<Row>x"), None, "", "invalid literal"),
        (image(1, "a\\\\b"), None, "", "leaves the measurement's folder"),
        (image(1, "a"), "<PlateRows>99999</PlateRows><PlateColumns>1</PlateColumns>", "", "no plate has 99999 x 1"),
    ],
)
def test_a_malformed_or_hostile_index_is_refused_in_one_line(
    images: str, plate: str | None, head: str, said: str, tmp_path: Path
) -> None:
    folder = phenix(tmp_path / "m", images, head=head) if plate is None else phenix(tmp_path / "m", images, plate, head)
    with pytest.raises(UsageError, match=said) as caught:
        read_plate(find_plates([str(folder)])[0])
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_the_real_planes_have_the_pixels_that_tifffile_reads(shared_data: Path) -> None:
    import tifffile

    plate = read_plate(find_plates([str(shared_data / "phenix")])[0])
    for (plane,) in plate.fields[0].planes:
        assert plane is not None
        assert np.array_equal(decode_plane(plane, plane_bytes(plane)), tifffile.imread(plane.path))


def test_a_cut_real_plane_is_refused_also_where_only_its_last_byte_is_gone(shared_data: Path) -> None:
    data = next((shared_data / "phenix" / "images").glob("*ch1*.tiff")).read_bytes()
    for size in (len(data) // 10, len(data) // 2, int(0.999 * len(data)), len(data) - 1):
        with pytest.raises(UnreadableImage):
            read_plane(data[:size], "cut")


def test_channels_of_one_name_are_told_apart(tmp_path: Path) -> None:
    images = image(1, "a") + image(2, "b").replace("c2", "c1") + image(3, "c")
    plate = read_plate(find_plates([str(phenix(tmp_path / "m", images))])[0])
    assert [channel.name for channel in plate.channels] == ["c1 (channel 1)", "c1 (channel 2)", "c3"]


def test_fields_go_by_well_site_timepoint_and_plane(tmp_path: Path) -> None:
    def at(field: int, time: int, plane: int, column: int = 1) -> str:
        return image(1, f"{column}.{field}.{time}.{plane}", column=column, field=field).replace(
            "<PlaneID>1</PlaneID>", f"<PlaneID>{plane}</PlaneID><TimepointID>{time}</TimepointID>"
        )

    images = at(2, 0, 1) + at(1, 1, 1) + at(1, 0, 10) + at(1, 0, 2) + at(1, 0, 1, column=2)
    plate = read_plate(find_plates([str(phenix(tmp_path / "m", images))])[0])
    places = [(field.index, field.well.name, field.site, field.timepoint, field.z) for field in plate.fields]
    assert places == [
        (0, "A01", 1, 0, "2"),
        (1, "A01", 1, 0, "10"),
        (2, "A01", 1, 1, "1"),
        (3, "A01", 2, 0, "1"),
        (4, "A02", 1, 0, "1"),
    ]


def test_metadata_are_joined_by_the_plates_id_alone(tmp_path: Path) -> None:
    table = tmp_path / "m.csv"
    table.write_text("experiment_name,plate,well,gene\nE1,P1,A01,TP53\nE1,P2,A01,MYC\n")
    plate = read_plate(find_plates([str(phenix(tmp_path / "m", image(1, "a")))])[0], ReadOptions(metadata=table))
    assert {well: row["perturbation"] for well, row in plate.metadata.items()} == {"A01": "TP53"}


def test_an_index_of_infinite_positions_has_none(tmp_path: Path) -> None:
    images = image(1, "a").replace("<Row>", "<PositionX>NaN</PositionX><PositionY>INF</PositionY><Row>")
    field = read_plate(find_plates([str(phenix(tmp_path / "m", images))])[0]).fields[0]
    assert (field.position_x_um, field.position_y_um, field.pixel_size_um) == (None, None, None)


def test_an_index_that_is_gone_by_the_time_is_named(tmp_path: Path) -> None:
    folder = phenix(tmp_path / "m", image(1, "a"))
    (found,) = find_plates([str(folder)])
    (folder / "Index.idx.xml").unlink()
    with pytest.raises(UsageError, match=r"its Index\.idx\.xml is gone"):
        read_plate(found)

"""Opera Phenix: the real plate, holes and order, and indices that are malformed or hostile."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
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
from phenomhpc.plates.harmony import profile_json, walk_index
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
        ("", None, "", "lists no image"),
        (image(1, "a", row=17), None, "", "Q01 lies outside the plate of 16 x 24"),
        (image(1, "a"), None, BOMB, "malformed or hostile"),
        ("<Image", None, "", "malformed or hostile"),
        (image(1, "a"), "<PlateRows>99999</PlateRows><PlateColumns>1</PlateColumns>", "", "no plate has 99999 x 1"),
        (image(1, "a"), "<PlateRows>9e9</PlateRows><PlateColumns>1</PlateColumns>", "", "no plate has 9e9 x 1"),
    ],
)
def test_an_index_of_which_nothing_can_be_made_is_refused_in_one_line(
    images: str, plate: str | None, head: str, said: str, tmp_path: Path
) -> None:
    folder = phenix(tmp_path / "m", images, head=head) if plate is None else phenix(tmp_path / "m", images, plate, head)
    with pytest.raises(UsageError, match=said) as caught:
        read_plate(find_plates([str(folder)])[0])
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        ("../../etc/passwd", "hostile", "leaves the plate's folder"),
        ("/etc/passwd", "hostile", "leaves the plate's folder"),
        ("a\\b", "hostile", "leaves the plate's folder"),
        ("C:/a", "hostile", "leaves the plate's folder"),
        ("https://host/a", "hostile", "leaves the plate's folder"),
        ("good-2", "duplicate", "good-2 and good-2 are the same plane"),
    ],
)
def test_a_hostile_or_doubled_entry_costs_its_field_only(url: str, status: str, said: str, tmp_path: Path) -> None:
    images = image(1, "good-1") + image(1, "good-2", field=2) + image(1, url, field=2) + image(1, "good-3", field=3)
    plate = read_plate(find_plates([str(phenix(tmp_path / "m", images))])[0])
    assert [field.site for field in plate.fields] == [1, 2, 3]
    assert plate.fields[0].problem is None and plate.fields[2].problem is None
    problem = plate.fields[1].problem
    assert problem is not None and problem[0] == status and said in problem[1]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (image(1, "x", row=0), "its row '0' is out of range"),
        (image(1, "x", row=17), "Q01 lies outside the plate of 16 x 24"),
        (image(1, "x", field=70000), "FieldID '70000' is out of range"),
        (image(1, "x", field=-1), "FieldID '-1' is no number"),
        (image(1, "x").replace("<Row>1", "<Row>x"), "its row 'x' is no number"),
        (image(1, "x").replace("<Row>1</Row>", ""), "it lacks its row"),
        (image(1, "x").replace("<FieldID>1", "<FieldID>" + "9" * 5000), "is out of range"),
    ],
)
def test_an_entry_without_a_place_is_a_stray_and_the_rest_is_read(entry: str, said: str, tmp_path: Path) -> None:
    plate = read_plate(find_plates([str(phenix(tmp_path / "m", image(1, "good") + entry))])[0])
    assert [field.well.name for field in plate.fields] == ["A01"] and plate.fields[0].problem is None
    ((thing, reason),) = plate.strays
    assert thing == "'x'" and said in reason and len(reason) < 200


def test_an_index_that_does_not_say_the_plate_takes_the_smallest_or_the_one_that_is_said(tmp_path: Path) -> None:
    found = find_plates([str(phenix(tmp_path / "m", image(1, "a", row=9), plate=""))])[0]
    assert (read_plate(found).rows, read_plate(found).columns) == (16, 24)
    assert read_plate(found, ReadOptions(plate_format=1536)).rows == 32
    with pytest.raises(UsageError, match="row 9, column 1 lie outside a plate of 96 wells"):
        read_plate(found, ReadOptions(plate_format=96))


V7 = "43B2A954-E3C3-47E1-B392-6635266B0DD3/HarmonyV7"
FLAT = (
    "{Background: {Character: NonFlat, Mean: INF, Profile: {Coefficients: [[1.5], [0.1, -2E-1]], Dims: [2160, 2160], "
    "Origin: [1079.5, 1079.5], Scale: [0.00046, 0.00046], Type: Polynomial}, Quality: NaN}, Channel: 1, "
    "ChannelName: HOECHST 33342, DNA, Version: Acapella:2013}"
)


def harmony_7(folder: Path, *, beside: bool) -> Path:
    """An export of Harmony 7: facts of a channel in Maps, flat fields there or in a file beside."""
    flat = f"<FlatfieldProfile>{FLAT}</FlatfieldProfile>"
    entries = "".join(
        f'<Entry ChannelID="{channel}"><ChannelName>{name}</ChannelName><ImageResolutionX Unit="m">3.0E-07</ImageResolutionX>'
        f'<MainEmissionWavelength Unit="nm">{nm}</MainEmissionWavelength></Entry>'
        for channel, name, nm in ((2, "Alexa 488", 522), (1, "DAPI", 456))
    )
    images = "".join(
        f"<Image Version='1'><id>x</id><State>Ok</State><URL>r02c03f01p01-ch{channel}sk1fk1fl1.tiff</URL><Row>2</Row><Col>3</Col>"
        f"<FieldID>1</FieldID><PlaneID>1</PlaneID><TimepointID>1</TimepointID><ChannelID>{channel}</ChannelID>"
        f'<PositionX Unit="m">0.0003</PositionX><PositionY Unit="um">5</PositionY></Image>'
        for channel in (1, 2)
    )
    maps = f'<Maps><Map><Entry ChannelID="1">{"" if beside else flat}</Entry></Map><Map>{entries}</Map></Maps>'
    text = (
        f'<?xml version="1.0" encoding="utf-8"?><EvaluationInputData Version="2" xmlns="{V7}"><Plates><Plate><PlateID>P7</PlateID>'
        f"<PlateRows>8</PlateRows><PlateColumns>12</PlateColumns><Well id='0203'/></Plate></Plates>{maps}"
        f"<Images>{images}</Images></EvaluationInputData>"
    )
    (folder / "Images").mkdir(parents=True)
    (folder / "Images" / "Index.xml").write_text(text)
    if beside:
        (folder / "FFC_Profile").mkdir()
        one = f'<Root xmlns="{V7}"><Maps><Map><Entry ChannelID="1">{flat}</Entry></Map></Maps></Root>'
        (folder / "FFC_Profile" / "FFC_Profile_P7.xml").write_text(one)
    return folder


@pytest.mark.parametrize("beside", [False, True])
def test_harmony_7_has_the_facts_of_its_channels_in_maps(beside: bool, tmp_path: Path) -> None:
    (found,) = find_plates([str(harmony_7(tmp_path / "m", beside=beside))])
    plate = read_plate(found)
    assert (plate.key, plate.rows, plate.columns) == ("P7", 8, 12)
    assert [(channel.name, channel.emission_nm) for channel in plate.channels] == [
        ("DAPI", 456.0),
        ("Alexa 488", 522.0),
    ]
    (field,) = plate.fields
    assert (field.well.name, field.timepoint, field.z) == ("B03", 1, "1")
    assert field.pixel_size_um == pytest.approx(0.3)
    assert (field.position_x_um, field.position_y_um) == pytest.approx((300.0, 5.0))
    assert field.planes[1][0].path == tmp_path / "m" / "Images" / "r02c03f01p01-ch2sk1fk1fl1.tiff"  # type: ignore[union-attr]
    assert plate.illumination[1] is None and plate.illumination[0] is not None
    said = json.loads(plate.illumination[0])
    assert said["kind"] == "phenix" and said["profile"]["ChannelName"] == "HOECHST 33342, DNA"
    background = said["profile"]["Background"]
    assert background["Profile"]["Coefficients"] == [[1.5], [0.1, -0.2]] and background["Mean"] == "INF"


@pytest.mark.parametrize("version", ["HarmonyV4", "HarmonyV5", "HarmonyV6", "HarmonyV9"])
def test_the_version_in_the_namespace_changes_nothing(version: str, tmp_path: Path) -> None:
    images = image(2, "b.tiff", row=16, column=24) + image(1, "a.tiff", row=16, column=24)
    folder = phenix(tmp_path / "m", images)
    index = folder / "Index.idx.xml"
    index.write_text(index.read_text().replace("HarmonyV5", version))
    assert version in index.read_text()
    (field,) = (plate := read_plate(find_plates([str(folder)])[0])).fields
    assert (plate.rows, plate.columns, field.well.name) == (16, 24, "P24")
    assert [plane.path.name for (plane,) in field.planes if plane] == ["a.tiff", "b.tiff"]


def test_the_real_flat_fields_are_kept_number_for_number(shared_data: Path) -> None:
    plate = read_plate(find_plates([str(shared_data / "phenix")])[0])
    said = [json.loads(text) for text in plate.illumination if text]
    assert len(said) == 6
    assert said[0]["profile"]["Background"]["Profile"]["Coefficients"][0] == [1.236]
    assert said[0]["profile"]["Foreground"]["Profile"]["Coefficients"][4] == [-4.4769, -1.1136, 1.0412, -0.3679, 0.9251]
    assert said[0]["profile"]["Background"]["Mean"] == 1039.144 and said[0]["profile"]["Version"] == "Acapella:2013"
    assert said[5]["profile"]["Background"]["Profile"]["Type"] == "Identity"


@pytest.mark.parametrize("text", ["{", "[[[[[", "{a: " * 100, "{Background: {}} trailing", "}"])
def test_a_flat_field_that_cannot_be_parsed_is_kept_as_text(text: str, tmp_path: Path) -> None:
    assert json.loads(profile_json(text) or "") == {"kind": "phenix", "text": text}


def test_memory_does_not_grow_with_the_index(tmp_path: Path) -> None:
    def peak(fields: int) -> int:
        images = "".join(image(1, f"{field}.tiff", field=field) for field in range(1, fields + 1))
        folder = phenix(tmp_path / str(fields), images)
        seen = 0
        tracemalloc.start()
        for _ in range(2):  # imports are counted in the first
            tracemalloc.reset_peak()
            walk_index(folder / "Index.idx.xml", lambda _: None, lambda _: None, lambda *_: None)
            seen = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return seen

    assert peak(8000) < 3 * peak(500)  # of 16 times as many entries


def test_an_index_of_17_280_images_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """384 wells, 9 sites, 5 channels; each image has the forty facts that instruments write of it."""
    facts = "".join(f'<Fact{number} Unit="m">{number / 7:.15f}</Fact{number}>' for number in range(40))
    rows = (
        image(channel, f"r{row:02d}c{column:02d}f{site:02d}p01-ch{channel}sk1fk1fl1.tiff", row, column, site).replace(
            "</Image>", f"{facts}</Image>"
        )
        for row in range(1, 17)
        for column in range(1, 25)
        for site in range(1, 10)
        for channel in range(1, 6)
    )
    folder = phenix(tmp_path / "m", "\n".join(rows))
    program = (
        "import resource, sys; from phenomhpc.plates import find_plates, read_plate; import defusedxml.ElementTree;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024; (found,) = find_plates(sys.argv[1:]);"
        "before = peak(); plate = read_plate(found); print(sum(len(field.planes) for field in plate.fields), peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    planes, grown = done.stdout.split()
    size = (folder / "Index.idx.xml").stat().st_size / 2**20
    assert planes == "17280" and size > 25
    assert float(grown) < 40  # MiB: the declaration, whatever is said of each image; a tree of the index takes 300


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


def test_positions_too_large_for_a_number_are_none(tmp_path: Path) -> None:
    images = image(1, "a").replace("<Row>", "<PositionX>1e308</PositionX><PositionY>-1e305</PositionY><Row>")
    field = read_plate(find_plates([str(phenix(tmp_path / "m", images))])[0]).fields[0]
    assert (field.position_x_um, field.position_y_um) == (None, None)


def test_an_index_that_is_gone_by_the_time_is_named(tmp_path: Path) -> None:
    folder = phenix(tmp_path / "m", image(1, "a"))
    (found,) = find_plates([str(folder)])
    (folder / "Index.idx.xml").unlink()
    with pytest.raises(UsageError, match=r"its Index\.idx\.xml is gone"):
        read_plate(found)


def with_maps(folder: Path, channels: int, images: str) -> Path:
    """An index that lists its channels in Maps, as instruments write it."""
    phenix(folder, images)
    (index,) = folder.rglob("Index.idx.xml")
    entries = "".join(f'<Entry ChannelID="{number}"><Size>1</Size></Entry>' for number in range(1, channels + 1))
    index.write_text(index.read_text().replace("<Images>", f"<Maps><Map>{entries}</Map></Maps><Images>", 1))
    return folder


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (image(2, "bad").replace("<ChannelID>2", "<ChannelID>77"), "channel 77, which the index does not declare"),
        (image(2, "bad").replace("<ChannelID>2", "<ChannelID>x"), "ChannelID 'x' is no number"),
        (image(2, "bad").replace("<ChannelID>2", "<ChannelID>100"), "ChannelID '100' is out of range"),
        (image(2, "bad").replace("<ChannelID>2", "<ChannelID>" + "9" * 5000), "is out of range"),
    ],
)
def test_a_channel_that_no_instrument_wrote_costs_its_field_only(wrong: str, said: str, tmp_path: Path) -> None:
    images = image(1, "a") + wrong + image(1, "c", row=2) + image(2, "d", row=2)
    plate = read_plate(find_plates([str(with_maps(tmp_path / "m", 2, images))])[0])
    assert [channel.name for channel in plate.channels] == ["c1", "c2"]
    bad, good = plate.fields
    assert good.problem is None and all(plane is not None for (plane,) in good.planes)
    assert bad.problem is not None and said in bad.problem[1] and len(bad.problem[1]) < 200


def test_a_channel_of_its_own_name_that_maps_leave_out_is_kept(tmp_path: Path) -> None:
    images = image(1, "a") + image(2, "b")
    plate = read_plate(find_plates([str(with_maps(tmp_path / "m", 1, images))])[0])
    assert [channel.name for channel in plate.channels] == ["c1", "c2"] and plate.fields[0].problem is None


def test_a_later_measurement_of_a_plate_has_a_key_of_its_own(tmp_path: Path) -> None:
    for number in (1, 2, 11):
        phenix(tmp_path / f"P__2024-05-0{number % 9}T10_00_00-Measurement {number}", image(1, "a"))
    found = find_plates([str(tmp_path)])
    (name,) = {plate.plate for plate in found}
    assert [plate.key for plate in found] == [name, f"{name}__Measurement11", f"{name}__Measurement2"]
    phenix(tmp_path / "again-Measurement 2", image(1, "a"))
    with pytest.raises(UsageError, match="two sources"):
        find_plates([str(tmp_path)])

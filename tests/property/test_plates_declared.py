"""Property: a list of images in any order, of any part of a plate, gives every plane its declared place."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from xml.sax.saxutils import quoteattr

from hypothesis import given, settings
from hypothesis import strategies as st

from phenomhpc.plates import Plate, Well, find_plates, read_plate

# (row, column, site, z) -> channels
Images = dict[tuple[int, int, int, int], set[int]]
FORMATS = ((8, 12), (16, 24), (32, 48))


@st.composite
def plates(draw: st.DrawFn) -> tuple[tuple[int, int], Images, list[tuple[int, int, int, int, int]]]:
    """Size of a plate, its images, and these as records in any order."""
    size = draw(st.sampled_from(FORMATS))
    place = st.tuples(st.integers(1, size[0]), st.integers(1, size[1]), st.integers(1, 40), st.integers(1, 3))
    images = draw(st.dictionaries(place, st.sets(st.integers(1, 4), min_size=1), min_size=1, max_size=10))
    records = [(*where, channel) for where, channels in images.items() for channel in sorted(channels)]
    return size, images, draw(st.permutations(records))


def check(plate: Plate, images: Images, name: str) -> None:
    """Fields are those declared, sorted; each plane that was listed is there under its own name, others are holes."""
    places = [(field.well.row, field.well.column, field.site, int(field.z)) for field in plate.fields]
    assert places == sorted(images) and [field.index for field in plate.fields] == list(range(len(images)))
    numbers = sorted(set().union(*images.values()))
    assert len(plate.channels) == len(numbers) and plate.strays == ()
    for field, place in zip(plate.fields, places, strict=True):
        assert field.problem is None
        for number, stack in zip(numbers, field.planes, strict=True):
            found = [plane.path.name for plane in stack if plane is not None]
            well = field.well.name
            expected = name.format(well=well, site=place[2], z=place[3], channel=number)
            assert found == ([expected] if number in images[place] else [])


@given(plates())
def test_cellvoyager_records_in_any_order(
    drawn: tuple[tuple[int, int], Images, list[tuple[int, int, int, int, int]]],
) -> None:
    (rows, columns), images, records = drawn
    name = "{well}_F{site}Z{z}C{channel}.tif"
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "EXP" / "P1"
        folder.mkdir(parents=True)
        lines = []
        for row, column, site, z, channel in records:
            file = name.format(well=Well(row=row, column=column).name, site=site, z=z, channel=channel)
            said = {"Type": "IMG", "Row": row, "Column": column, "TimePoint": 1, "FieldIndex": site, "ZIndex": z,
                    "TimelineIndex": 1, "ActionIndex": 1, "Ch": channel}  # fmt: skip
            attributes = " ".join(f"b:{key}={quoteattr(str(value))}" for key, value in said.items())
            lines.append(f"<b:MeasurementRecord {attributes}>{file}</b:MeasurementRecord>")
        (folder / "MeasurementData.mlf").write_text(
            f'<b:MeasurementData xmlns:b="u">{"".join(lines)}</b:MeasurementData>'
        )
        (folder / "MeasurementDetail.mrf").write_text(
            f'<b:MeasurementDetail xmlns:b="u" b:RowCount="{rows}" b:ColumnCount="{columns}"/>'
        )
        plate = read_plate(find_plates([root])[0])
    assert (plate.rows, plate.columns) == (rows, columns)
    # A channel that no well has at a z plane was not asked for there.
    check(plate, images, name)
    for field in plate.fields:
        for position, stack in enumerate(field.planes):
            asked = any(other.planes[position] not in ((), (None,)) for other in plate.fields if other.z == field.z)
            assert (stack == ()) == (not asked)


@settings(deadline=None)
@given(plates(), st.sampled_from(["A1", "a01", "A01"]), st.booleans(), st.sampled_from(["", "\ufeff"]), st.booleans())
def test_the_gallerys_rows_in_any_order_and_spelling(
    drawn: tuple[tuple[int, int], Images, list[tuple[int, int, int, int, int]]],
    spelling: str,
    quoted: bool,
    mark: str,
    crlf: bool,
) -> None:
    _, images, records = drawn
    name = "{well}_{site}_{z}_{channel}.tiff"
    numbers = sorted(set().union(*images.values()))
    with tempfile.TemporaryDirectory() as root:
        pictures, folder = Path(root) / "images" / "P1", Path(root) / "load_data_csv" / "B" / "P1"
        pictures.mkdir(parents=True)
        folder.mkdir(parents=True)
        with (folder / "load_data.csv").open("w", newline="", encoding="utf-8") as file:
            file.write(mark)
            rows = csv.writer(
                file,
                quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL,
                lineterminator="\r\n" if crlf else "\n",
            )
            rows.writerow(
                ["Metadata_Plate", "Metadata_Well", "Metadata_Site", "Metadata_PlaneID"]
                + [f"{kind}_Orig{number}" for number in numbers for kind in ("FileName", "PathName")]
            )
            for row, column, site, z in dict.fromkeys(record[:4] for record in records):
                well = Well(row=row, column=column).name
                letters = well.rstrip("0123456789")
                said = {"A1": f"{letters}{column}", "a01": well.lower(), "A01": well}[spelling]
                cells = ["P1", said, str(site), str(z)]
                for number in numbers:
                    there = number in images[row, column, site, z]
                    image = name.format(well=well, site=site, z=z, channel=number)
                    if there:
                        (pictures / image).touch()
                    cells += [image, "/mnt/other/images/P1/"] if there else ["", ""]
                rows.writerow(cells)
        plate = read_plate(find_plates([str(Path(root) / "load_data_csv")])[0])
    check(plate, images, name)

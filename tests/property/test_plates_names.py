"""Property: positions, keys and tables come back, whatever they are called."""

from __future__ import annotations

import csv
import string
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenomhpc.errors import UsageError
from phenomhpc.plates import Well, find_plates, plate_key, read_plate
from phenomhpc.plates.metadata import wells_of_plate

wells = st.builds(lambda row, column: Well(row=row, column=column), st.integers(1, 702), st.integers(1, 999))
# No line ends, as file names and cells of one line have none.
texts = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=20)


@given(wells)
def test_a_well_is_read_back_from_its_name_however_it_is_written(well: Well) -> None:
    name = well.name
    letters, digits = name.rstrip(string.digits), name.lstrip(string.ascii_letters)
    for written in (name, name.lower(), f" {name} ", f"{letters}{int(digits)}", f"{letters}0{digits}"):
        assert Well.parse(written) == well


@given(wells, wells)
def test_wells_order_by_row_then_column(one: Well, other: Well) -> None:
    assert (one < other) == ((one.row, one.column) < (other.row, other.column))
    assert (one.name == other.name) == (one == other)


@given(st.text(max_size=6))
def test_any_text_is_a_well_or_refused(text: str) -> None:
    try:
        well = Well.parse(text)
    except ValueError as error:
        assert "is no well" in str(error)
    else:
        assert Well.parse(well.name) == well and text.strip().upper().startswith(well.name.rstrip(string.digits))


@given(
    st.lists(st.tuples(texts, texts), min_size=2, max_size=6, unique_by=lambda parts: tuple(p.strip() for p in parts))
)
def test_keys_are_file_names_and_never_meet(names: list[tuple[str, str]]) -> None:
    keys: dict[str, tuple[str, ...]] = {}
    for parts in names:
        stripped = tuple(part.strip() for part in parts if part.strip())
        try:
            key = plate_key(*parts)
        except UsageError as error:
            assert "no usable name" in str(error)
            continue
        assert set(key) <= set(string.ascii_letters + string.digits + "._-") and not key.startswith(".")
        assert len(key.encode()) <= 200
        if all("__" not in part and not part.startswith("_") and not part.endswith("_") for part in stripped):
            assert keys.setdefault(key, stripped) == stripped


@given(
    st.dictionaries(
        st.tuples(st.integers(1, 40), st.integers(1, 48), st.integers(1, 3)),
        st.sets(st.integers(1, 4), min_size=1),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([("w", ".png"), ("", ".jp2"), ("w", ".tif")]),
)
def test_a_sparse_plate_keeps_every_plane_at_its_declared_position(
    images: dict[tuple[int, int, int], set[int]], written: tuple[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plate_folder = Path(folder) / "EXP" / "Plate7"
        plate_folder.mkdir(parents=True)
        for (row, column, site), channels in images.items():
            for channel in channels:
                name = Well(row=row, column=column).name
                (plate_folder / f"{name}_s{site}_{written[0]}{channel}{written[1]}").touch()
        plate = read_plate(find_plates([folder])[0])
        sites = {site for _, _, site in images}
        declared = sorted((row, column, site) for row, column in {key[:2] for key in images} for site in sites)
        assert [(field.well.row, field.well.column, field.site) for field in plate.fields] == declared
        assert [field.index for field in plate.fields] == list(range(len(declared)))
        numbers = sorted(set().union(*images.values()))
        assert len(plate.channels) == len(numbers)
        for field in plate.fields:
            found = images.get((field.well.row, field.well.column, field.site), set())
            for number, (plane,) in zip(numbers, field.planes, strict=True):
                assert (plane is not None) == (number in found)
                assert plane is None or f"_s{field.site}_{written[0]}{number}." in plane.path.name


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=8))
def test_what_stands_in_a_csv_comes_back_whatever_it_holds(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["plate", "well", "treatment", "SMILES", "My Note"])
            for number, (smiles, note) in enumerate(rows):
                writer.writerow([3, f"A{number + 1}", f"drug{number}", smiles, note])
        found = wells_of_plate(path, "E", ("Plate3",))
        assert len(found) == len(rows)
        for number, (smiles, note) in enumerate(rows):
            well = found[Well(row=1, column=number + 1).name]
            assert well["treatment"] == f"drug{number}"
            assert (well.get("smiles", ""), well.get("meta_My Note", "")) == (smiles.strip(), note.strip())


@pytest.mark.parametrize("row", [0, -1])
def test_a_position_counts_from_one(row: int) -> None:
    with pytest.raises(ValueError, match="count from 1"):
        Well(row=row, column=1)

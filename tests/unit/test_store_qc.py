"""store qc: it flags what was planted and nothing else, its maps show the wells' medians, and the page says what it leaves out."""

from __future__ import annotations

import base64
import json
import re
import shutil
import statistics
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from matplotlib import colormaps

from phenomhpc.errors import UsageError
from phenomhpc.jobs.quality import build_page, figures, look_at
from phenomhpc.jobs.quality.plates import PlateQuality, Quality
from phenomhpc.plates import Well, find_plates, read_plate
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.plates.synthetic.layouts import write_layout
from phenomhpc.progress import silent
from phenomhpc.store import Snapshot, open_store
from phenomhpc.store.verify import verify
from tests.unit.quality_plates import (
    BLURRED,
    BURNT_CHANNEL,
    BURNT_COLUMN,
    COLUMNS,
    CUT,
    FAULTY,
    HALF_CUT,
    NOT_IMAGED,
    ONE_SITE,
    ROWS,
    WITHOUT_CELLS,
    write_screen,
)
from tests.unit.test_plates_layouts import convert

with warnings.catch_warnings():  # typer still asks click for names that click is giving up
    warnings.simplefilter("ignore", DeprecationWarning)
    from typer.testing import CliRunner

    from phenomhpc.cli.main import build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
BURNT = {Well(row=row, column=BURNT_COLUMN) for row in range(1, ROWS + 1)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("screen")
    convert(folder, write_screen(folder), max_set_aside=0.5, shard_mb=16)
    return folder / "store"


@pytest.fixture(scope="module")
def snapshot(store: Path) -> Snapshot:
    return Snapshot.open(open_store(store))


@pytest.fixture(scope="module")
def quality(snapshot: Snapshot) -> Quality:
    return look_at(snapshot, [], None, silent())


@pytest.fixture(scope="module")
def html(snapshot: Snapshot, quality: Quality) -> str:
    return build_page(snapshot, quality, "today", silent()).html


def faulty(quality: Quality) -> PlateQuality:
    return next(plate for plate in quality.plates if plate.plate == FAULTY)


def what(quality: Quality, well: Well) -> set[str]:
    return {quality.measures[flag.measure].label for flag in faulty(quality).wells_apart if flag.well == well}


def test_exactly_the_planted_wells_are_flagged_and_for_what_was_planted(quality: Quality) -> None:
    sound, plate = quality.plates
    assert sound.flagged_wells == frozenset() and sound.fields_apart == () and sound.reasons == ()
    assert plate.flagged_wells == {BLURRED, WITHOUT_CELLS, *BURNT}
    assert {"focus DNA", "focus AGP", "focus Mito"} <= what(quality, BLURRED)
    assert {"signal DNA", "nuclei", "focus DNA"} <= what(quality, WITHOUT_CELLS)
    burnt = quality.channels[BURNT_CHANNEL - 1]
    for well in BURNT:
        assert (
            f"saturated {burnt}"
            in what(quality, well)
            <= {f"{name} {burnt}" for name in ("saturated", "signal", "focus")}
        )


def test_a_single_field_apart_is_named_though_its_well_is_as_others_are(quality: Quality) -> None:
    found = [flag for flag in faulty(quality).fields_apart if flag.well == ONE_SITE]
    assert {quality.measures[flag.measure].label for flag in found} >= {"saturated RNA"}
    assert {flag.sites for flag in found} == {("site 2",)}
    others = {flag.well for flag in faulty(quality).fields_apart} - {ONE_SITE}
    assert others <= {BLURRED, WITHOUT_CELLS, *BURNT}


def test_what_is_set_aside_is_counted_by_reason_and_well(quality: Quality) -> None:
    plate = faulty(quality)
    assert {entry.status for entry in plate.reasons} == {"unreadable"}
    assert {(well, entry.fields) for entry in plate.reasons for well in entry.wells} == {(CUT, 1), (HALF_CUT, 1)}
    assert plate.set_aside.sum() == 4 and plate.usable[CUT.row - 1, CUT.column - 1] == 0
    assert (plate.rows, plate.columns) == (ROWS, COLUMNS)
    for well in NOT_IMAGED:
        assert plate.usable[well.row - 1, well.column - 1] == plate.set_aside[well.row - 1, well.column - 1] == 0
        assert well not in plate.first


def naive(snapshot: Snapshot, plate: str) -> dict[tuple[str, int | None], dict[tuple[int, int], float]]:
    """(measure, channel) -> (row, column) -> median, by plain Python."""
    values: dict[tuple[str, int | None], dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in snapshot.fields().filter(plate=plate).to_dicts():
        place = row["row"], row["column"]
        for name in ("focus", "saturated", "background", "signal"):
            for channel, value in enumerate(row[f"qc_{name}"] or []):
                values[name, channel][place].append(value)
        if row["qc_nuclei"] is not None:
            values["nuclei", None][place].append(row["qc_nuclei"])
    return {key: {place: statistics.median(list_) for place, list_ in wells.items()} for key, wells in values.items()}


def test_values_are_the_medians_of_each_wells_fields(snapshot: Snapshot, quality: Quality) -> None:
    for plate in quality.plates:
        wanted = naive(snapshot, plate.plate)
        assert len(wanted) == len(quality.measures) == 4 * 6 + 1
        for place, measure in enumerate(quality.measures):
            wells = wanted[measure.kind.name, measure.channel]
            grid = np.full((ROWS, COLUMNS), np.nan)
            for (row, column), value in wells.items():
                grid[row - 1, column - 1] = value
            np.testing.assert_allclose(plate.values[place], grid, rtol=1e-12)
            low, median, high = plate.quartiles[place]
            assert low <= median == statistics.median(wells.values()) <= high


def part_of(html: str, plate: str) -> str:
    found = re.search(rf'<details[^>]* id="plate-{plate}".*?</details>', html, re.DOTALL)
    assert found is not None
    return found[0]


def test_the_page_shows_these_values_on_one_scale_for_all_plates(html: str, quality: Quality) -> None:
    everything = np.stack([plate.values for plate in quality.plates])
    for plate in quality.plates:
        part = part_of(html, plate.plate)
        data = json.loads(re.search(r'class="figures">(.*?)</script>', part)[1])  # type: ignore[index]
        assert (data["rows"], data["columns"]) == (ROWS, COLUMNS) and data["usable"] == plate.usable.ravel().tolist()
        maps = re.findall(r'data-measure="(\d+)">.*?<image href="data:image/png;base64,([^"]+)"', part, re.DOTALL)
        assert [int(place) for place, _ in maps] == list(range(len(quality.measures)))
        for place, png in ((int(place), base64.b64decode(text)) for place, text in maps):
            values = plate.values[place]
            shown = [np.nan if value is None else value for value in data["values"][str(place)]]
            np.testing.assert_allclose(np.reshape(shown, values.shape), values, rtol=6e-4)
            picture = imagecodecs.png_decode(png)[1::4, 1::4]
            assert ((picture[..., 3] == 0) == np.isnan(values)).all()
            if quality.measures[place].kind.name in ("focus", "signal"):
                known = everything[:, place][~np.isnan(everything[:, place])]
                low, high = np.percentile(known, (1, 99))
                share = np.clip((np.nan_to_num(values) - low) / (high - low), 0, 1)
                wanted = np.round(colormaps["viridis"](np.round(share * 255).astype(int)) * 255)
                assert np.abs(wanted - picture)[~np.isnan(values)].max() == 0


def test_the_page_marks_and_names_what_there_is(html: str, quality: Quality) -> None:
    part, sound = part_of(html, FAULTY), part_of(html, "SCREEN__Plate1")
    rows = re.findall(r'<th scope="row">([A-H]\d\d)</th><td>(.*?)</td>', part)
    apart = {well for well, words in rows if words}
    assert apart == {well.name for well in (BLURRED, WITHOUT_CELLS, *BURNT)}
    cross = f"M{CUT.column - 1 + 0.2} {CUT.row - 1 + 0.2}l"
    assert cross in part and cross not in sound
    assert "empty file" in part and "1 field set aside" not in sound and "4 fields set aside" in part
    assert 'data-flagged="1"' in part and html.count("data:image/jpeg") == 3  # two montages and one closer look
    assert "Training would leave out" in html and not re.search(r"https?:|@import", html)


def test_a_montage_has_each_well_where_it_is(html: str, quality: Quality) -> None:
    data = re.search(r"data:image/jpeg;base64,([^\"]+)", part_of(html, FAULTY))
    assert data is not None
    sheet = imagecodecs.jpeg_decode(base64.b64decode(data[1])).astype(float)
    height, width = sheet.shape[0] // ROWS, sheet.shape[1] // COLUMNS
    cells = sheet.reshape(ROWS, height, COLUMNS, width, 3).swapaxes(1, 2)
    texture = cells.std(axis=(2, 3)).max(axis=-1)
    there = faulty(quality).usable > 0
    assert sheet.shape[1] > 900 and (texture[~there] < 4).all()
    bare = texture[WITHOUT_CELLS.row - 1, WITHOUT_CELLS.column - 1]
    there[WITHOUT_CELLS.row - 1, WITHOUT_CELLS.column - 1] = False
    assert bare < 0.3 * texture[there].min()


def test_a_page_that_would_be_too_large_says_which_plates_it_leaves_out(snapshot: Snapshot, quality: Quality) -> None:
    page = build_page(snapshot, quality, "today", silent(), max_bytes=1)
    assert page.shown == 1 and "1 of 2 plates are shown in full" in page.html
    assert f'id="plate-{FAULTY}"' in page.html and 'id="plate-SCREEN__Plate1"' not in page.html
    assert page.html.count("<tr data-plate=") == 2  # the overview has all


def run(*words: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(build(), ["store", "qc", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def test_the_command_writes_into_the_store_and_the_store_stays_sound(store: Path, tmp_path: Path) -> None:
    code, said = run(store)
    assert code == 0 and f"wrote {store / 'qc.html'}" in said and "10 wells flagged" in said
    whole = (store / "qc.html").read_text()
    assert run(store, "--plate", "SCREEN__Plate1")[0] == 0
    selected = (store / "qc-selected.html").read_text()
    assert "SCREEN__Plate1" in selected and FAULTY not in selected and (store / "qc.html").read_text() == whole
    assert run(store, "--out", tmp_path / "a" / "page.html", "--where", "focus[DNA] > 0.2")[0] == 0
    assert "focus[DNA] &gt; 0.2" in (tmp_path / "a" / "page.html").read_text()
    assert verify(open_store(store), silent(), sources=False).damage == ()


def test_json_has_every_wells_figures_and_writes_no_page(store: Path, tmp_path: Path, quality: Quality) -> None:
    (store / "qc.html").unlink(missing_ok=True)
    code, said = run(store, "--json", "--plate", FAULTY)
    assert code == 0 and not (store / "qc.html").exists()
    (plate,) = json.loads(said)["plates"]
    wells = {row["well"]: row for row in plate["wells"]}
    assert len(wells) == ROWS * COLUMNS - len(NOT_IMAGED)
    assert (
        wells[CUT.name]["usable"] == 0 and wells[CUT.name]["focus"] == [None] * 6 and wells[CUT.name]["nuclei"] is None
    )
    at = faulty(quality).values[0, BLURRED.row - 1, BLURRED.column - 1]
    assert wells[BLURRED.name]["focus"][0] == at
    assert plate["flagged_wells"] == sorted(well.name for well in faulty(quality).flagged_wells)


def test_what_is_not_there_or_not_understood_is_refused_in_one_line(store: Path, snapshot: Snapshot) -> None:
    with pytest.raises(UsageError, match=r"--plate SCREEN__Plate3: not in snapshot .*SCREEN__Plate2"):
        look_at(snapshot, ["SCREEN__Plate3"], None, silent())
    with pytest.raises(UsageError, match=r"^--where blur > 1: .*no such column"):
        look_at(snapshot, [], "blur > 1", silent())
    with pytest.raises(UsageError, match=r"^--where .*cannot be read"):
        look_at(snapshot, [], "focus >", silent())
    with pytest.raises(UsageError, match=r"no snapshot|nosuch"):
        run(store, "--snapshot", "nosuch")


def small(tmp_path: Path, **spec: Any) -> Path:
    wanted = SyntheticSpec(
        experiments=1,
        plates_per_experiment=1,
        plate_rows=2,
        plate_columns=4,
        field_px=96,
        num_genes=2,
        num_unexpressed=0,
        **spec,
    )
    write_plates(tmp_path / "raw", wanted, silent(), workers=1)
    return tmp_path / "raw"


def test_a_store_without_measures_gets_one_clear_line_and_its_montages(tmp_path: Path) -> None:
    convert(tmp_path, small(tmp_path), qc=False)
    code, said = run(tmp_path / "store")
    assert code == 0 and said.count("qc=true") == 1
    html = (tmp_path / "store" / "qc.html").read_text()
    assert "holds no measures of quality" in html and html.count("data:image/jpeg") == 1 and 'class="maps"' not in html
    snapshot = Snapshot.open(open_store(tmp_path / "store"))
    old = snapshot.fields().drop([name for name in snapshot.fields().columns if name.startswith("qc_")])
    snapshot.__dict__["_fields"] = old  # as a store of an older version has them
    assert look_at(snapshot, [], None, silent()).measures == ()
    with pytest.raises(UsageError, match="converted without it"):
        look_at(snapshot, [], "focus > 0.2", silent())


def test_a_store_copied_without_its_progress_has_plates_of_a_made_size(tmp_path: Path) -> None:
    convert(tmp_path, small(tmp_path))
    shutil.rmtree(tmp_path / "store" / ".progress")
    (plate,) = look_at(Snapshot.open(open_store(tmp_path / "store")), [], None, silent()).plates
    assert (plate.rows, plate.columns) == (8, 12) and len(plate.first) == 8


def test_a_damaged_shard_costs_its_pictures_only(tmp_path: Path) -> None:
    convert(tmp_path, small(tmp_path), shard_mb=1)
    store = open_store(tmp_path / "store")
    (plate,) = store.paths.converted_plates()
    shard = store.paths.shard(plate, 0)
    data = bytearray(shard.read_bytes())
    data[4:40] = bytes(36)
    shard.write_bytes(data)
    code, said = run(tmp_path / "store")
    assert code == 3 and f"{plate}/A01" in said and "see store verify" in said
    html = (tmp_path / "store" / "qc.html").read_text()
    assert "1 picture could not be read, first A01" in html and html.count("data:image/jpeg") == 1


@pytest.mark.parametrize("dtype", ["source", "uint8"])
def test_stacks_show_their_middle_plane_and_8_bits_their_own_levels(tmp_path: Path, dtype: str) -> None:
    raw = small(tmp_path, dtype="uint16", image_format="tif")
    (folder,) = find_plates([str(raw)])
    stacked = write_layout(read_plate(folder), tmp_path / "stacked", "cellvoyager", stack=3)
    convert(tmp_path, stacked, dtype=dtype)
    snapshot = Snapshot.open(open_store(tmp_path / "store"))
    quality = look_at(snapshot, [], None, silent())
    (plate,) = quality.plates
    chosen = snapshot.fields().filter(snapshot.fields()["field_no"].is_in(list(plate.first.values())))
    assert len(plate.first) == 8 and chosen["z"].unique().to_list() == ["2"] and plate.usable.max() == 3
    page = build_page(snapshot, quality, "today", silent())
    assert page.shown == 1 and page.unreadable == ()
    assert figures(snapshot, quality)["plates"][0]["wells"][0]["usable"] == 3

"""The page of store qc in a real browser: it asks nobody for anything, its filter, sorting and values under the pointer work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from phenomhpc.jobs.quality import build_page, look_at
from phenomhpc.progress import silent
from phenomhpc.store import Snapshot, open_store
from tests.browser.browsing import Proxy, answer, asked_for_page, browse
from tests.unit.quality_plates import BLURRED, FAULTY, write_screen
from tests.unit.test_plates_layouts import convert

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    convert(folder, write_screen(folder), max_set_aside=0.5)
    snapshot = Snapshot.open(open_store(folder / "store"))
    path = folder / "qc.html"
    path.write_text(build_page(snapshot, look_at(snapshot, [], None, silent()), "today", silent()).html)
    return path


def test_the_page_is_whole_without_a_request_or_an_error(
    chromium: str, page: Path, proxy: Proxy, tmp_path: Path
) -> None:
    done = browse(chromium, tmp_path / "profile", page, proxy, "--dump-dom")
    for words in ("Overview", "From plate to plate", "Set aside", "Plates"):
        assert f">{words}</h2>" in done.stdout
    assert "CONSOLE" not in done.stderr and "Refused to" not in done.stderr
    assert asked_for_page(proxy) == []
    assert '<output id="count">2 plates</output>' in done.stdout  # its own script ran under its own policy


def test_the_filter_hides_plates_and_counts_what_is_left(
    chromium: str, page: Path, proxy: Proxy, tmp_path: Path
) -> None:
    script = """
      const plates = () => all("details.plate").filter((one) => !one.hidden).map((one) => one.dataset.plate);
      const left = () => [byId("count").textContent, ...plates()];
      const said = [left()];
      find.value = "plate2 SCREEN"; find.dispatchEvent(new Event("input")); said.push(left());
      find.value = "nothing"; find.dispatchEvent(new Event("input")); said.push(left());
      find.value = ""; only.checked = true; only.dispatchEvent(new Event("change")); said.push(left());
      said.push(all("#all tbody tr").filter((row) => !row.hidden).length);
      return said;"""
    assert answer(chromium, page, proxy, tmp_path, script) == [
        ["2 plates", "SCREEN__Plate1", FAULTY], ["1 of 2 plates", FAULTY], ["0 of 2 plates"], ["1 of 2 plates", FAULTY], 1,
    ]  # fmt: skip


def test_heads_sort_links_open_and_the_pointer_tells_values(
    chromium: str, page: Path, proxy: Proxy, tmp_path: Path
) -> None:
    script = f"""
      const names = () => all("#all tbody tr").map((row) => row.dataset.plate);
      const head = all("#all thead th")[3];
      head.querySelector("button").click(); const up = names();
      head.querySelector("button").click(); const down = names();
      location.hash = "plate-{FAULTY}"; openTarget();
      const svg = document.querySelector("#plate-{FAULTY} svg[data-measure='0']");
      const box = new DOMPoint({BLURRED.column - 0.5}, {BLURRED.row - 0.5}).matrixTransform(svg.getScreenCTM());
      const told = wordsOfWell(svg, {{ clientX: box.x, clientY: box.y }});
      return [up, down, document.getElementById("plate-{FAULTY}").open, told];"""
    up, down, is_open, told = answer(chromium, page, proxy, tmp_path, script)  # type: ignore[misc]
    assert up == ["SCREEN__Plate1", FAULTY] and down == up[::-1] and is_open is True
    snapshot = Snapshot.open(open_store(page.parent / "store"))
    plate = look_at(snapshot, [FAULTY], None, silent()).plates[0]
    value = float(f"{plate.values[0, BLURRED.row - 1, BLURRED.column - 1]:.4g}")
    assert told == f"{BLURRED.name}  focus DNA {value}\n3 of 3 fields usable"


@pytest.mark.parametrize(("scheme", "dark"), [(1, False), (0, True)])
def test_maps_are_drawn_and_follow_the_readers_theme(
    chromium: str, page: Path, proxy: Proxy, tmp_path: Path, scheme: int, dark: bool
) -> None:
    shot, opened = tmp_path / "shot.png", page.with_name("opened.html")
    opened.write_text(
        page.read_text().replace(
            f'<details class="plate" id="plate-{FAULTY}"', f'<details open class="plate" id="plate-{FAULTY}"'
        )
    )
    browse(chromium, tmp_path / "profile", opened, proxy, f"--blink-settings=preferredColorScheme={scheme}",
           "--window-size=1500,7000", f"--screenshot={shot}")  # fmt: skip
    pixels = np.asarray(imread(shot))[..., :3]
    assert (np.median(pixels) < 0.3) == dark
    viridis_end = (np.abs(pixels - (0.267, 0.005, 0.329)).max(axis=2) < 0.02).mean(axis=1)
    assert (viridis_end > 0.02).sum() > 300  # rows of the screen that cross maps
    orange = (np.abs(pixels - ((1.0, 0.478, 0.18) if dark else (1.0, 0.353, 0.0))).max(axis=2) < 0.05).sum()
    assert orange > 500


def test_a_narrow_screen_shows_the_page_without_scrolling_sideways(
    chromium: str, page: Path, proxy: Proxy, tmp_path: Path
) -> None:
    script = """byId("open").click();
      return document.documentElement.scrollWidth - document.documentElement.clientWidth;"""
    assert answer(chromium, page, proxy, tmp_path, script, "--window-size=500,900") == 0

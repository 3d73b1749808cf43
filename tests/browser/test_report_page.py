"""The report of an evaluation in a real browser: it is whole, it asks nobody for anything, it can be read in both themes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from phenomhpc.config import resolve
from phenomhpc.jobs.here import run_here
from phenomhpc.jobs.map_files import open_map, query
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths
from tests.browser.browsing import Proxy, answer, asked_for_page, browse
from tests.unit.evaluation_data import write_annotations, write_embeddings, write_training

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    training = RunPaths(folder / "runs" / "pretrain-1")
    training.root.mkdir(parents=True)
    write_training(training)
    flags = {
        "embeddings": str(write_embeddings(folder / "emb", training).root),
        "annotations": str(write_annotations(folder / "annotations")),
        "runs": str(folder / "runs"),
    }
    paths, _ = run_here(resolve("evaluate", flags, [], layers=()).config, command=["test"], progress=silent())
    return paths.report


def test_the_report_is_whole_without_a_request_or_an_error(
    chromium: str, report: Path, proxy: Proxy, tmp_path: Path
) -> None:
    done = browse(chromium, tmp_path / "profile", report, proxy, "--dump-dom")
    for words in (
        "What was evaluated",
        "Known relationships found again",
        "From wells to the map",
        "Batch effects, before and after",
        "Look up a gene",
        "Which perturbations look alike",
        "The genome, arm by arm",
        "Other benchmarks",
        "Do wells of one perturbation agree?",
        "How the encoder learned",
    ):
        assert f">{words}</h2>" in done.stdout
    assert done.stdout.count("<figure>") == done.stdout.count("<img ") == 9
    assert all(len(alt) > 40 for alt in re.findall(r' alt="([^"]*)"', done.stdout))
    assert "CONSOLE" not in done.stderr and "Refused to" not in done.stderr
    assert asked_for_page(proxy) == []
    assert '<strong id="said">GENE' in done.stdout  # its own script ran under its own policy


def test_search_finds_neighbours_offers_names_and_follows_links(
    chromium: str, report: Path, proxy: Proxy, tmp_path: Path
) -> None:
    script = """
      const type = (words) => { ask.value = words; ask.dispatchEvent(new Event("input")); };
      const rows = (side) => [...byId(side).children].map((row) => [row.querySelector(".name").textContent,
        row.querySelector(".cosine").textContent, [...row.querySelectorAll(".known b")].map((tag) => tag.textContent).join()]);
      const offered = () => [...offers.children].map((one) => one.textContent);
      type("gene04"); const exact = [said.textContent, rows("near"), rows("far"), offered()];
      type("ene1"); const some = offered();
      type("zzz"); const none = [offered(), byId("missing").textContent, said.textContent];
      type("GENE1"); ask.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
      const entered = [ask.value, said.textContent];
      byId("near").querySelector("button").click(); const followed = [said.textContent, ask.value];
      return { exact, some, none, entered, followed };"""
    said = answer(chromium, report, proxy, tmp_path, script)
    assert isinstance(said, dict)
    near, far = query(open_map(str(report.parent), Path()), "GENE04", 10)
    shown = [[[one.label, f"{one.cosine:.3f}".replace("-", "\N{MINUS SIGN}"), ",".join(one.known)] for one in side]
             for side in (near, far)]  # fmt: skip
    assert said["exact"] == ["GENE04", *shown, []]
    assert {row[0] for row in said["exact"][1] if row[2] == "PATHWAYS"} >= {"GENE05", "GENE06"}
    assert said["some"] == [f"GENE1{digit}" for digit in range(8)]
    assert said["none"] == [[], "no gene of this map is called zzz", "GENE04"]
    assert said["entered"] == ["GENE10", "GENE10"]
    nearest = query(open_map(str(report.parent), Path()), "GENE10", 1)[0][0].label
    assert said["followed"] == [nearest, nearest]


def test_a_page_that_does_ask_is_seen_to_ask(chromium: str, proxy: Proxy, tmp_path: Path) -> None:
    """The two checks above can fail: a page with a foreign picture and a broken script trips both; so do a font of the browser's
    own vendor and a server on this machine."""
    page = tmp_path / "page.html"
    page.write_text(
        '<link rel="stylesheet" href="https://fonts.googleapis.com/css?family=Inter"><img src="http://pictures.example/a.png">'
        '<img src="http://localhost:8000/b.png"><script>undefinedFunction()</script>'
    )
    done = browse(chromium, tmp_path / "profile", page, proxy, "--dump-dom")
    for host in ("fonts.googleapis.com", "pictures.example", "localhost:8000"):
        assert any(host in line for line in asked_for_page(proxy)), proxy.asked
    assert "CONSOLE" in done.stderr


@pytest.mark.parametrize(("scheme", "dark"), [(1, False), (0, True)])
def test_pictures_are_drawn_and_follow_the_readers_theme(
    chromium: str, report: Path, proxy: Proxy, tmp_path: Path, scheme: int, dark: bool
) -> None:
    shot = tmp_path / "shot.png"
    browse(chromium, tmp_path / "profile", report, proxy, f"--blink-settings=preferredColorScheme={scheme}",
            "--window-size=1200,9000", f"--screenshot={shot}")  # fmt: skip
    pixels = np.asarray(imread(shot))[..., :3]
    assert (np.median(pixels) < 0.3) == dark
    # Where pictures are, many colours are: bands of the page without any would mean that one did not load.
    colourful = (pixels.max(axis=2) - pixels.min(axis=2) > 0.35).mean(axis=1)
    assert (colourful > 0.05).sum() > 300


def test_a_narrow_screen_shows_the_page_without_scrolling_sideways(
    chromium: str, report: Path, proxy: Proxy, tmp_path: Path
) -> None:
    measure = "return document.documentElement.scrollWidth - document.documentElement.clientWidth;"
    assert answer(chromium, report, proxy, tmp_path, measure, "--window-size=500,900") == 0

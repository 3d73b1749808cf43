"""The report of an evaluation in a real browser: it is whole, it asks nobody for anything, it can be read in both themes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from phenomhpc.config import resolve
from phenomhpc.jobs.here import run_here
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths
from tests.browser.browsing import Proxy, asked_for_page, browse
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
        "Which perturbations look alike",
        "How the encoder learned",
    ):
        assert f">{words}</h2>" in done.stdout
    assert done.stdout.count("<figure>") == done.stdout.count("<img ") == 4
    assert all(len(alt) > 40 for alt in re.findall(r' alt="([^"]*)"', done.stdout))
    assert "CONSOLE" not in done.stderr and "Refused to" not in done.stderr
    assert asked_for_page(proxy) == []


def test_a_page_that_does_ask_is_seen_to_ask(chromium: str, proxy: Proxy, tmp_path: Path) -> None:
    """The two checks above can fail: a page with a foreign picture and a broken script trips both."""
    page = tmp_path / "page.html"
    page.write_text('<img src="http://pictures.example/a.png"><script>undefinedFunction()</script>')
    done = browse(chromium, tmp_path / "profile", page, proxy, "--dump-dom")
    assert any("pictures.example" in line for line in asked_for_page(proxy))
    assert "CONSOLE" in done.stderr


@pytest.mark.parametrize(("scheme", "dark"), [(1, False), (0, True)])
def test_pictures_are_drawn_and_follow_the_readers_theme(
    chromium: str, report: Path, proxy: Proxy, tmp_path: Path, scheme: int, dark: bool
) -> None:
    shot = tmp_path / "shot.png"
    browse(chromium, tmp_path / "profile", report, proxy, f"--blink-settings=preferredColorScheme={scheme}",
            "--window-size=1200,4000", f"--screenshot={shot}")  # fmt: skip
    pixels = np.asarray(imread(shot))[..., :3]
    assert (np.median(pixels) < 0.3) == dark
    # Where pictures are, many colours are: bands of the page without any would mean that one did not load.
    colourful = (pixels.max(axis=2) - pixels.min(axis=2) > 0.35).mean(axis=1)
    assert (colourful > 0.05).sum() > 300


def test_a_narrow_screen_shows_the_page_without_scrolling_sideways(
    chromium: str, report: Path, proxy: Proxy, tmp_path: Path
) -> None:
    """A probe beside the page measures it: scripts are forbidden in the page itself, so the copy's policy is lifted."""
    copy = tmp_path / "narrow.html"
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text())
    measure = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    probe = f"<script>document.title = 'wide ' + ({measure})</script>"
    copy.write_text(html.replace("</body>", f"{probe}</body>"))
    done = browse(chromium, tmp_path / "profile", copy, proxy, "--window-size=500,900", "--dump-dom")
    assert "<title>wide 0</title>" in done.stdout

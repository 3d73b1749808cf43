"""`store inspect`: what a store holds, and the picture of a well."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from tests.unit.test_cli import phenomhpc
from tests.unit.test_plates_layouts import convert

SPEC = SyntheticSpec(
    experiments=1, plates_per_experiment=1, plate_rows=1, plate_columns=4, field_px=64, sites=2, num_genes=1, num_unexpressed=0
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its store/ has the wells A01 and A03 to A04; of A02 nothing is usable."""
    folder = tmp_path_factory.mktemp("inspect")
    write_plates(folder / "raw", SPEC, silent(), workers=1)
    for path in (folder / "raw" / "SYN-01" / "Plate1").glob("A02_*_w1.png"):
        path.write_bytes(b"")
    convert(folder, folder / "raw", max_set_aside=0.5)
    return folder


def test_the_picture_of_a_well_shows_each_channel(folder: Path) -> None:
    pictures = {}
    for number, well in enumerate(("SYN-01__Plate1/A03", "a3", "SYN-01__Plate1/A04")):
        done = phenomhpc("store", "inspect", "store", "--picture", f"{number}.png", "--well", well, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert f"wrote {number}.png" in done.stdout and "SYN-01__Plate1" in done.stdout
        pictures[number] = imagecodecs.png_decode((folder / f"{number}.png").read_bytes())
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])
    # Two rows of three channels, each with a picture in it.
    height, width = pictures[0].shape[0] // 2, pictures[0].shape[1] // 3
    for row in range(2):
        for column in range(3):
            part = pictures[0][row * height :, column * width :][:height, :width, 0]
            assert len(np.unique(part[height // 4 : -height // 4, width // 4 : -width // 4])) > 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--well", "A01"], "--well A01: is for a picture; give --picture FILE.png too"),
        (
            ["--well", "A02", "--picture", "x.png"],
            "no usable field there; a well is PLATE/WELL, such as SYN-01__Plate1/A01, SYN-01__Plate1/A03, SYN-01__Plate1/A04",
        ),
        (["--well", "Plate9/A01", "--picture", "x.png"], "no usable field there"),
    ],
)
def test_a_well_that_cannot_be_shown_is_refused_in_one_line(words: list[str], said: str, folder: Path) -> None:
    done = phenomhpc("store", "inspect", "store", *words, cwd=folder)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (folder / "x.png").exists()

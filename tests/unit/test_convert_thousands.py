"""A screen of two thousand plates: listed and sniffed on the login node; in a soak also converted, and grown."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from phenomhpc.plates.synthetic.writing import encode
from phenomhpc.store import Snapshot, open_store
from tests.unit.raw_plates import image, phenix
from tests.unit.test_cli import phenomhpc
from tests.unit.test_convert_every_kind import noise
from tests.unit.test_convert_survey import convert, kinds, settings

PLATES = 2000
SOAK = bool(os.environ.get("PHENOMHPC_SOAK"))
LISTED_S = 30


def grow(raw: Path, numbers: range) -> None:
    """Plates of two wells, every second one of an Opera Phenix; each has a name of its own, and its images are links."""
    for number in numbers:
        if number % 2:
            folder = raw / "EXP" / f"Plate{number}"
            folder.mkdir(parents=True)
            names = [f"A0{well}_s1_w{channel}.png" for well in (1, 2) for channel in (1, 2)]
        else:
            folder = raw / "phenix" / f"P{number}-Measurement 1" / "Images"
            names = [f"r01c0{well}-ch{channel}.png" for well in (1, 2) for channel in (1, 2)]
            entries = "".join(image(int(name[9]), name, column=int(name[5])) for name in names)
            phenix(folder, entries.replace("<ChannelName>c", "<ChannelName>w"))
            index = folder / "Index.idx.xml"
            index.write_text(index.read_text().replace("<PlateID>P1<", f"<PlateID>P{number}<"))
        for at, name in enumerate(names):
            os.link(raw / f"{at}.png", folder / name)


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("thousands") / "raw"
    raw.mkdir()
    for at in range(4):
        (raw / f"{at}.png").write_bytes(encode(noise(at, 32, 32, "uint16"), "png"))
    grow(raw, range(1, PLATES + 1))
    return raw


def test_submit_lists_and_sniffs_two_thousand_plates_at_once(screen: Path, tmp_path: Path) -> None:
    """On the login node: what `submit convert` does before anything is queued, as a person types it."""
    before = time.monotonic()
    done = phenomhpc("submit", "convert", "--plates", str(screen), "--store", "store", "--dry-run", cwd=tmp_path)
    took = time.monotonic() - before
    assert done.returncode == 0, done.stderr
    assert f"{PLATES} plates" in done.stdout and "their shards" in done.stdout, done.stdout[:2000]
    assert took < LISTED_S, f"{took:.1f} s"
    assert not (tmp_path / "store").exists()


@pytest.mark.skipif(not SOAK, reason="a soak: two thousand plates are converted")
@pytest.mark.timeout(3600)
def test_two_thousand_plates_are_converted_and_a_second_pass_takes_up_new_ones_only(
    screen: Path, tmp_path: Path
) -> None:
    paths, summary = convert(settings(tmp_path, screen))
    assert summary.exit_code == 0 and kinds(paths) == [("survey", PLATES), ("convert", PLATES)]
    assert Snapshot.open(open_store(tmp_path / "store")).num_fields == 2 * PLATES
    grow(screen, range(PLATES + 1, PLATES + 4))
    paths, _ = convert(settings(tmp_path, screen, new=True))
    assert kinds(paths) == [("convert", 3)]
    assert len(Snapshot.open(open_store(tmp_path / "store")).plates) == PLATES + 3

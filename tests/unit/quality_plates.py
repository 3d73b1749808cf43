"""Raw plates whose wells are alike but for planted faults, for what is to be flagged, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from phenomhpc.plates import Well
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent

ROWS, COLUMNS, CHANNELS = 8, 12, 6
SITES = {1: 1, 2: 3}  # of each plate
BLURRED, BURNT_COLUMN, BURNT_CHANNEL = Well.parse("C05"), 7, 2
WITHOUT_CELLS, CUT, HALF_CUT = Well.parse("F10"), Well.parse("B03"), Well.parse("B04")
ONE_SITE, NOT_IMAGED = Well.parse("E02"), (Well.parse("H11"), Well.parse("H12"))
FAULTY = "SCREEN__Plate2"

Picture = NDArray[np.uint16]


def write_screen(root: Path) -> Path:
    """SCREEN/Plate1 and Plate2 of 96 wells; the faults are on Plate2."""
    field = _one_field(root / "one")
    for number in SITES:
        folder = root / "raw" / "SCREEN" / f"Plate{number}"
        folder.mkdir(parents=True)
        for row in range(1, ROWS + 1):
            for column in range(1, COLUMNS + 1):
                _write_well(folder, Well(row=row, column=column), field, number)
    _plant(root / "raw" / "SCREEN" / "Plate2")
    return root / "raw"


def _one_field(folder: Path) -> list[Picture]:
    spec = SyntheticSpec(
        experiments=1, plates_per_experiment=1, plate_rows=1, plate_columns=3, field_px=160, num_genes=1, num_unexpressed=0,
        image_format="tif", dtype="uint16", cells_per_megapixel=700.0,
    )  # fmt: skip
    write_plates(folder, spec, silent(), workers=1)
    found = [tifffile.imread(path) for path in sorted((folder / "SYN-01" / "Plate1").glob("A01_s1_w*.tif"))]
    shutil.rmtree(folder)
    return found


def _write_well(folder: Path, well: Well, field: list[Picture], plate: int) -> None:
    """The field, moved and with a little noise of its own."""
    for site in range(1, SITES[plate] + 1):
        rng = np.random.default_rng([plate, well.row, well.column, site])
        shift = tuple(rng.integers(0, 160, 2).tolist())
        for channel, plane in enumerate(field, 1):
            moved = np.roll(plane, shift, (0, 1)).astype(np.float64)
            noisy = np.clip(moved * rng.normal(1, 0.01) + rng.normal(0, 20, plane.shape), 0, 60_000)
            tifffile.imwrite(path_of(folder, well, site, channel), noisy.astype(np.uint16))


def path_of(folder: Path, well: Well, site: int, channel: int) -> Path:
    return folder / f"{well.name}_s{site}_w{channel}.tif"


def _plant(folder: Path) -> None:
    def change(well: Well, site: int, channel: int, how: Callable[[Picture], NDArray[np.float64]]) -> None:
        path = path_of(folder, well, site, channel)
        tifffile.imwrite(path, how(tifffile.imread(path)).astype(np.uint16))

    def burn(plane: Picture) -> NDArray[np.float64]:
        burnt = plane.astype(np.float64)
        burnt[burnt > np.percentile(burnt, 96)] = 65_535
        return burnt

    def bare(plane: Picture) -> NDArray[np.float64]:
        return np.random.default_rng(0).normal(np.percentile(plane, 5), 3, plane.shape)

    for site in range(1, SITES[2] + 1):
        for channel in range(1, CHANNELS + 1):
            change(BLURRED, site, channel, lambda plane: gaussian_filter(plane.astype(float), 8))
            change(WITHOUT_CELLS, site, channel, bare)
        for row in range(1, ROWS + 1):
            change(Well(row=row, column=BURNT_COLUMN), site, BURNT_CHANNEL, burn)
        path_of(folder, CUT, site, 1).write_bytes(b"")
    path_of(folder, HALF_CUT, 2, 3).write_bytes(b"")
    change(ONE_SITE, 2, 4, burn)
    for well in NOT_IMAGED:
        for path in folder.glob(f"{well.name}_*"):
            path.unlink()

"""Quality of a field from its pixels, while they are in hand: focus, saturation, background, signal and a nucleus count.

Each measure looks at a fixed part of the pixels, so that it costs a few percent of a conversion; none depends on the exposure
but background and signal, which are levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phenomhpc.plates.images import Pixels

# A change of what is measured is another version: it is part of what a record's digest binds to.
VERSION = 1
# Focus: so many tiles of this edge along each axis; autocorrelation near and far, pixels.
_TILES, _TILE_PX, _NEAR, _FAR = 4, 128, 1, 12
# With less of a tile's variance shared by neighbours there is noise, and nothing to be in focus.
_STRUCTURE = 0.01
# Levels are taken from every so manieth pixel of every so manieth row.
_STRIDE, _ROWS = 16, 4
BACKGROUND_PERCENTILE, SIGNAL_PERCENTILE = 5.0, 99.5
# Where cameras of 8, 12, 14 and 16 bits end.
_CEILINGS = (255, 4095, 16383, 65535)
# Nuclei are counted on a picture of about this many micrometres a pixel; where the pixel size is unknown, of a quarter.
_NUCLEUS_UM, _STEP_UM, _STEP_UNKNOWN = 10.0, 3.6, 6
# The memory in which focus was measured last, unless it is in use: to have two megabytes made for each plane takes longer than
# what is done in them.
_spare: list[NDArray[np.float32]] = []
_DNA = ("dna", "dapi", "hoechst", "nuc", "draq5", "h2b")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Of one field.  Lists in channel order.

    focus: 0 (blurred, or nothing to see) to 1; saturated: share of pixels at the camera's ceiling; background, signal: grey
    levels, the signal above the background; nuclei: None where no channel shows DNA.
    """

    focus: tuple[float, ...]
    saturated: tuple[float, ...]
    background: tuple[float, ...]
    signal: tuple[float, ...]
    nuclei: int | None

    def columns(self) -> dict[str, object]:
        """As columns of the fields table."""
        return {
            "qc_focus": list(self.focus),
            "qc_saturated": list(self.saturated),
            "qc_background": list(self.background),
            "qc_signal": list(self.signal),
            "qc_nuclei": self.nuclei,
        }


def measure(pixels: Pixels, dna: int | None, pixel_um: float | None) -> Quality:
    """Measure a field (C, H, W), uint8 or uint16.

    dna: the channel that shows nuclei.  pixel_um: size of a pixel, micrometres, where it is known.
    """
    levels = [_levels(plane) for plane in pixels]
    return Quality(
        focus=tuple(focus(plane) for plane in pixels),
        saturated=tuple(saturated(plane) for plane in pixels),
        background=tuple(background for background, _ in levels),
        signal=tuple(signal for _, signal in levels),
        nuclei=None if dna is None else count_nuclei(pixels[dna], pixel_um),
    )


def dna_channel(names: Sequence[str]) -> int | None:
    """The channel whose name says DNA (Hoechst, DAPI ...), the first of several."""
    return next((place for place, name in enumerate(names) if any(word in name.lower() for word in _DNA)), None)


def focus(plane: Pixels) -> float:
    """1 - r(12) / r(1), with r the autocorrelation of tiles at a distance in pixels, mean of x and y; within [0, 1].

    What is sharp forgets itself within a few pixels, what is blurred does not (autocorrelation measures: Vollath, J.
    Microscopy 147, 1987).  Noise is not correlated from pixel to pixel, so it counts neither as sharpness nor against it.
    """
    edges = [min(_TILE_PX, size) for size in plane.shape]
    if min(edges) <= _FAR:
        return 0.0
    memory = _spare.pop() if _spare else np.empty(0, np.float32)
    if memory.shape != (2, _TILES**2, *edges):
        memory = np.empty((2, _TILES**2, *edges), np.float32)
    tiles, squares = memory
    _fill(tiles, plane)
    tiles -= tiles.mean(axis=(1, 2), keepdims=True)
    variance = float(np.square(tiles, out=squares).mean())
    near, far = _correlation(tiles, _NEAR), _correlation(tiles, _FAR)
    _spare[:] = [memory]
    if near <= _STRUCTURE * variance or variance == 0:
        return 0.0
    return float(np.clip(1 - far / near, 0, 1))


def _fill(tiles: NDArray[np.float32], plane: Pixels) -> None:
    """Tiles (16, h, w) spread evenly over the plane."""
    height, width = tiles.shape[1:]
    rows, columns = (
        np.linspace(0, size - edge, _TILES).astype(int) for size, edge in zip(plane.shape, (height, width), strict=True)
    )
    for tile, (y, x) in zip(tiles, itertools.product(rows, columns), strict=True):
        tile[...] = plane[y : y + height, x : x + width]


def _correlation(tiles: NDArray[np.float32], distance: int) -> float:
    along_x = np.einsum("tyx,tyx->", tiles[:, :, distance:], tiles[:, :, :-distance]) / tiles[:, :, distance:].size
    along_y = np.einsum("tyx,tyx->", tiles[:, distance:], tiles[:, :-distance]) / tiles[:, distance:].size
    return float(along_x + along_y) / 2


def saturated(plane: Pixels) -> float:
    """Share of the pixels that are at the ceiling: that of the dtype, or of a camera of 12 or 14 bits in 16; every fourth row."""
    rows = plane[::_ROWS]
    top = int(rows.max())
    if top not in _CEILINGS or (top == _CEILINGS[0] and plane.dtype != np.uint8):
        return 0.0
    return float(np.count_nonzero(rows == top)) / rows.size


def _levels(plane: Pixels) -> tuple[float, float]:
    """Background and signal above it, grey levels: the 5th percentile, and the 99.5th less that."""
    sample = np.ascontiguousarray(plane[::_STRIDE, ::_STRIDE]).ravel()
    places = [int((sample.size - 1) * share / 100) for share in (BACKGROUND_PERCENTILE, SIGNAL_PERCENTILE)]
    low, high = (float(value) for value in np.partition(sample, places)[places])
    return low, high - low


def count_nuclei(plane: Pixels, pixel_um: float | None) -> int:
    """Nuclei in a plane: peaks of the smoothed picture above Otsu's threshold, at least half a nucleus apart.

    Otsu: IEEE Trans. Systems, Man, and Cybernetics 9, 1979.  A count for judging wells against each other, no segmentation.
    """
    from scipy.ndimage import gaussian_filter

    step = _STEP_UNKNOWN if pixel_um is None else max(1, round(_STEP_UM / pixel_um))
    step = max(1, min(step, *(size // 32 for size in plane.shape)))
    across = 3.0 if pixel_um is None else _NUCLEUS_UM / (pixel_um * step)
    small = _shrunk(plane, step)
    smooth = gaussian_filter(small, across / 4, mode="nearest")
    threshold = _otsu(smooth)
    if threshold is None:
        return 0
    width = max(3, 2 * round(across / 4) + 1)
    return _count_peaks(smooth, threshold, width)


def _count_peaks(picture: NDArray[np.float32], threshold: float, width: int) -> int:
    """Pixels above the threshold that are the largest (or among them) of the square of that odd width around them.

    Those larger than their four neighbours are few: only they are compared with the rest, a fifth of a maximum filter's time.
    """
    half = width // 2
    framed = np.pad(picture, half, mode="edge")
    height, size = picture.shape

    def moved(y: int, x: int) -> NDArray[np.float32]:
        return framed[half + y : half + y + height, half + x : half + x + size]

    candidate = picture > threshold
    for y, x in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        candidate &= picture >= moved(y, x)
    squares = np.lib.stride_tricks.sliding_window_view(framed, (width, width))[candidate]
    return int(np.count_nonzero(squares.max(axis=(1, 2)) == picture[candidate])) if len(squares) else 0


def _shrunk(plane: Pixels, step: int) -> NDArray[np.float32]:
    """Every `step`th pixel, each the mean of up to four around it."""
    height, width = (size // step for size in plane.shape)
    offsets = {(0, 0), (step // 2, step // 2), (0, step // 2), (step // 2, 0)}
    total = np.zeros((height, width), np.float32)
    for y, x in offsets:
        total += plane[y::step, x::step][:height, :width]
    total /= len(offsets)
    return total


def _otsu(picture: NDArray[np.float32]) -> float | None:
    """The threshold between two classes; None where they are no classes (less than three deviations of the lower apart)."""
    low, high = float(picture.min()), float(picture.max())
    if high <= low:
        return None
    bins = ((picture - low) * (255.999 / (high - low))).astype(np.uint8)
    counts = np.bincount(bins.ravel(), minlength=256)
    edges = np.linspace(low, high, 257)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    at = int(np.nanargmax(between[:-1]))
    threshold = float(edges[at + 1])
    dark, bright = picture[picture <= threshold], picture[picture > threshold]
    if not bright.size or float(bright.mean() - dark.mean()) < 3 * float(dark.std()):
        return None
    return threshold

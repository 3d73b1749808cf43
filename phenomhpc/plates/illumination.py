"""Uneven light: the profile of a channel over the field, from what the layout says or from the plate itself.

A profile is f32 (H, W), about 1; pixels are divided by it.  What it was made of stands beside the pixels, so that each stored
grey level can be traced to the camera's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phenomhpc.plates.images import Pixels

# What a profile divides by less or more than is no illumination but a damaged file.
_LEAST, _MOST = 0.01, 100.0
# The estimate tells no more than a threefold difference: no microscope's light is worse, and dark plates are.
_DIMMEST = 0.3
# The estimate: fields are reduced to squares of about this many, and smoothed over this share of their edge.
_SQUARES, _SMOOTH = 64, 0.08


class NoProfile(ValueError):
    """What was said of a channel's light cannot be used; str() is a short reason."""


def profile(text: str | None, height: int, width: int) -> NDArray[np.float32] | None:
    """The profile f32 (H, W) of what a layout said of a channel (JSON text); None where it is flat or nothing was said.

    Raises NoProfile for what cannot be evaluated, has another size, or values that are no illumination.
    """
    if text is None:
        return None
    said = json.loads(text)
    if said["kind"] == "grid":
        found = _resized(np.asarray(said["values"], np.float32), height, width)
    elif said["kind"] == "npy":
        found = _from_npy(Path(said["path"]))
    else:
        polynomial = _polynomial(said)
        if polynomial is None:
            return None
        found = evaluate(polynomial, height, width)
    if found.shape != (height, width):
        raise NoProfile(f"has {'x'.join(map(str, found.shape))} values, the plate's fields {height}x{width} pixels")
    if not (np.isfinite(found).all() and float(found.min()) > _LEAST and float(found.max()) < _MOST):
        raise NoProfile(f"has values that are no illumination (from {found.min():g} to {found.max():g})")
    return found


def _from_npy(path: Path) -> NDArray[np.float32]:
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r")
        if loaded.ndim != 2 or loaded.size > 2**26 or loaded.dtype.kind not in "fui":
            raise NoProfile(f"{path.name} is no plane of numbers ({loaded.dtype} {loaded.shape})")
        found: NDArray[np.float32] = np.array(loaded, np.float32)
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, NoProfile):
            raise
        raise NoProfile(f"{path.name} cannot be read ({str(error).splitlines()[0]})") from error
    return found


def _polynomial(said: dict[str, Any]) -> dict[str, Any] | None:
    """Harmony's background profile: the one that its own correction of single planes uses; None where it is flat."""
    if "profile" not in said:
        raise NoProfile("cannot be parsed")
    background = said["profile"].get("Background")
    if not isinstance(background, dict) or not isinstance(background.get("Profile"), dict):
        return None
    found: dict[str, Any] = background["Profile"]
    if found.get("Type") == "Identity" or background.get("Character") in ("Flat", "Null"):
        return None
    if found.get("Type") != "Polynomial":
        raise NoProfile(f"is of type {found.get('Type')!r}, only Polynomial and Identity are known")
    return found


def evaluate(polynomial: dict[str, Any], height: int, width: int) -> NDArray[np.float32]:
    """sum over n and k of c[n][k] x^(n-k) y^k, with x = (column - Origin[0]) Scale[0] and y = (row - Origin[1]) Scale[1].

    Coefficients are grouped by total degree n.  Which axis comes first is not documented; of the four ways to read it this one
    fits the empty background of a real field best (correlation 0.998 against 0.977 to 0.996 in the DNA channel).
    Raises NoProfile when numbers are missing or no numbers.
    """
    try:
        degrees = [[float(value) for value in row] for row in polynomial["Coefficients"]]
        origin = [float(value) for value in polynomial["Origin"]]
        scale = [float(value) for value in polynomial["Scale"]]
        dims = [int(value) for value in polynomial["Dims"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise NoProfile(f"lacks a number ({error})") from error
    if (
        len(degrees) > 12
        or any(len(row) != n + 1 for n, row in enumerate(degrees))
        or len(origin) != 2
        or len(scale) != 2
    ):
        raise NoProfile("has coefficients that make no polynomial")
    if dims != [width, height]:
        raise NoProfile(f"is for {dims} pixels, the plate's fields have {[width, height]}")
    x = (np.arange(width) - origin[0]) * scale[0]
    y = (np.arange(height) - origin[1]) * scale[1]
    total = np.zeros((height, width))
    for n, row in enumerate(degrees):
        for k, value in enumerate(row):
            total += value * np.outer(y**k, x ** (n - k))
    return total.astype(np.float32)


def estimate(squares: list[NDArray[np.float32]]) -> dict[str, Any]:
    """What a plate's own fields say: JSON content {"kind": "grid", "values"} of a channel, mean 1.

    squares: fields reduced by `reduced()`.  The median over fields leaves the cells out, as far as they lie elsewhere in each;
    a Gaussian smooths the rest (the median and smoothing of Singh et al., J. Microscopy 256, 2014).
    """
    from scipy.ndimage import gaussian_filter

    middle = np.median(np.stack(squares), axis=0)
    smooth = gaussian_filter(middle, _SMOOTH * min(middle.shape), mode="nearest")
    mean = float(smooth.mean())
    # Where a plate is all but black nothing tells the light: it must not be divided by next to nothing.
    grid = np.clip(smooth / mean, _DIMMEST, 1 / _DIMMEST) if mean > 0 else np.ones_like(smooth)
    return {"kind": "grid", "values": [[round(float(value), 5) for value in row] for row in grid]}


def reduced(plane: Pixels) -> NDArray[np.float32]:
    """A plane (H, W) as means of squares, about 64 by 64."""
    step = max(1, min(plane.shape) // _SQUARES)
    height, width = (size // step for size in plane.shape)
    cut = plane[: height * step, : width * step].reshape(height, step, width, step)
    means: NDArray[np.float32] = cut.mean(axis=(1, 3), dtype=np.float32)
    return means


def _resized(grid: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Bilinear, between the centres of the squares."""
    if grid.ndim != 2 or grid.size == 0:
        raise NoProfile("has no grid of values")
    rows, columns = (
        np.clip((np.arange(size) + 0.5) * number / size - 0.5, 0, number - 1)
        for size, number in ((height, grid.shape[0]), (width, grid.shape[1]))
    )
    across = np.stack([np.interp(columns, np.arange(grid.shape[1]), row) for row in grid])
    found: NDArray[np.float32] = np.empty((height, width), np.float32)
    low = np.floor(rows).astype(int)
    high = np.minimum(low + 1, grid.shape[0] - 1)
    share = (rows - low)[:, None]
    found[...] = across[low] * (1 - share) + across[high] * share
    return found


def divide(plane: Pixels, flat: NDArray[np.float32]) -> None:
    """Divide a plane (H, W) by a profile, in place: rounded half to even, within the dtype; what is saturated stays so."""
    top = np.iinfo(plane.dtype).max
    saturated = plane == top
    corrected = np.rint(plane / flat)
    np.clip(corrected, 0, top, out=corrected)
    plane[...] = corrected
    plane[saturated] = top

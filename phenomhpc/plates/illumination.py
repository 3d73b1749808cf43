"""Uneven light: the profile of a channel over the field, from what the layout says or from the plate itself.

A profile is f32 (H, W), about 1; pixels are divided by it.  What it was made of stands beside the pixels, so that each stored
grey level can be traced to the camera's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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


class Profile(Protocol):
    """The profile of one channel over the field; what of it is not asked for need not be computed."""

    def window(self, y: int, x: int, height: int, width: int) -> NDArray[np.float32]:
        """f32 (height, width) of it from (y, x) on.  Raises NoProfile where it holds no illumination."""


def profile(text: str | None, height: int, width: int) -> NDArray[np.float32] | None:
    """The profile f32 (H, W) of what a layout said of a channel (JSON text); None where it is flat or nothing was said.

    Raises NoProfile for what cannot be evaluated, has another size, or values that are no illumination.
    """
    found = open_profile(text, height, width)
    return None if found is None else found.window(0, 0, height, width)


def open_profile(text: str | None, height: int, width: int) -> Profile | None:
    """The same without computing it: for a crop's worth of it at a time."""
    if text is None:
        return None
    said = json.loads(text)
    if said["kind"] == "grid":
        return _Grid(np.asarray(said["values"], np.float32), height, width)
    if said["kind"] == "npy":
        return _Function(Path(said["path"]), height, width)
    polynomial = _polynomial(said)
    return None if polynomial is None else Polynomial(polynomial, height, width)


def _checked(found: NDArray[np.float32]) -> NDArray[np.float32]:
    if not (np.isfinite(found).all() and float(found.min()) > _LEAST and float(found.max()) < _MOST):
        raise NoProfile(f"has values that are no illumination (from {found.min():g} to {found.max():g})")
    return found


class _Function:
    """An array in a .npy file, mapped."""

    def __init__(self, path: Path, height: int, width: int) -> None:
        try:
            loaded = np.load(path, allow_pickle=False, mmap_mode="r")
            if loaded.ndim != 2 or loaded.size > 2**26 or loaded.dtype.kind not in "fui":
                raise NoProfile(f"{path.name} is no plane of numbers ({loaded.dtype} {loaded.shape})")
        except (OSError, ValueError, EOFError) as error:
            if isinstance(error, NoProfile):
                raise
            raise NoProfile(f"{path.name} cannot be read ({str(error).splitlines()[0]})") from error
        if loaded.shape != (height, width):
            have = "x".join(map(str, loaded.shape))
            raise NoProfile(f"has {have} values, the plate's fields {height}x{width} pixels")
        self._values = loaded

    def window(self, y: int, x: int, height: int, width: int) -> NDArray[np.float32]:
        return _checked(np.array(self._values[y : y + height, x : x + width], np.float32))


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


class Polynomial:
    """sum over n and k of c[n][k] x^(n-k) y^k, with x = (column - Origin[0]) Scale[0] and y = (row - Origin[1]) Scale[1].

    Coefficients are grouped by total degree n.  Which axis comes first is not documented; of the four ways to read it this one
    fits the empty background of a real field best (correlation 0.998 against 0.977 to 0.996 in the DNA channel).
    Raises NoProfile when numbers are missing or no numbers.
    """

    def __init__(self, polynomial: dict[str, Any], height: int, width: int) -> None:
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
        # As a polynomial in y whose coefficients depend on x: a window of it is a product of two thin matrices.
        powers = range(len(degrees))
        self._y = np.stack([y**k for k in powers], axis=1)
        self._x = np.stack([sum(degrees[n][k] * x ** (n - k) for n in range(k, len(degrees))) for k in powers])

    def window(self, y: int, x: int, height: int, width: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = (self._y[y : y + height] @ self._x[:, x : x + width]).astype(np.float32)
        return _checked(found)


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


class _Grid:
    """A grid of values, bilinear between the centres of its squares."""

    def __init__(self, grid: NDArray[np.float32], height: int, width: int) -> None:
        if grid.ndim != 2 or grid.size == 0:
            raise NoProfile("has no grid of values")
        rows, columns = (
            np.clip((np.arange(size) + 0.5) * number / size - 0.5, 0, number - 1)
            for size, number in ((height, grid.shape[0]), (width, grid.shape[1]))
        )
        self._across = np.stack([np.interp(columns, np.arange(grid.shape[1]), row) for row in grid])
        self._low = np.floor(rows).astype(int)
        self._high = np.minimum(self._low + 1, grid.shape[0] - 1)
        self._share = (rows - self._low)[:, None]

    def window(self, y: int, x: int, height: int, width: int) -> NDArray[np.float32]:
        rows, across = slice(y, y + height), self._across[:, x : x + width]
        share = self._share[rows]
        found: NDArray[np.float32] = np.empty((height, width), np.float32)
        found[...] = across[self._low[rows]] * (1 - share) + across[self._high[rows]] * share
        return _checked(found)


def divide(plane: Pixels, flat: NDArray[np.float32], dark: float = 0.0) -> None:
    """Divide a plane (H, W) by a profile, in place: rounded half to even, within the dtype; what is saturated stays so.

    dark: how many of the plane's grey levels lie below its 0, where a look-up table has taken them off.
    """
    top = np.iinfo(plane.dtype).max
    saturated = plane == top
    corrected = np.rint(plane / flat if dark == 0 else (plane + np.float32(dark)) / flat - np.float32(dark))
    np.clip(corrected, 0, top, out=corrected)
    plane[...] = corrected
    plane[saturated] = top

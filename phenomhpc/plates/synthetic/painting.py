"""Painting a field: six channels that look like Cell Painting, from a phenotype."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phenomhpc.plates.synthetic.biology import CELLS, CHANNELS, LATENTS, PlateEffect, SyntheticSpec, generator

Image = NDArray[np.float32]

CELL_RADIUS_PX = 21.0
NUCLEUS_SHARE = 0.46
# Photons at full scale: what shot noise follows; read noise in units of full scale.
PHOTONS = 900.0
READ_NOISE = 0.006
FULL_SCALE = {"uint8": 255, "uint16": 40000}
DNA, ER, AGP, RNA, MITO, GOLGI = range(len(CHANNELS))


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """One cell's own numbers: centre (px), axes, angles, and latents."""

    y: float
    x: float
    angle: float
    phase: float
    nucleus_angle: float
    latent: dict[str, float]


def paint_field(
    spec: SyntheticSpec, phenotype: NDArray[np.float64], effect: PlateEffect, number: int
) -> NDArray[np.generic]:
    """Pixels (6, field_px, field_px) of the spec's dtype; `number` names the field in the whole screen.

    Cells vary about the phenotype with standard deviation 1 per latent and may overlap; then illumination, blur, shot noise
    and read noise.
    """
    draw = generator(spec.seed, CELLS, number)
    moved = phenotype + effect.shift
    image = np.zeros((len(CHANNELS), spec.field_px, spec.field_px), np.float32)
    fine, coarse = _textures(draw, spec.field_px)
    for cell in _cells(draw, spec, moved):
        _paint_cell(image, cell, fine, coarse, draw)
    return _photograph(image, spec, effect, draw)


def _cells(draw: np.random.Generator, spec: SyntheticSpec, moved: NDArray[np.float64]) -> list[_Cell]:
    density = spec.cells_per_megapixel * np.exp(0.18 * moved[LATENTS.index("cell_density")])
    margin = CELL_RADIUS_PX
    area = (spec.field_px + 2 * margin) ** 2
    count = max(1, int(draw.poisson(density * area / 1e6)))
    latents = moved + draw.standard_normal((count, len(LATENTS)))
    places = draw.uniform(-margin, spec.field_px + margin, (count, 2))
    angles = draw.uniform(0, 2 * np.pi, (count, 3))
    return [
        _Cell(
            y=float(place[0]),
            x=float(place[1]),
            angle=float(angle[0]),
            phase=float(angle[1]),
            nucleus_angle=float(angle[2]),
            latent=dict(zip(LATENTS, latent.tolist(), strict=True)),
        )
        for place, angle, latent in zip(places, angles, latents, strict=True)
    ]


def _textures(draw: np.random.Generator, size: int) -> tuple[Image, Image]:
    """Two textures in about [0, 1]: grains of one and of three pixels."""
    from scipy.ndimage import gaussian_filter

    def texture(sigma: float) -> Image:
        noise = gaussian_filter(draw.standard_normal((size, size)).astype(np.float32), sigma, mode="wrap")
        scaled: Image = np.clip(0.5 + 0.33 * noise / noise.std(), 0, 1.3).astype(np.float32)
        return scaled

    return texture(0.9), texture(2.6)


def _paint_cell(image: Image, cell: _Cell, fine: Image, coarse: Image, draw: np.random.Generator) -> None:
    """Add one cell to the channels, inside the window that it can reach."""
    latent, size = cell.latent, image.shape[-1]
    radius = CELL_RADIUS_PX * float(np.exp(0.10 * latent["cell_size"]))
    stretch = float(np.exp(0.5 * min(0.9, abs(0.35 + 0.16 * latent["cell_elongation"]))))
    reach = int(1.5 * radius * stretch) + 3
    top, bottom = max(0, int(cell.y) - reach), min(size, int(cell.y) + reach + 1)
    left, right = max(0, int(cell.x) - reach), min(size, int(cell.x) + reach + 1)
    if top >= bottom or left >= right:
        return
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(cell.y)
    x = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(cell.x)
    along = (x * np.cos(cell.angle) + y * np.sin(cell.angle)) / (radius * stretch)
    across = (y * np.cos(cell.angle) - x * np.sin(cell.angle)) / (radius / stretch)
    theta = np.arctan2(across, along)
    ruffle = 0.07 * float(np.exp(0.35 * latent["membrane_ruffling"]))
    distance = np.hypot(along, across) / (1 + min(ruffle, 0.35) * np.cos(5 * theta + cell.phase))
    body = _soft(1 - distance, 9.0)
    offset = 0.12
    shift_y, shift_x = offset * radius * np.sin(cell.nucleus_angle), offset * radius * np.cos(cell.nucleus_angle)
    nucleus_radius = NUCLEUS_SHARE * CELL_RADIUS_PX * float(np.exp(0.11 * latent["nucleus_size"]))
    in_nucleus = np.hypot(y - shift_y, (x - shift_x) * 1.12) / nucleus_radius
    nucleus = _soft(1 - in_nucleus, 12.0)
    window = (slice(top, bottom), slice(left, right))
    grain = fine[window]
    mix = 1 / (1 + np.exp(-0.9 * latent["mito_granularity"]))
    mito_texture = mix * grain + (1 - mix) * coarse[window]
    cytoplasm = body * (1 - 0.9 * nucleus)
    rough = min(0.9, 0.25 * float(np.exp(0.35 * latent["nucleus_texture"])))
    image[DNA][window] += 0.75 * nucleus * (1 - rough + 2 * rough * grain)
    image[ER][window] += (
        0.45
        * np.exp(0.22 * latent["er_intensity"])
        * cytoplasm
        * np.exp(-1.1 * distance**2)
        * (0.7 + 0.6 * coarse[window])
    )
    edge = np.exp(-(((distance - 0.93) / 0.09) ** 2))
    image[AGP][window] += 0.16 * body + 0.42 * np.exp(0.25 * latent["actin_edge"]) * edge
    image[RNA][window] += (
        0.20 * cytoplasm + 0.18 * nucleus + _nucleoli(y - shift_y, x - shift_x, nucleus_radius, latent, draw)
    )
    image[MITO][window] += 0.62 * np.exp(0.22 * latent["mito_intensity"]) * cytoplasm * mito_texture**2
    spread = 0.30 * float(np.exp(0.22 * latent["golgi_spread"]))
    blob_y, blob_x = y + 0.45 * radius * np.sin(cell.nucleus_angle), x + 0.45 * radius * np.cos(cell.nucleus_angle)
    blob = np.exp(-(blob_y**2 + blob_x**2) / (2 * (spread * radius) ** 2))
    image[GOLGI][window] += 0.10 * body + 0.55 * (0.3 / spread) * blob * (0.5 + grain)


def _soft(inside: Image, sharpness: float) -> Image:
    """1 inside, 0 outside, with a soft edge."""
    soft: Image = (1 / (1 + np.exp(-np.clip(sharpness * inside, -30, 30)))).astype(np.float32)
    return soft


def _nucleoli(y: Image, x: Image, radius: float, latent: dict[str, float], draw: np.random.Generator) -> Image:
    """A few bright spots inside the nucleus."""
    count = int(np.clip(round(2.5 + 1.1 * latent["nucleolus_number"]), 0, 8))
    spots = np.zeros(np.broadcast_shapes(y.shape, x.shape), np.float32)
    for place in draw.uniform(-0.55, 0.55, (count, 2)) * radius:
        spots += 0.5 * np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / (2 * (0.17 * radius) ** 2)).astype(
            np.float32
        )
    return spots


def _photograph(
    image: Image, spec: SyntheticSpec, effect: PlateEffect, draw: np.random.Generator
) -> NDArray[np.generic]:
    """Light, optics, camera: from arbitrary intensity to grey levels."""
    from scipy.ndimage import gaussian_filter

    axis = np.linspace(-1, 1, spec.field_px, dtype=np.float32)
    seen = np.empty_like(image)
    for channel in range(len(CHANNELS)):
        tilt_y, tilt_x, vignette = effect.light[channel].astype(np.float32)
        light = (
            1 + tilt_y * axis[:, None] + tilt_x * axis[None, :] - vignette * (axis[:, None] ** 2 + axis[None, :] ** 2)
        )
        scene = effect.background[channel] + effect.gain[channel] * 0.62 * image[channel]
        seen[channel] = gaussian_filter((light * scene).astype(np.float32), effect.blur_px)
    noise = draw.standard_normal((2, *image.shape), dtype=np.float32)
    seen += np.sqrt(np.maximum(seen, 0) / PHOTONS) * noise[0] + READ_NOISE * noise[1]
    full = FULL_SCALE[spec.dtype]
    return np.clip(np.rint(seen * full), 0, np.iinfo(spec.dtype).max).astype(spec.dtype)

"""What the synthetic cells know: genes, pathways, chromosome arms, and the phenotype that each perturbation has.

A phenotype is a vector of LATENTS in units of a cell-to-cell standard deviation.  A gene's is the sum of its pathway's
(shared), its own, and its chromosome arm's (the proximity bias of CRISPR screens); an unexpressed gene has only its arm's.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LATENTS = (
    "cell_size",
    "cell_elongation",
    "nucleus_size",
    "nucleus_texture",
    "er_intensity",
    "actin_edge",
    "nucleolus_number",
    "mito_granularity",
    "mito_intensity",
    "golgi_spread",
    "cell_density",
    "membrane_ruffling",
)
CHANNELS = ("DNA", "ER", "AGP", "RNA", "Mito", "Golgi")

# Keys of the generators: (seed, purpose), counter (index, ...).
PHENOTYPES, PLATES, LAYOUT, CELLS, MISSING = 201, 202, 203, 204, 205
_AT_LEAST_ONE = (
    *("experiments", "plates_per_experiment", "plate_rows", "plate_columns", "sites"),
    *("num_genes", "genes_per_pathway"),
)
_NOT_NEGATIVE = (
    *("seed", "num_unexpressed", "cells_per_megapixel"),
    *("pathway_effect", "gene_effect", "arm_effect", "plate_effect", "batch_effect", "camera_effect"),
)
# 22 chromosomes of two arms each.
MAX_ARMS = 44
# How many latents a pathway moves; the more, the less one channel's mean tells.
LATENTS_PER_PATHWAY = 4


@dataclass(frozen=True, kw_only=True)
class SyntheticSpec:
    """A synthetic screen.  Effects in units of the cell-to-cell standard deviation of a latent; the same spec, the same bytes."""

    seed: int = 0
    experiments: int = 2
    plates_per_experiment: int = 1
    plate_rows: int = 8
    plate_columns: int = 12
    sites: int = 1
    field_px: int = 256
    num_genes: int = 24
    genes_per_pathway: int = 4
    num_unexpressed: int = 3
    # None: one chromosome arm per dozen genes.
    num_arms: int | None = None
    control_share: float = 0.15
    pathway_effect: float = 2.0
    gene_effect: float = 0.6
    arm_effect: float = 0.3
    plate_effect: float = 1.0
    batch_effect: float = 1.0
    # Of the camera alone: exposure and offset, drawn for every plate and channel beside the effects above.
    camera_effect: float = 0.0
    missing_plane_share: float = 0.0
    cells_per_megapixel: float = 420.0
    dtype: Literal["uint8", "uint16"] = "uint8"
    image_format: Literal["png", "jp2", "tif"] = "png"

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")
        if self.field_px < 32:
            raise ValueError(f"field_px={self.field_px}: at least 32 pixels are needed for a cell")
        if self.dtype not in ("uint8", "uint16") or self.image_format not in ("png", "jp2", "tif"):
            raise ValueError(
                f"dtype={self.dtype}, image_format={self.image_format}: uint8 or uint16 in png, jp2 or tif are written"
            )
        if not 0 <= self.missing_plane_share < 1 or not 0 <= self.control_share < 1:
            raise ValueError("missing_plane_share and control_share lie in [0, 1)")
        if self.num_unexpressed > self.num_genes:
            raise ValueError(f"num_unexpressed={self.num_unexpressed}: more than num_genes={self.num_genes}")
        if self.num_arms is not None and not 1 <= self.num_arms <= MAX_ARMS:
            raise ValueError(f"num_arms={self.num_arms}: 1 to {MAX_ARMS}")
        if self.num_wells - self.num_controls < 1:
            raise ValueError("no well is left for a gene; make the plate larger or control_share smaller")

    @property
    def num_wells(self) -> int:
        return self.plate_rows * self.plate_columns

    @property
    def num_controls(self) -> int:
        """Control wells of a plate: two at least, since alignment needs a covariance."""
        return max(2, round(self.num_wells * self.control_share))

    @property
    def num_plates(self) -> int:
        return self.experiments * self.plates_per_experiment

    def experiment_name(self, experiment: int) -> str:
        return f"SYN-{experiment + 1:02d}"


def generator(seed: int, purpose: int, *index: int) -> np.random.Generator:
    """A generator keyed by (seed, purpose) at counter (0, index...): independent of what any other has drawn."""
    counter = np.zeros(4, np.uint64)
    counter[1 : 1 + len(index)] = index
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=counter))


@dataclass(frozen=True, kw_only=True)
class Gene:
    """A gene: its pathway (None when not expressed), its arm, and its phenotype f64[len(LATENTS)]."""

    name: str
    pathway: int | None
    chromosome: int
    arm: Literal["p", "q"]
    band: int
    phenotype: NDArray[np.float64]


@functools.lru_cache(maxsize=4)
def genes_of(spec: SyntheticSpec) -> tuple[Gene, ...]:
    """All genes of a screen; computed once per process, since every field asks."""
    expressed = spec.num_genes - spec.num_unexpressed
    num_pathways = max(1, expressed // spec.genes_per_pathway)
    num_arms = spec.num_arms or min(MAX_ARMS, max(2, 2 * round(spec.num_genes / 24)))
    pathways = np.stack([_direction(generator(spec.seed, PHENOTYPES, 1, number)) for number in range(num_pathways)])
    arms = np.stack([_direction(generator(spec.seed, PHENOTYPES, 2, number)) for number in range(num_arms)])
    found = []
    for number in range(spec.num_genes):
        draw = generator(spec.seed, PHENOTYPES, 3, number)
        arm = int(draw.integers(num_arms))
        phenotype = spec.arm_effect * arms[arm]
        pathway = number % num_pathways if number < expressed else None
        if pathway is not None:
            own = draw.standard_normal(len(LATENTS)) / np.sqrt(len(LATENTS))
            phenotype = phenotype + spec.pathway_effect * pathways[pathway] + spec.gene_effect * own
        found.append(
            Gene(
                name=f"SYN{number + 1:04d}",
                pathway=pathway,
                chromosome=arm // 2 + 1,
                arm="p" if arm % 2 == 0 else "q",
                band=int(draw.integers(11, 37)),
                phenotype=phenotype,
            )
        )
    return tuple(found)


def _direction(draw: np.random.Generator) -> NDArray[np.float64]:
    """A few latents moved, up or down; length 1 per moved latent's root mean square."""
    direction = np.zeros(len(LATENTS))
    chosen = draw.permutation(len(LATENTS))[:LATENTS_PER_PATHWAY]
    direction[chosen] = draw.choice([-1.0, 1.0], LATENTS_PER_PATHWAY) * draw.uniform(0.7, 1.3, LATENTS_PER_PATHWAY)
    return direction


@dataclass(frozen=True, kw_only=True)
class PlateEffect:
    """What a plate and its batch add to every well: gain and background per channel, light, focus, a phenotype shift."""

    gain: NDArray[np.float64]
    background: NDArray[np.float64]
    light: NDArray[np.float64]
    blur_px: float
    shift: NDArray[np.float64]


@functools.lru_cache(maxsize=64)
def plate_effect(spec: SyntheticSpec, experiment: int, plate: int) -> PlateEffect:
    """The effect of one plate, its batch's included.  light: (channel, 3) tilt and vignetting of the illumination."""
    batch = generator(spec.seed, PLATES, 1, experiment)
    own = generator(spec.seed, PLATES, 2, experiment * spec.plates_per_experiment + plate)
    gain = np.exp(
        0.18 * spec.batch_effect * batch.standard_normal(6) + 0.10 * spec.plate_effect * own.standard_normal(6)
    )
    background = 0.05 + 0.02 * np.abs(
        spec.batch_effect * batch.standard_normal(6) + spec.plate_effect * own.standard_normal(6)
    )
    camera = generator(spec.seed, PLATES, 3, experiment * spec.plates_per_experiment + plate)
    gain *= np.exp(-0.5 * spec.camera_effect * camera.random(6))
    background += 0.25 * spec.camera_effect * camera.random(6)
    light = np.stack(
        [0.06 * own.standard_normal(6), 0.06 * own.standard_normal(6), 0.10 + 0.08 * own.random(6)], axis=1
    )
    shift = 0.35 * spec.batch_effect * batch.standard_normal(12) + 0.2 * spec.plate_effect * own.standard_normal(12)
    blur = 0.8 + 0.25 * spec.plate_effect * float(own.random())
    return PlateEffect(gain=gain, background=background, light=light, blur_px=blur, shift=shift)


@functools.lru_cache(maxsize=64)
def wells_of(spec: SyntheticSpec, plate: int) -> tuple[int, ...]:
    """What stands in each well of a plate, row by row: a gene's number, or -1 for a control.

    Genes are dealt round robin in an order of the plate's own, so that replicates meet other neighbours on every plate.
    """
    draw = generator(spec.seed, LAYOUT, plate)
    num_treated = spec.num_wells - spec.num_controls
    order = draw.permutation(spec.num_genes)
    start = plate * num_treated
    content = [int(order[(start + number) % spec.num_genes]) for number in range(num_treated)] + [
        -1
    ] * spec.num_controls
    return tuple(content[position] for position in draw.permutation(spec.num_wells))

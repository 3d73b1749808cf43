"""Writing a synthetic screen: RxRx layout, RxRx3's metadata columns, and what is known beside it.

ROOT/SYN-01/Plate1/A01_s1_w1.png ...      metadata.csv
ROOT/annotations/PATHWAYS.txt  gene_chromosome_map.tsv  unexpressed.txt
"""

from __future__ import annotations

import csv
import io
import itertools
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phenomhpc.plates.metadata import CONTROL_TREATMENT
from phenomhpc.plates.synthetic.biology import (
    CHANNELS,
    LATENTS,
    MISSING,
    Gene,
    SyntheticSpec,
    generator,
    genes_of,
    plate_effect,
    wells_of,
)
from phenomhpc.plates.synthetic.painting import paint_field
from phenomhpc.plates.types import Well
from phenomhpc.progress import Progress

METADATA_COLUMNS = (
    "well_id",
    "experiment_name",
    "plate",
    "address",
    "gene",
    "treatment",
    "SMILES",
    "concentration",
    "perturbation_type",
    "cell_type",
)
# Below this many fields, starting worker processes costs more than it saves.
FEW_FIELDS = 40


@dataclass(frozen=True, kw_only=True)
class _FieldToPaint:
    spec: SyntheticSpec
    root: str
    experiment: int
    plate: int
    well: int
    site: int
    number: int


def write_plates(root: Path, spec: SyntheticSpec, progress: Progress, *, workers: int | None = None) -> None:
    """Write the screen of `spec` below `root`; any number of worker processes (default: one per core) writes the same bytes.

    Killed half-way, it leaves a part; a second call writes the whole again, the same files with the same bytes.
    Advances the stage "paint" by fields.  Raises OSError when a file cannot be written.
    """
    genes = genes_of(spec)
    fields = list(_fields(spec, root))
    for experiment, plate in itertools.product(range(spec.experiments), range(spec.plates_per_experiment)):
        _plate_folder(root, spec, experiment, plate).mkdir(parents=True, exist_ok=True)
    _write_annotations(root / "annotations", genes)
    (root / "metadata.csv").write_text(_metadata(spec, genes), newline="")
    workers = (len(os.sched_getaffinity(0)) if len(fields) > FEW_FIELDS else 1) if workers is None else workers
    with progress.stage("paint", len(fields), "fields") as stage:
        if workers == 1:
            for field in fields:
                _write_field(field)
                stage.advance()
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, context) as pool:
                for _ in pool.map(_write_field, fields, chunksize=4):
                    stage.advance()


def _plate_folder(root: Path, spec: SyntheticSpec, experiment: int, plate: int) -> Path:
    return root / spec.experiment_name(experiment) / f"Plate{plate + 1}"


def _fields(spec: SyntheticSpec, root: Path) -> Iterator[_FieldToPaint]:
    places = itertools.product(
        range(spec.experiments), range(spec.plates_per_experiment), range(spec.num_wells), range(spec.sites)
    )
    for number, (experiment, plate, well, site) in enumerate(places):
        yield _FieldToPaint(
            spec=spec, root=str(root), experiment=experiment, plate=plate, well=well, site=site, number=number
        )


def _well(spec: SyntheticSpec, position: int) -> Well:
    row, column = divmod(position, spec.plate_columns)
    return Well(row=row + 1, column=column + 1)


def _write_field(field: _FieldToPaint) -> None:
    spec = field.spec
    plate_number = field.experiment * spec.plates_per_experiment + field.plate
    content = wells_of(spec, plate_number)[field.well]
    phenotype = np.zeros(len(LATENTS)) if content < 0 else genes_of(spec)[content].phenotype
    pixels = paint_field(spec, phenotype, plate_effect(spec, field.experiment, field.plate), field.number)
    missing = generator(spec.seed, MISSING, field.number).random(len(CHANNELS)) < spec.missing_plane_share
    folder = _plate_folder(Path(field.root), spec, field.experiment, field.plate)
    for channel, plane in enumerate(pixels):
        if not missing[channel]:
            path = folder / image_name(_well(spec, field.well), field.site + 1, channel + 1, spec.image_format)
            path.write_bytes(encode(plane, spec.image_format))


def image_name(well: Well, site: int, channel: int, image_format: str) -> str:
    """RxRx1's names, and RxRx3's (without the w) for JPEG 2000."""
    return f"{well.name}_s{site}_{'' if image_format == 'jp2' else 'w'}{channel}.{image_format}"


def encode(plane: NDArray[np.generic], image_format: str) -> bytes:
    """A plane (H, W), uint8 or uint16, losslessly as PNG, JPEG 2000 or LZW TIFF."""
    import imagecodecs

    if image_format == "png":
        return bytes(imagecodecs.png_encode(plane, level=1))
    if image_format == "jp2":
        return bytes(imagecodecs.jpeg2k_encode(plane, level=0, reversible=True, codecformat="jp2"))
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, plane, compression="lzw", metadata=None)
    return buffer.getvalue()


def _metadata(spec: SyntheticSpec, genes: Sequence[Gene]) -> str:
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(METADATA_COLUMNS)
    for experiment, plate in itertools.product(range(spec.experiments), range(spec.plates_per_experiment)):
        name = spec.experiment_name(experiment)
        for position, content in enumerate(wells_of(spec, experiment * spec.plates_per_experiment + plate)):
            well = _well(spec, position).name
            gene = "" if content < 0 else genes[content].name
            treatment = CONTROL_TREATMENT if content < 0 else f"{gene}_guide_1"
            kind = "CRISPR" if gene else "control"
            rows.writerow(
                [f"{name}_{plate + 1}_{well}", name, plate + 1, well, gene, treatment, "", "", kind, "SYNTHETIC"]
            )
    return text.getvalue()


def _write_annotations(folder: Path, genes: Sequence[Gene]) -> None:
    """Known relationships (both ends of a pathway), arms and unexpressed genes."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [
        f"{one.name},{other.name}\n"
        for one, other in itertools.combinations(genes, 2)
        if one.pathway is not None and one.pathway == other.pathway
    ]
    (folder / "PATHWAYS.txt").write_text("entity1,entity2\n" + "".join(pairs))
    places = [f"{gene.name}\t{gene.chromosome}{gene.arm}{gene.band}\t{gene.chromosome}\n" for gene in genes]
    (folder / "gene_chromosome_map.tsv").write_text("Approved_symbol\tLocus\tChromosome\n" + "".join(places))
    (folder / "unexpressed.txt").write_text("".join(f"{gene.name}\n" for gene in genes if gene.pathway is None))

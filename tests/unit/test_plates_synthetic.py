"""Synthetic screens: the same bytes always, and a ground truth that pictures hold."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from phenomhpc.plates import decode_plane, find_plates, plane_bytes, read_plane, read_plate
from phenomhpc.plates.synthetic import CHANNELS, LATENTS, SyntheticSpec, genes_of, write_plates
from phenomhpc.plates.synthetic.biology import plate_effect, wells_of
from phenomhpc.plates.synthetic.painting import paint_field
from phenomhpc.progress import silent
from tests.unit.raw_plates import SMALL


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "raw"
    write_plates(folder, SMALL, silent(), workers=1)
    return folder


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(raw: Path, tmp_path: Path) -> None:
    write_plates(tmp_path / "again", SMALL, silent(), workers=2)
    files = sorted(path.relative_to(raw) for path in raw.rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()
    )
    for file in files:
        assert (raw / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_relationships_arms_and_unexpressed_genes_are_written_beside(raw: Path) -> None:
    genes = genes_of(SMALL)
    lines = (raw / "annotations" / "PATHWAYS.txt").read_text().splitlines()
    together = {tuple(line.split(",")) for line in lines[1:]}
    by_name = {gene.name: gene for gene in genes}
    assert lines[0] == "entity1,entity2" and together
    assert all(by_name[one].pathway == by_name[other].pathway is not None for one, other in together)
    unexpressed = (raw / "annotations" / "unexpressed.txt").read_text().split()
    assert unexpressed == [gene.name for gene in genes if gene.pathway is None]
    arms = (raw / "annotations" / "gene_chromosome_map.tsv").read_text().splitlines()
    assert arms[0] == "Approved_symbol\tLocus\tChromosome" and len(arms) == 1 + len(genes)


def test_missing_planes_are_missing_files(tmp_path: Path) -> None:
    spec = SyntheticSpec(
        experiments=1, plate_rows=2, plate_columns=6, field_px=64, num_genes=4, missing_plane_share=0.3
    )
    write_plates(tmp_path, spec, silent(), workers=1)
    count = len(list(tmp_path.rglob("*.png")))
    assert 0.5 * 72 < count < 0.9 * 72


def test_perturbed_wells_differ_from_controls_and_pathways_look_alike(tmp_path: Path) -> None:
    """Without plate effects, the mean absolute difference of simple statistics is smaller within a pathway."""
    spec = SyntheticSpec(
        experiments=1, plate_rows=6, plate_columns=8, field_px=160, num_genes=8, genes_per_pathway=2, num_unexpressed=0,
        plate_effect=0.0, batch_effect=0.0, gene_effect=0.2, arm_effect=0.0, pathway_effect=3.0,
    )  # fmt: skip
    write_plates(tmp_path, spec, silent(), workers=1)
    plate = read_plate(find_plates([str(tmp_path)])[0])
    by_gene: dict[str, list[np.ndarray]] = {}
    for field in plate.fields:
        planes = [read_plane(plane.path.read_bytes(), "x").astype(float) for (plane,) in field.planes if plane]
        grain = [np.abs(np.diff(plane, axis=0)).mean() for plane in planes]
        by_gene.setdefault(plate.metadata[field.well.name].get("gene", "control"), []).append(
            np.log([*(plane.mean() for plane in planes), *(plane.std() for plane in planes), *grain])
        )
    means = {
        gene: np.mean(rows, axis=0) - np.mean(by_gene["control"], axis=0)
        for gene, rows in by_gene.items()
        if gene != "control"
    }
    pathway = {gene.name: gene.pathway for gene in genes_of(spec)}
    unit = {gene: mean / np.linalg.norm(mean) for gene, mean in means.items()}
    pairs = [(one, other) for one in unit for other in unit if one < other]
    within = [float(unit[one] @ unit[other]) for one, other in pairs if pathway[one] == pathway[other]]
    between = [float(unit[one] @ unit[other]) for one, other in pairs if pathway[one] != pathway[other]]
    assert np.mean(within) > np.mean(between) + 0.3


def test_another_seed_gives_other_pixels_and_other_phenotypes() -> None:
    one, other = SyntheticSpec(field_px=64), SyntheticSpec(field_px=64, seed=1)
    none = np.zeros(len(LATENTS))
    assert not np.array_equal(
        paint_field(one, none, plate_effect(one, 0, 0), 0), paint_field(other, none, plate_effect(other, 0, 0), 0)
    )
    assert not np.array_equal(genes_of(one)[0].phenotype, genes_of(other)[0].phenotype)


def test_the_metadata_have_the_columns_of_rxrx3_and_a_row_for_every_well(raw: Path) -> None:
    with (raw / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = "well_id experiment_name plate address gene treatment SMILES concentration perturbation_type cell_type"
    assert list(rows[0]) == expected.split()
    assert len(rows) == SMALL.num_plates * SMALL.num_wells == len({row["well_id"] for row in rows})
    assert sum(row["treatment"] == "EMPTY_control" for row in rows) == SMALL.num_plates * SMALL.num_controls


def test_planes_have_the_size_dtype_and_channels_asked_for(tmp_path: Path) -> None:
    for dtype, image_format in (("uint16", "png"), ("uint8", "jp2")):
        spec = SyntheticSpec(
            experiments=1, plate_rows=1, plate_columns=3, field_px=80, sites=2, dtype=dtype, image_format=image_format,  # type: ignore[arg-type]
        )  # fmt: skip
        write_plates(tmp_path / dtype, spec, silent(), workers=1)
        plate = read_plate(find_plates([str(tmp_path / dtype)])[0])
        assert tuple(channel.name for channel in plate.channels) == CHANNELS
        assert [(field.well.name, field.site) for field in plate.fields] == [
            (well, site) for well in ("A01", "A02", "A03") for site in (1, 2)
        ]
        for (plane,) in plate.fields[0].planes:
            assert plane is not None
            read = decode_plane(plane, plane_bytes(plane))
            assert read.shape == (80, 80) and read.dtype == dtype


def test_genes_of_a_pathway_share_a_phenotype_and_genes_of_an_arm_a_bias() -> None:
    spec = SyntheticSpec(num_genes=120, num_unexpressed=60, num_arms=2, arm_effect=1.0, gene_effect=0.0)
    genes = genes_of(spec)
    by_arm: dict[str, list[np.ndarray]] = {}
    for gene in genes:
        if gene.pathway is None:
            by_arm.setdefault(gene.arm, []).append(gene.phenotype)
    assert set(by_arm) == {"p", "q"} and min(map(len, by_arm.values())) > 20
    assert all(np.array_equal(one, group[0]) for group in by_arm.values() for one in group)
    bias = {arm: group[0] for arm, group in by_arm.items()}
    for one, other in itertools.pairwise(
        sorted((g for g in genes if g.pathway is not None), key=lambda g: g.pathway or 0)
    ):
        if one.pathway == other.pathway:
            assert np.allclose(one.phenotype - bias[one.arm], other.phenotype - bias[other.arm])


def test_replicates_of_a_gene_stand_in_other_wells_on_every_plate() -> None:
    spec = SyntheticSpec(experiments=2, num_genes=20)
    first, second = wells_of(spec, 0), wells_of(spec, 1)
    assert first != second
    for content in (first, second):
        assert content.count(-1) == spec.num_controls
        counts = [content.count(gene) for gene in range(20)]
        assert max(counts) - min(counts) <= 1


def test_plate_effects_are_there_and_can_be_turned_off() -> None:
    none = np.zeros(len(LATENTS))
    strong, off = SyntheticSpec(plate_effect=3.0, batch_effect=3.0), SyntheticSpec(plate_effect=0.0, batch_effect=0.0)

    def levels(spec: SyntheticSpec, experiment: int) -> NDArray[np.float64]:
        effect = plate_effect(spec, experiment, 0)
        fields = np.stack([paint_field(spec, none, effect, number) for number in range(3)]).astype(np.float64)
        return np.asarray(fields.mean(axis=(0, 2, 3)))

    apart = np.abs(np.log(levels(strong, 0) / levels(strong, 1))).max()
    assert apart > 0.5 > 0.1 > np.abs(np.log(levels(off, 0) / levels(off, 1))).max()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_genes": 0}, "num_genes=0: at least 1"),
        ({"genes_per_pathway": 0}, "genes_per_pathway=0"),
        ({"seed": -1}, "seed=-1: must not be negative"),
        ({"batch_effect": float("nan")}, "batch_effect=nan"),
        ({"field_px": 16}, "at least 32 pixels"),
        ({"dtype": "float32"}, "dtype=float32"),
        ({"missing_plane_share": 1.0}, "lie in"),
        ({"num_unexpressed": 25}, "more than num_genes"),
        ({"num_arms": 45}, "num_arms=45: 1 to 44"),
        ({"plate_rows": 1, "plate_columns": 2}, "no well is left"),
    ],
)
def test_a_senseless_screen_is_refused_by_setting(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SyntheticSpec(**wrong)  # type: ignore[arg-type]

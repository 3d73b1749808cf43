"""Tables of arms, of positions and of complexes through evaluate: the bias of arms that only coordinates tell of goes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from phenomhpc.config import resolve
from phenomhpc.errors import UsageError
from phenomhpc.jobs.evaluation.arms import read_arms
from phenomhpc.jobs.evaluation.scores import ALIGNED, CORRECTED, RAW
from phenomhpc.jobs.here import run_here
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths
from tests.unit.evaluation_data import write_planted
from tests.unit.planted_maps import planted_wells

CHANCE = 0.1  # of a recall at (0.05, 0.95)
PLANTED = planted_wells(batch_effect=6.0, arm_bias=0.6, num_pathways=30, genes_per_pathway=10, num_arms=6)
CENTROMERES = "chromosome\tstart\tend\n" + "".join(f"chr{n}\t{40 + n}000000\t{50 + n}000000\n" for n in range(1, 4))


def table(columns: str, rows: list[tuple[object, ...]], delimiter: str = "\t") -> str:
    return "".join(delimiter.join(map(str, row)) + "\n" for row in [columns.split(), *rows])


def positions(arms: dict[str, str]) -> str:
    """A gene on p ends a megabase before the middle of its centromere, one on q a megabase behind it."""
    rows = [
        (gene, arm[0], (45 + int(arm[0])) * 10**6 + (10**6 if arm[1] == "q" else -(10**6)))
        for gene, arm in arms.items()
    ]
    return table("gene chromosome end", rows)


def written(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """By CORAL; the folder of annotations knows no arms."""
    folder = tmp_path_factory.mktemp("arms")
    source, annotations = write_planted(folder / "in", PLANTED)
    (annotations / "gene_chromosome_map.tsv").unlink()
    pathways = [PLANTED.genes[start : start + 10] for start in range(0, 300, 10)]
    members = [(f"complex {number}", gene) for number, genes in enumerate(pathways) for gene in genes]
    written(annotations, "complexes.tsv", table("complex gene", [*members, ("too small", "GENE0000")]))
    flags = {
        "embeddings": str(source), "annotations": str(annotations), "runs": str(folder / "runs"), "align": "coral",
        "arms": str(written(folder, "positions.tsv", positions(PLANTED.arms))), "arm_correction": True, "bootstrap": 200,
        "centromeres": str(written(folder, "hg99.tsv", CENTROMERES)),
    }  # fmt: skip
    config = resolve("evaluate", flags, [], layers=()).config
    return run_here(config, command=["test"], progress=silent())[0]


def score(paths: RunPaths, benchmark: str, stage: str = "map") -> dict[str, Any]:
    """The one row of the encoder's scores (of the first thresholds)."""
    wanted = {"source": "encoder", "benchmark": benchmark, "stage": stage}
    return (
        pl.read_parquet(paths.scores)
        .filter(*(pl.col(key) == value for key, value in wanted.items()))
        .row(0, named=True)
    )


def test_arms_by_position_are_corrected_after_coral(scored: RunPaths) -> None:
    recall = [score(scored, "relationship recall", stage)["value"] for stage in (RAW, ALIGNED, CORRECTED)]
    bias = [score(scored, "proximity bias", stage)["value"] for stage in (RAW, ALIGNED, CORRECTED)]
    planted = PLANTED.planted_recall(CHANCE)
    assert abs(recall[0] - CHANCE) < 0.06 and abs(recall[1] - planted) < 0.06
    assert bias[1] > 0.8 and abs(bias[2] - 0.5) < 0.06 and abs(recall[2] - planted) < 0.04
    words = " ".join(re.sub(r"<[^>]*>", " ", re.sub(r"base64,[^\"]*", "", scored.report.read_text())).split())
    assert "CORAL" in words and "possible on 6 of 6 arms" in words


def test_complexes_of_a_table_are_tested_for_coherence(scored: RunPaths) -> None:
    found = score(scored, "complex coherence")
    real = round(0.6 * 30) / 30
    assert found["num"] == 30 and real <= found["value"] < real + 0.12
    assert found["ci_low"] <= found["value"] <= found["ci_high"]


def test_a_table_tells_arms_by_locus_by_arm_or_by_position(tmp_path: Path) -> None:
    arms = {"A": "1p", "B": "3q", "C": "2p"}
    loci = [(gene, f"{arm}11.2") for gene, arm in arms.items()]
    for name, text in (
        ("loci.tsv", table("Approved_symbol Locus", [*loci, ("D", "reserved"), ("E", "")])),
        ("arms.csv", table("gene arm", [*arms.items(), ("D", "20"), ("E", "1p"), ("E", "1q")], ",")),
        ("positions.tsv", positions(arms) + "M\tMT\t577\n"),
    ):
        path = written(tmp_path, name, text)
        centromeres = written(tmp_path, "centromeres.tsv", CENTROMERES)
        found, files = read_arms(path)
        assert found == arms
        assert files == ((path, centromeres) if name == "positions.tsv" else (path,))
    bands = written(tmp_path, "bands.csv", "chromosome,start,end,name\n1,5,7,p11\n1,7,9,q11\n2,0,2,\n3,0,2,\n")
    found, _ = read_arms(written(tmp_path, "ends.csv", "gene,chromosome,end\nA,chr1,6\nB,1,7\nC,chr1,8\n"), bands)
    assert found == {"A": "1p", "B": "1q", "C": "1q"}


@pytest.mark.parametrize(
    ("arms", "centromeres", "message"),
    [
        (
            None,
            None,
            r"none.tsv: not readable as text \(.*give a table with Approved_symbol and Locus, or gene and arm, or gene",
        ),
        (
            "symbol\tchromosome\nA\t1\n",
            None,
            r"has the columns symbol, chromosome; it needs Approved_symbol and Locus, or",
        ),
        ("gene,arm\nA,1\nB,centre\n", None, r"none of its genes is on an arm such as 19q; look at its column arm"),
        ("gene,arm\nA,1p\n", CENTROMERES, r"centromeres=.*has no use, since .* has no positions"),
        (
            "gene,chromosome,end\nA,1,1.5e6\n",
            CENTROMERES,
            r"'1.5e6' is no position in base pairs; mend or remove its row",
        ),
        (
            "gene,chromosome,end\nA,1,15\n",
            None,
            r"centromeres.tsv: not readable .*give a table with chromosome and start and end",
        ),
        ("gene,chromosome,end\nA,9,15\n", CENTROMERES, r"arms: no gene is on a chromosome with a centromere"),
        ("gene,chromosome,end\nA,U_1,15\n", "chromosome,start,end\nU_1,1,2\n", r"none of its genes is on an arm"),
    ],
)
def test_a_table_that_tells_no_arms_is_named(
    tmp_path: Path, arms: str | None, centromeres: str | None, message: str
) -> None:
    path = tmp_path / "none.tsv" if arms is None else written(tmp_path, "arms.tsv", arms)
    beside = None if centromeres is None else written(tmp_path, "own.tsv", centromeres)
    with pytest.raises(UsageError, match=message) as error:
        read_arms(path, beside)
    assert "\n" not in str(error.value)

"""Metadata: mapped columns, what did not match both ways, and tables that come after the pixels."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from phenomhpc.errors import UsageError
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.store import Snapshot, open_store
from phenomhpc.store.annotate import Annotated, annotate
from phenomhpc.store.verify import verify
from tests.unit.test_cli import phenomhpc
from tests.unit.test_convert_job import arrays
from tests.unit.test_plates_layouts import convert

SPEC = SyntheticSpec(
    experiments=1, plates_per_experiment=2, plate_rows=1, plate_columns=4, field_px=32, num_genes=1, num_unexpressed=0
)  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "raw"
    write_plates(folder, SPEC, silent(), workers=1)
    (folder / "metadata.csv").unlink()  # nobody has said yet what was done
    return folder


def table(path: Path, *rows: str, header: str = "Experiment,Plate,Well,Symbol,dose") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


MAPPED = {"gene": "Symbol", "concentration_um": "dose"}


def genes(store: Path) -> dict[tuple[str, str], str | None]:
    fields = Snapshot.open(open_store(store)).fields()
    return {(row["plate"][-1], row["well"]): row["gene"] for row in fields.select("plate", "well", "gene").to_dicts()}


def test_columns_are_mapped_and_what_does_not_match_is_listed_both_ways(raw: Path, tmp_path: Path) -> None:
    rows = [
        "SYN-01,1,A01,TP53,0.5",
        "SYN-01,1,A02,MYC,1",
        "SYN-03,1,A01,KRAS,1",
        "SYN-02,1,A01,KRAS,1",
        "SYN-01,7,A01,KRAS,1",
    ]
    csv = table(tmp_path / "layout.csv", *rows)
    summary = convert(tmp_path, raw, metadata=str(csv), metadata_columns=MAPPED)
    assert f"6 well(s) have no row in {csv} (first: SYN-01__Plate1 A03)" in summary.text
    assert "3 row(s) of it have no images (first: SYN-03 1 A01)" in summary.text
    lines = (tmp_path / "store" / "unmatched.csv").read_text().splitlines()
    assert lines[0] == "what,plate,well" and lines[1] == "images without a row,SYN-01__Plate1,A03" and len(lines) == 10
    assert lines[-2:] == ["row without images,SYN-02 1,A01", "row without images,SYN-01 7,A01"]
    fields = Snapshot.open(open_store(tmp_path / "store")).fields().filter(pl.col("gene") == "TP53")
    assert fields.select("well", "perturbation", "concentration_um").rows() == [("A01", "TP53", 0.5)]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"genes": "Symbol"}, "metadata_columns.genes: the store has no such column; there are gene"),
        ({"gene": "Symbols"}, "metadata_columns.gene=Symbols: .*layout.csv has no such column; it has Symbol"),
        ({"plate": "dose", **MAPPED}, "says nothing of any of these plates"),
    ],
)
def test_a_wrong_mapping_is_refused_by_name(columns: dict[str, str], said: str, raw: Path, tmp_path: Path) -> None:
    csv = table(tmp_path / "layout.csv", "SYN-01,1,A01,TP53,0.5")
    with pytest.raises(UsageError, match=said):
        convert(tmp_path, raw, metadata=str(csv), metadata_columns=columns)
    assert not (tmp_path / "store").exists()


def run(folder: Path, csv: Path, **more: bool) -> Annotated:
    return annotate(open_store(folder / "store"), csv, silent(), columns=MAPPED, **more)


def test_a_table_that_comes_later_makes_a_new_snapshot_and_touches_no_pixel(raw: Path, tmp_path: Path) -> None:
    convert(tmp_path, raw)
    store = open_store(tmp_path / "store")
    first, pixels = Snapshot.open(store), arrays(tmp_path / "store")
    csv = table(tmp_path / "later.csv", "SYN-01,1,A01,TP53,0.5", "SYN-01,2,A02,MYC,1", "SYN-01,9,A02,MYC,1")
    tried = run(tmp_path, csv, dry_run=True)
    assert tried.snapshot is None and Snapshot.open(store).digest == first.digest
    done = run(tmp_path, csv)
    assert done.gained == tried.gained == (("SYN-01__Plate1", "A01"), ("SYN-01__Plate2", "A02")) and not done.changed
    assert done.left.without_images == (("SYN-01 9", "A02"),) and len(done.left.without_row) == 6
    second = Snapshot.open(store)
    assert second.digest == done.snapshot != first.digest and arrays(tmp_path / "store") == pixels
    assert first.fields()["gene"].null_count() == 8  # the old one stays what it was
    corrected = run(tmp_path, table(tmp_path / "corrected.csv", "SYN-01,1,A01,BRCA1,0.5", "SYN-01,2,A02,MYC,1"))
    assert corrected.changed == (("SYN-01__Plate1", "A01"),) and corrected.same == 1
    assert genes(tmp_path / "store")["1", "A01"] == "BRCA1" and genes(tmp_path / "store")["2", "A02"] == "MYC"
    convert(tmp_path, raw)  # a later conversion does not take it back
    assert genes(tmp_path / "store")["1", "A01"] == "BRCA1" and not verify(store, silent()).damage


def test_a_finished_copy_can_be_annotated_too(raw: Path, tmp_path: Path) -> None:
    convert(tmp_path / "whole", raw)
    shutil.copytree(tmp_path / "whole" / "store", tmp_path / "store", ignore=shutil.ignore_patterns(".progress"))
    done = run(tmp_path, table(tmp_path / "later.csv", "SYN-01,1,A01,TP53,0.5"))
    assert done.gained == (("SYN-01__Plate1", "A01"),)
    assert (
        genes(tmp_path / "store")["1", "A01"] == "TP53" and not verify(open_store(tmp_path / "store"), silent()).damage
    )


def test_the_command_says_what_it_did_and_refuses_in_one_line(raw: Path, tmp_path: Path) -> None:
    convert(tmp_path, raw)
    csv = table(tmp_path / "later.csv", "SYN-01,1,A01,TP53,0.5")
    words = ["store", "annotate", str(tmp_path / "store"), "--metadata", str(csv), "--column", "gene=Symbol"]
    said = phenomhpc(*words, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "1 well(s) gained metadata, 0 changed" in said.stdout and "7 well(s) have no row" in said.stdout
    again = phenomhpc(*words, "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["same"] == 1
    with pytest.raises(UsageError, match="says nothing of any plate"):
        run(tmp_path, table(tmp_path / "other.csv", "SYN-09,1,A01,TP53,0.5"))


def test_a_kill_leaves_the_snapshot_before_or_the_new_one(raw: Path, tmp_path: Path) -> None:
    convert(tmp_path, raw)
    before = Snapshot.open(open_store(tmp_path / "store")).digest
    shutil.copytree(tmp_path / "store", tmp_path / "calm" / "store")
    rows = [f"SYN-01,{plate},A0{well},G{plate}{well},1" for plate in (1, 2) for well in (1, 2, 3, 4)]
    csv = table(tmp_path / "later.csv", *rows)
    after = run(tmp_path / "calm", csv).snapshot
    program = (
        "import sys; from pathlib import Path; from tests.unit.test_store_annotate import run; print('go', flush=True);"
        "run(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    seen = set()
    for pause in (0.0, 0.01, 0.02, 0.04, 0.08):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), str(csv)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stdout.readline()
            time.sleep(pause)
            os.kill(process.pid, signal.SIGKILL)
        seen.add(Snapshot.open(open_store(tmp_path / "store")).digest)
    assert seen <= {before, after}
    assert run(tmp_path, csv).snapshot == after and not verify(open_store(tmp_path / "store"), silent()).damage

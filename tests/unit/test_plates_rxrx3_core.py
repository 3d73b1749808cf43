"""RxRx3-core: the unpacking that the how-to page shows, run as it stands there, then found, read and converted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phenomhpc.plates import Plate, find_plates, read_plate
from phenomhpc.plates.synthetic.writing import encode
from tests.unit.test_plates_layouts import convert, pixels, plate, stored

__all__ = ["plate"]
PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "how-to" / "raw-plates.md"


def unpack(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    command = [sys.executable, "-c", code, str(source), str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write_table(path: Path, images: list[tuple[str, bytes]]) -> None:
    """As the datasets library writes an image column."""
    column = pa.array(
        [{"bytes": data, "path": None} for _, data in images],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    pq.write_table(pa.table({"__key__": [key for key, _ in images], "jp2": column}), path, row_group_size=5)


def test_the_public_files_are_unpacked_and_converted_to_their_pixels(plate: Plate, tmp_path: Path) -> None:
    expected = pixels(plate)
    images = [
        (f"gene-001/Plate7/{field.well.name}_s{field.site}_{channel + 1}", encode(expected[at, channel], "jp2"))
        for at, field in enumerate(plate.fields)
        for channel in range(6)
    ]
    data = tmp_path / "data"
    data.mkdir()
    half = len(images) // 2 + 1  # one field lies in both files
    write_table(data / "train-00000-of-00002.parquet", images[:half])
    write_table(data / "train-00001-of-00002.parquet", images[half:])
    raw = tmp_path / "rxrx3-core"
    assert unpack(data, raw).returncode == 0
    well = plate.fields[0].well.name
    (raw / "metadata_rxrx3_core.csv").write_text(
        "well_id,experiment_name,plate,address,gene,treatment,SMILES,concentration,perturbation_type,cell_type,well_type_label\n"
        f"gene-001_7_{well},gene-001,7,{well},TP53,TP53_guide_1,,,CRISPR,HUVEC,query_guides\n"
    )
    (found,) = find_plates([str(raw)])
    assert (found.key, found.layout, found.plate) == ("gene-001__Plate7", "rxrx", "7")
    read = read_plate(found)
    assert read.metadata[well]["gene"] == "TP53"
    assert convert(tmp_path, raw).exit_code == 0
    assert np.array_equal(stored(tmp_path), expected)


@pytest.mark.parametrize("key", ["../x/Plate1/A01_s1_1", "/etc/Plate1/A01_s1_1", "gene-001/Plate1/A01_s1_1/.."])
def test_a_key_that_leads_elsewhere_is_not_written(key: str, tmp_path: Path) -> None:
    write_table(tmp_path / "train-0.parquet", [(key, b"x")])
    done = unpack(tmp_path, tmp_path / "out")
    assert done.returncode == 1 and "is no EXPERIMENT/PlateN" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix == ".jp2"]

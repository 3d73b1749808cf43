"""uint8 stores of 16-bit plates, and the codecs as recipes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from phenomhpc.config import ConvertConfig, resolve
from phenomhpc.errors import UsageError
from phenomhpc.plates import find_plates, read_plate
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.store import Snapshot, open_store
from phenomhpc.store.lookup import Lookup, find_lookup, read_lookup
from phenomhpc.store.verify import verify
from tests.unit.test_convert_job import arrays
from tests.unit.test_plates_layouts import convert

SPEC = SyntheticSpec(
    experiments=1, plates_per_experiment=2, plate_rows=1, plate_columns=4, field_px=64, num_genes=1, num_unexpressed=0,
    dtype="uint16", image_format="tif",
)  # fmt: skip
PLATE = "SYN-01__Plate1"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_plates(tmp_path / "raw", SPEC, silent(), workers=1)
    return tmp_path / "raw"


def test_the_table_is_linear_rounds_half_up_and_ends_where_it_says() -> None:
    table = Lookup(low=(100, 0), high=(610, 65535), percentiles=(0.1, 99.9)).tables()
    assert table[0, [0, 100, 101, 102, 610, 611, 65535]].tolist() == [0, 0, 1, 1, 255, 255, 255]
    assert table[1, [0, 65535]].tolist() == [0, 255] and (np.diff(table.astype(int), axis=1) >= 0).all()


def test_the_levels_are_percentiles_of_the_plate(raw: Path) -> None:
    plate = read_plate(find_plates([str(raw / "SYN-01" / "Plate1")])[0])
    found = find_lookup(plate, (5, 99))
    for channel in range(6):
        sample = np.stack(
            [tifffile.imread(path)[::4, ::4] for path in sorted(plate.root.glob(f"*_w{channel + 1}.tif"))]
        )
        assert found.low[channel] == np.percentile(sample, 5, method="inverted_cdf")
        assert found.high[channel] == np.percentile(sample, 99, method="inverted_cdf")
    assert find_lookup(plate, (5, 99)) == found


def test_a_uint8_store_holds_what_the_stored_table_makes_of_the_source(raw: Path, tmp_path: Path) -> None:
    broken = raw / "SYN-01" / "Plate1" / "A02_s1_w1.tif"
    broken.write_bytes(b"")
    convert(tmp_path, raw, dtype="uint8", max_set_aside=0.5)
    store = open_store(tmp_path / "store")
    lookup = read_lookup(store.paths, PLATE)
    assert lookup is not None and store.spec.dtype == "uint8" and store.spec.codec == ("lz4", 5, "bitshuffle")
    array = zarr.open_array(store.paths.images(PLATE), mode="r")
    assert array.dtype == np.uint8 and array.attrs["lookup"] == lookup.attribute()
    tables = lookup.tables()
    for field, well in ((0, "A01"), (3, "A04")):
        for channel in range(6):
            source = tifffile.imread(raw / "SYN-01" / "Plate1" / f"{well}_s1_w{channel + 1}.tif")
            assert np.array_equal(array[field, channel], tables[channel][source])
    assert not np.asarray(array[1]).any() and not verify(store, silent()).damage
    snapshot = Snapshot.open(store)
    assert snapshot.scale.tolist() == [255] * 6
    background = snapshot.fields().filter(snapshot.fields()["well"] == "A01")["qc_background"].list.max().max()
    assert background is not None and float(background) > 255  # type: ignore[arg-type]  # quality is that of the source


def test_a_changed_image_redoes_its_shard_and_other_percentiles_all(raw: Path, tmp_path: Path) -> None:
    convert(tmp_path, raw, dtype="uint8")
    before, table = arrays(tmp_path / "store"), read_lookup(open_store(tmp_path / "store").paths, PLATE)
    convert(tmp_path, raw, dtype="uint8", workers=2)
    assert arrays(tmp_path / "store") == before
    image = raw / "SYN-01" / "Plate1" / "A01_s1_w1.tif"
    tifffile.imwrite(image, tifffile.imread(image) * 0 + 65535, compression="lzw")
    convert(tmp_path, raw, dtype="uint8")
    assert read_lookup(open_store(tmp_path / "store").paths, PLATE) == table
    changed = [name for name, data in arrays(tmp_path / "store").items() if before[name] != data]
    assert changed == [f"plates/{PLATE}.zarr/images/c/0/0/0/0"]
    convert(tmp_path, raw, dtype="uint8", uint8_percentiles=(1, 99))
    assert read_lookup(open_store(tmp_path / "store").paths, PLATE) != table


def test_what_does_not_fit_is_refused(raw: Path, tmp_path: Path) -> None:
    convert(tmp_path, raw)
    with pytest.raises(UsageError, match="holds uint16; --dtype uint8 needs another --store"):
        convert(tmp_path, raw, dtype="uint8")
    with pytest.raises(ValueError, match="99 is not below 1"):
        ConvertConfig(uint8_percentiles=(99, 1))


def test_codecs_are_recipes(raw: Path, tmp_path: Path) -> None:
    training, archive = (resolve("convert", {}, [f"codec={name}"]).config for name in ("training", "archive"))
    assert isinstance(training, ConvertConfig) and isinstance(archive, ConvertConfig)
    assert resolve("convert", {}, []).config == training
    assert (archive.codec.cname, archive.codec.level, archive.codec.shuffle) == ("zstd", 1, "bitshuffle")
    fast = resolve("convert", {}, ["codec=fast"]).config
    assert isinstance(fast, ConvertConfig) and fast.codec.cname == "lz4hc"
    assert not resolve("rechunk", {}, ["codec=raw"]).config.codec.compress  # type: ignore[union-attr]
    convert(tmp_path / "t", raw)
    convert(tmp_path / "a", raw, codec=archive.codec.model_dump())
    sizes = [sum(map(len, arrays(tmp_path / name / "store").values())) for name in ("t", "a")]
    assert sizes[1] < sizes[0]
    convert(tmp_path / "f", raw, codec=fast.codec.model_dump(), dtype="uint8")
    convert(tmp_path / "8", raw, dtype="uint8")
    pixels = [
        zarr.open_array(open_store(tmp_path / name / "store").paths.images(PLATE), mode="r")[:] for name in "ta8f"
    ]
    assert np.array_equal(*pixels[:2]) and np.array_equal(*pixels[2:])
    assert not verify(open_store(tmp_path / "f" / "store"), silent()).damage
    with pytest.raises(
        UsageError,
        match="codec=archiv: no such recipe; there are archive, fast, raw, training; did you mean codec=archive",
    ):
        resolve("convert", {}, ["codec=archiv"])

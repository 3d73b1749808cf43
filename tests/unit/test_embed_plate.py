"""One plate: which crops make a well, and the table that comes of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from phenomhpc.embed.encode import CropEncoder
from phenomhpc.embed.feeding import Pixels
from phenomhpc.embed.folder import EmbeddingsPaths
from phenomhpc.embed.table import feature_columns, read_embeddings
from phenomhpc.embed.unit import CHECKPOINT, Writer, embed_unit, is_done
from phenomhpc.embed.wells import Placing, plan_wells
from phenomhpc.errors import FencedError
from phenomhpc.models.intensity import IntensityStatistics
from phenomhpc.progress import silent
from phenomhpc.runs import CompletionRecord
from phenomhpc.store.shardfiles import Traffic
from phenomhpc.store.snapshot import TABLE_DTYPE

SIZE, CROP = 10, 4  # four crops a field, a pixel left out at each edge
CHANNELS = 3
TILED = Placing(crop_px=CROP)


class Arrays:
    """Fields in memory, read as the shard reader reads them; the last read fields are counted."""

    traffic = Traffic()

    def __init__(self, fields: np.ndarray) -> None:
        self.fields = fields
        self.reads: list[int] = []

    def read(self, field_no: int, y: int, x: int, out: np.ndarray) -> None:
        self.reads.append(field_no)
        out[...] = self.fields[field_no][:, y : y + out.shape[1], x : x + out.shape[2]]


class Means:
    """The mean of each channel: a vector one can compute by hand."""

    widths = (2,)
    on_host = False

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.mean(axis=(2, 3), dtype=np.float64).astype(np.float32)


def _fields() -> pl.DataFrame:
    """B01 has two sites, out of order; A02 one, A03 two of which one is missing; A01 none at all."""
    rows = [
        ("B01", 2, 1, 2, "ok", 0),
        ("B01", 2, 1, 1, "ok", 1),
        ("A02", 1, 2, 1, "ok", 2),
        ("A03", 1, 3, 1, "unreadable", None),
        ("A03", 1, 3, 2, "ok", 3),
        ("A01", 1, 1, 1, "missing_plane", None),
    ]
    schema = {
        "well": pl.String,
        "row": pl.UInt16,
        "column": pl.UInt16,
        "site": pl.UInt16,
        "status": pl.String,
        "field_no": pl.Int64,
    }
    frame = pl.DataFrame(rows, schema=schema, orient="row").with_row_index("field_index")
    return frame.with_columns(
        pl.lit("e__P1").alias("plate"),
        pl.col("well").alias("gene"),
        pl.lit("x").alias("meta_note"),
        pl.lit("s").alias("z"),
    )


def _table(size: int = SIZE) -> np.ndarray:
    table = np.zeros(4, TABLE_DTYPE)
    table["field"] = range(4)
    table["height"] = table["width"] = size
    return table


def _images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, CHANNELS, SIZE, SIZE), dtype=np.uint8)


def _writer(refuse: bool = False) -> Writer:
    def check() -> None:
        if refuse:
            raise FencedError("run r: attempt 2 has replaced attempt 1")

    return Writer(attempt=1, task=0, token="t.0", check_fence=check)


def _embed(
    folder: Path,
    encoders: dict[str, CropEncoder],
    *,
    batch: int = 3,
    channel_index: Sequence[int] = (2, 0),
    writer: Writer | None = None,
) -> CompletionRecord:
    table = _table()
    with silent().stage("embed", None, "crops") as stage:
        return embed_unit(
            "e__P1",
            plan_wells(_fields(), table, TILED),
            pixels=Pixels(
                reader=Arrays(_images()),
                table=table,
                dtype=np.dtype(np.uint8),
                num_channels=CHANNELS,
                channel_index=channel_index,
                crop_px=CROP,
            ),
            encoders=encoders,
            batch=batch,
            paths=EmbeddingsPaths(folder),
            digest="d",
            writer=writer or _writer(),
            stage=stage,
        )


def test_wells_come_in_plate_order_with_their_usable_fields_by_site() -> None:
    wells = plan_wells(_fields(), _table(), TILED)
    assert wells.metadata["well"].to_list() == ["A01", "A02", "A03", "B01"]
    assert [[field.field_no for field in fields] for fields in wells.fields] == [[], [2], [3], [1, 0]]
    assert wells.num_crops.tolist() == [0, 4, 4, 8]
    assert wells.status == ("missing_plane", "ok", "ok", "ok")
    assert wells.metadata.columns == ["plate", "well", "row", "column", "gene", "meta_note"]


def test_a_field_smaller_than_a_crop_leaves_its_well_without_embedding_and_says_why() -> None:
    wells = plan_wells(_fields(), _table(CROP - 1), TILED)
    assert wells.status == ("missing_plane", "smaller_than_crop", "smaller_than_crop", "smaller_than_crop")
    assert wells.fields == ((), (), (), ())


@pytest.mark.parametrize("batch", [1, 3, 16, 64])
def test_a_well_is_the_mean_over_its_non_overlapping_crops(tmp_path: Path, batch: int) -> None:
    record = _embed(tmp_path, {CHECKPOINT: Means()}, batch=batch)
    table = pl.read_parquet(tmp_path / "e__P1.parquet")
    used = _images()[:, [2, 0], 1:9, 1:9].mean(axis=(2, 3))
    expected = np.array([used[2], used[3], (used[0] + used[1]) / 2])
    np.testing.assert_allclose(table.filter(status="ok").select(feature_columns(table)).to_numpy(), expected, rtol=1e-6)
    assert table["well"].to_list() == ["A01", "A02", "A03", "B01"]
    assert table["status"].to_list() == ["missing_plane", "ok", "ok", "ok"]
    assert table["num_crops"].to_list() == [0, 4, 4, 8] and table["num_crops"].dtype == pl.UInt16
    assert table.row(0)[-2:] == (None, None) and table["feature_0000"].dtype == pl.Float32
    assert set(table["level"]) == {"well"}
    assert record.set_aside == (("e__P1/A01", "missing_plane"),)


def test_each_field_is_read_once_for_all_encoders(tmp_path: Path) -> None:
    reader = Arrays(_images())
    table = _table()
    with silent().stage("embed", None, "crops") as stage:
        embed_unit(
            "e__P1",
            plan_wells(_fields(), table, TILED),
            pixels=Pixels(
                reader=reader,
                table=table,
                dtype=np.dtype(np.uint8),
                num_channels=3,
                channel_index=(0, 1, 2),
                crop_px=CROP,
            ),
            encoders={CHECKPOINT: IntensityStatistics((255.0,) * 3), "intensity": IntensityStatistics((1.0,) * 3)},
            batch=5,
            paths=EmbeddingsPaths(tmp_path),
            digest="d",
            writer=_writer(),
            stage=stage,
        )
    assert reader.reads == [2, 3, 1, 0]
    assert (tmp_path / "baselines" / "intensity" / "e__P1.parquet").is_file()


def test_the_same_plate_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _embed(tmp_path / name, {CHECKPOINT: Means(), "intensity": IntensityStatistics((255.0, 255.0))})
    for file in ("e__P1.parquet", "baselines/intensity/e__P1.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_plate_is_done_only_with_its_record_its_digest_and_its_tables(tmp_path: Path) -> None:
    paths = EmbeddingsPaths(tmp_path)
    assert not is_done(paths, "e__P1", "d")
    _embed(tmp_path, {CHECKPOINT: Means()})
    assert is_done(paths, "e__P1", "d") and not is_done(paths, "e__P1", "other")
    table = paths.table("e__P1")
    content = table.read_bytes()
    table.write_bytes(content[:-1])
    assert not is_done(paths, "e__P1", "d")
    table.write_bytes(content)
    paths.record("e__P1").write_text(paths.record("e__P1").read_text()[:-5])
    assert not is_done(paths, "e__P1", "d")


def test_a_fenced_task_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(FencedError):
        _embed(tmp_path, {CHECKPOINT: Means()}, writer=_writer(refuse=True))
    assert list(tmp_path.rglob("*")) == []


def test_what_is_written_reads_back_as_embeddings(tmp_path: Path) -> None:
    _embed(tmp_path, {CHECKPOINT: Means()})
    (tmp_path / "embeddings.json").write_text("{}")
    assert read_embeddings(tmp_path)["well"].to_list() == ["A02", "A03", "B01"]
    assert pl.read_parquet(io.BytesIO((tmp_path / "e__P1.parquet").read_bytes())).height == 4

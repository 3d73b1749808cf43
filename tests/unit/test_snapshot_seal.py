"""seal and snapshots: idempotent, immutable, complete without .progress."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from google_crc32c import value as crc32c

from phenomhpc.crops import Sampler
from phenomhpc.crops.corpus import Corpus
from phenomhpc.crops.where import eligible_rows
from phenomhpc.errors import UsageError, WorkError
from phenomhpc.progress import Stage, silent
from phenomhpc.store import ShardReader, Snapshot, Store, open_store
from phenomhpc.store.fields import METADATA_COLUMNS, PIXEL_COLUMNS
from phenomhpc.store.seal import SCALE_PERCENTILE, seal
from phenomhpc.store.shardindex import ABSENT, open_shard_index
from phenomhpc.store.shards import read_shard_index
from phenomhpc.store.snapshot import TABLE_DTYPE
from phenomhpc.store.verify import verify
from tests.unit.crop_store import add_plate, new_store, pixels_of

METADATA = {
    "A01": {"gene": "TP53", "is_control": "false", "concentration_um": "0.5", "meta_donor": "7"},
    "A02": {"gene": "", "is_control": "true", "treatment": "EMPTY_control"},
}


def two_plates(root: Path) -> Store:
    store = new_store(root)
    add_plate(store, "EXP-1__2", pixels_of(2, 3, 2, 40, 33))
    add_plate(store, "EXP-1__1", pixels_of(1, 5, 2, 50, 40), set_aside=(1,), metadata=METADATA)
    return store


def files_of(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file outside .progress: when it was written, and what it holds."""
    paths = [path for path in root.rglob("*") if path.is_file() and ".progress" not in path.parts]
    return {str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


class Notes:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, name: str, total: int | None, unit: str) -> Stage:
        return self

    def say(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, n: int = 1, **figures: float) -> None:
        pass

    note = say

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_snapshot_lists_the_usable_fields_in_order(tmp_path: Path) -> None:
    store = two_plates(tmp_path)
    sealed = seal(store, silent())
    snapshot = Snapshot.open(store)
    assert snapshot.digest == sealed.digest and snapshot.plates == ("EXP-1__1", "EXP-1__2")
    assert snapshot.table["plate"].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert snapshot.table["field"].tolist() == [0, 2, 3, 4, 0, 1, 2]
    assert snapshot.table["height"].tolist() == [50] * 4 + [40] * 3
    assert snapshot.table["width"].tolist() == [40] * 4 + [33] * 3
    expected = [crc32c(pixels_of(1, 5, 2, 50, 40)[field].tobytes()) for field in (0, 2, 3, 4)]
    assert snapshot.table["crc32c"].tolist()[:4] == expected
    assert snapshot.table.dtype.itemsize <= 32 and snapshot.scale.tolist() == [255, 255]
    assert snapshot.channels == ("channel 0", "channel 1") and snapshot.dtype == "uint8"


def test_the_fields_table_has_the_columns_of_the_design(tmp_path: Path) -> None:
    store = two_plates(tmp_path)
    snapshot = seal(store, silent())
    table = pl.read_parquet(store.paths.fields("EXP-1__1"))
    assert dict(table.schema) == {**PIXEL_COLUMNS, **METADATA_COLUMNS, "meta_donor": pl.String}
    first, second = table.to_dicts()[:2]
    assert (first["gene"], first["is_control"], first["concentration_um"], first["meta_donor"]) == (
        "TP53",
        False,
        0.5,
        "7",
    )
    assert (second["gene"], second["is_control"], second["status"], second["crc32c"]) == (
        None,
        True,
        "unreadable",
        None,
    )
    assert first["sources"] == [{"channel": "w1", "path": "0.png", "sha256": "ab" * 32, "bytes": 1}]
    fields = snapshot.fields()
    assert fields["field_no"].to_list() == [0, None, 1, 2, 3, 4, 5, 6]
    assert eligible_rows(fields, "is_control or plate == 'EXP-1__2'").tolist() == [4, 5, 6]


def test_sealing_again_writes_nothing(tmp_path: Path) -> None:
    store = two_plates(tmp_path)
    first = seal(store, silent())
    before = files_of(tmp_path)
    assert seal(store, silent()).digest == first.digest
    assert files_of(tmp_path) == before


def test_the_same_content_elsewhere_has_the_same_digest(tmp_path: Path) -> None:
    one, other = (seal(two_plates(tmp_path / name), silent()) for name in ("one", "other"))
    assert one.digest == other.digest


@pytest.mark.parametrize("changed", ["pixels", "metadata", "plate", "set_aside"])
def test_any_change_makes_another_snapshot_and_leaves_the_old_one(tmp_path: Path, changed: str) -> None:
    store = two_plates(tmp_path)
    old = seal(store, silent())
    before = files_of(store.paths.snapshot(old.digest))
    fields, table = old.fields(), old.table.copy()
    pixels = pixels_of(9 if changed == "pixels" else 1, 5, 2, 50, 40)
    metadata = {**METADATA, "A01": {"gene": "KRAS"}} if changed == "metadata" else METADATA
    add_plate(store, "EXP-1__1", pixels, set_aside=(1, 2) if changed == "set_aside" else (1,), metadata=metadata)
    if changed == "plate":
        add_plate(store, "EXP-1__0", pixels_of(3, 1, 2, 50, 40))
    new = seal(store, silent())
    assert new.digest != old.digest and Snapshot.open(store).digest == new.digest
    again = Snapshot.open(store, old.digest[:12])
    assert files_of(store.paths.snapshot(old.digest)) == before
    assert again.fields().equals(fields) and np.array_equal(again.table, table)


def test_the_shard_index_is_that_of_the_shards(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    geometry = add_plate(store, "P", pixels_of(1, 5, 2, 50, 40), shards=(0, 2))
    seal(store, silent())
    index = open_shard_index(store.paths.shard_index("P"))
    for shard in (0, 2):
        assert np.array_equal(index[shard], read_shard_index(store.paths.shard("P", shard), geometry))
    assert (index[1] == ABSENT).all()


def test_a_half_converted_plate_is_sealed_as_far_as_it_is_and_reported(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    pixels = pixels_of(1, 5, 2, 50, 40)
    add_plate(store, "P", pixels, shards=(0, 2))
    add_plate(store, "Q", pixels, shards=())
    notes = Notes()
    half = seal(store, notes)
    assert half.table["field"].tolist() == [0, 1, 4] and half.plates == ("P",)
    assert notes.notes == [
        "plate P: 1 of 3 shards are not converted yet",
        "plate Q: 3 of 3 shards are not converted yet",
    ]
    add_plate(store, "P", pixels, shards=(1,))
    whole = seal(store, silent())
    assert whole.table["field"].tolist() == [0, 1, 2, 3, 4]
    out = np.empty((2, 50, 40), np.uint8)
    for snapshot in (whole, Snapshot.open(store, half.digest)):
        with ShardReader(store, snapshot) as reader:
            reader.read(snapshot.num_fields - 1, 0, 0, out)
        assert np.array_equal(out, pixels[4])


def test_a_shard_without_its_record_is_not_believed_in(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    add_plate(store, "P", pixels_of(1, 5, 2, 50, 40))
    store.paths.record("P", 1).unlink()
    assert seal(store, silent()).table["field"].tolist() == [0, 1, 4]


def test_a_copy_without_progress_is_a_finished_store(tmp_path: Path) -> None:
    store = two_plates(tmp_path / "store")
    sealed = seal(store, silent())
    shutil.copytree(tmp_path / "store", tmp_path / "copy", ignore=shutil.ignore_patterns(".progress"))
    copy = open_store(tmp_path / "copy")
    before = files_of(tmp_path / "copy")
    assert seal(copy, silent()).digest == sealed.digest and files_of(tmp_path / "copy") == before
    verdict = verify(copy, silent())
    assert verdict.fields == 8 and not verdict.damage
    shutil.rmtree(copy.paths.images("EXP-1__2") / "c" / "0")
    notes = Notes()
    assert seal(copy, notes).table["field"].tolist() == [0, 2, 3, 4, 2]
    assert notes.notes == ["plate EXP-1__2: 1 of 2 shards are not converted yet"]


def test_the_scale_of_uint16_is_the_percentile_of_each_channel(tmp_path: Path) -> None:
    store = new_store(tmp_path, dtype="uint16", codec=("lz4", 5, "shuffle"))
    pixels = pixels_of(1, 4, 2, 50, 40, "uint16")
    pixels[:, 1] //= 100
    add_plate(store, "P", pixels)
    scale = seal(store, silent()).scale
    expected = [np.percentile(pixels[:, channel], SCALE_PERCENTILE, method="inverted_cdf") for channel in range(2)]
    assert scale.tolist() == expected and scale.dtype == np.float32


def test_empty_channels_do_not_scale_by_zero(tmp_path: Path) -> None:
    store = new_store(tmp_path, dtype="uint16", codec=None)
    add_plate(store, "P", np.zeros((1, 2, 20, 20), np.uint16))
    assert seal(store, silent()).scale.tolist() == [1, 1]


def test_a_store_without_usable_fields_is_refused(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    add_plate(store, "P", pixels_of(1, 2, 2, 50, 40), set_aside=(0, 1))
    with pytest.raises(UsageError, match="no usable field to seal; convert plates first"):
        seal(store, silent())
    with pytest.raises(UsageError, match=r"has no snapshot yet; run phenomhpc store seal"):
        Snapshot.open(store)
    assert not store.paths.snapshots.exists()


def test_a_torn_shard_is_named_and_nothing_is_sealed(tmp_path: Path) -> None:
    store = two_plates(tmp_path)
    shard = store.paths.shard("EXP-1__2", 0)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(WorkError, match=r"EXP-1__2.*checksum; convert it again"):
        seal(store, silent())
    assert not store.paths.snapshots.exists()


def test_an_unknown_or_ambiguous_snapshot_is_refused(tmp_path: Path) -> None:
    store = two_plates(tmp_path)
    digest = seal(store, silent()).digest
    with pytest.raises(
        UsageError, match=rf"snapshot 'nonsense' is not there or not unique; there are {digest[:12]}".replace("'", "")
    ):
        Snapshot.open(store, "nonsense")


@pytest.mark.parametrize("name", ["table.npy", "snapshot.json"])
def test_a_damaged_snapshot_is_named(tmp_path: Path, name: str) -> None:
    store = two_plates(tmp_path)
    path = store.paths.snapshot(seal(store, silent()).digest) / name
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UsageError, match=r"snapshot [0-9a-f]{64} is damaged .* run store seal"):
        Snapshot.open(store)


def test_a_kill_while_sealing_leaves_the_snapshot_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = two_plates(tmp_path)
    old = seal(store, silent())
    add_plate(store, "EXP-1__3", pixels_of(3, 2, 2, 50, 40))

    import phenomhpc.store.snapshot as module

    real = module.commit
    left: list[int] = []

    def dying(path: Path, data: bytes | str) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        real(path, data)

    for allowed in range(4):
        left[:] = range(allowed)
        monkeypatch.setattr(module, "commit", dying)
        with pytest.raises(KeyboardInterrupt):
            seal(store, silent())
        assert Snapshot.open(store).digest == old.digest
        monkeypatch.setattr(module, "commit", real)
        for folder in store.paths.snapshots.iterdir():
            if folder.is_dir() and folder.name != old.digest:
                shutil.rmtree(folder)
    assert (
        json.loads((store.paths.snapshot(seal(store, silent()).digest) / "snapshot.json").read_bytes())["num_fields"]
        == 9
    )


def test_opening_a_snapshot_of_many_fields_does_not_read_its_table(tmp_path: Path) -> None:
    store = two_plates(tmp_path)
    sealed = seal(store, silent())
    assert sealed.smallest == (40, 33)
    folder = store.paths.snapshot(sealed.digest)
    described = json.loads((folder / "snapshot.json").read_bytes())
    # A table of 10^8 fields without a page of it on the disk: whoever looks finds fields of 0 x 0 pixels.
    with (folder / "table.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": TABLE_DTYPE.descr, "fortran_order": False, "shape": (10**8,)}
        )
        file.truncate(file.tell() + 10**8 * TABLE_DTYPE.itemsize)
    (folder / "snapshot.json").write_text(json.dumps({**described, "num_fields": 10**8}))
    corpus = Corpus.open([str(tmp_path)])
    assert Sampler(corpus.tables, seed=0, crop_px=33).num_fields == 10**8
    with pytest.raises(UsageError, match="crop_px=34: the smallest field has 40x33"):
        Sampler(corpus.tables, seed=0, crop_px=34)
    assert (folder / "table.npy").stat().st_blocks < 100


def test_a_snapshot_of_an_older_version_says_nothing_of_sizes_and_is_looked_at(tmp_path: Path) -> None:
    store = two_plates(tmp_path)
    sealed = seal(store, silent())
    path = store.paths.snapshot(sealed.digest) / "snapshot.json"
    described = json.loads(path.read_bytes())
    del described["smallest"]
    path.write_text(json.dumps(described))
    assert seal(store, silent()).digest == sealed.digest and Snapshot.open(store).smallest is None
    with pytest.raises(UsageError, match="crop_px=34: the smallest field has 40x33"):
        Sampler(Corpus.open([str(tmp_path)]).tables, seed=0, crop_px=34)

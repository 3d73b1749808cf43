"""verify finds one flipped bit anywhere, in store or source; a shard is read back before it counts."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from phenomhpc.errors import WorkError
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.store import convert as convert_module
from phenomhpc.store import open_store
from phenomhpc.store.seal import seal
from phenomhpc.store.verify import Damage, Verdict, verify
from tests.unit.test_plates_layouts import convert

# make soak flips every byte.
FLIPS = 100_000 if os.environ.get("PHENOMHPC_SOAK") else 60
SPEC = SyntheticSpec(
    experiments=1, plates_per_experiment=2, plate_rows=1, plate_columns=4, field_px=40, num_genes=1, num_unexpressed=0,
    image_format="tif", dtype="uint16",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed store of two plates beside its sources; a plane is damaged, so that a field is set aside."""
    folder = tmp_path_factory.mktemp("whole")
    write_plates(folder / "raw", SPEC, silent(), workers=1)
    (folder / "raw" / "SYN-01" / "Plate2" / "A03_s1_w2.tif").write_bytes(b"II*\0")
    convert(folder, folder / "raw", max_set_aside=0.5, verify=True)
    return folder


def check(folder: Path) -> Verdict:
    return verify(open_store(folder / "store"), silent())


def files(folder: Path) -> list[Path]:
    """Everything that verify answers for."""
    found = [path for path in (folder / "store").rglob("*") if path.is_file()]
    raw = list((folder / "raw").rglob("*.tif"))
    return sorted(found + raw)


def test_a_whole_store_has_no_damage_and_every_kind_of_file_is_looked_at(whole: Path) -> None:
    verdict = check(whole)
    assert verdict == Verdict(fields=8, sources=48, absent_sources=0, damage=())
    assert {path.name for path in files(whole)} >= {
        "dataset.json", "zarr.json", "snapshot.json", "table.npy", "fields.parquet", "LATEST", "sums.json", "plate.json",
        "00000.json", "SYN-01__Plate1.shardindex", "SYN-01__Plate1.fields.parquet", "0", "A01_s1_w1.tif",
    }  # fmt: skip


def test_one_flipped_bit_is_found_wherever_it_is(whole: Path, tmp_path: Path) -> None:
    rng = random.Random(20241123)
    places = [(path, rng.randrange(path.stat().st_size), rng.randrange(8)) for path in files(whole) for _ in range(2)]
    if len(places) > FLIPS:
        kinds = {path.suffix + path.name[:4]: (path, at, bit) for path, at, bit in places}  # each kind of file once
        places = list(kinds.values()) + rng.sample(places, FLIPS - len(kinds))
    missed = []
    for path, at, bit in places:
        data = bytearray(path.read_bytes())
        data[at] ^= 1 << bit
        stamp = path.stat()
        path.write_bytes(bytes(data))
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # a disk that forgets keeps the time
        try:
            if not found(whole):
                missed.append((path.relative_to(whole), at, bit))
        finally:
            data[at] ^= 1 << bit
            path.write_bytes(bytes(data))
            os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert not missed and not check(whole).damage


def found(folder: Path) -> tuple[Damage, ...] | bool:
    """The damage; a store that cannot even be opened says so in one line."""
    from phenomhpc.errors import UsageError

    try:
        return check(folder).damage
    except UsageError as error:
        return "dataset.json" in str(error) or "schema" in str(error)


def test_a_missing_file_is_named_and_a_copy_without_progress_is_whole(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "store", tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / ".progress")
    assert not check(tmp_path).damage
    (tmp_path / "store" / "plates" / "SYN-01__Plate1.zarr" / "zarr.json").unlink()
    (damage,) = check(tmp_path).damage
    assert (damage.thing, damage.reason) == ("plates/SYN-01__Plate1.zarr/zarr.json", "is missing")


def test_sealing_again_reads_only_what_changed(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole, tmp_path / "w")
    store = open_store(tmp_path / "w" / "store")
    seal(store, silent())
    before = store.paths.sums.stat().st_mtime_ns
    monkeypatch.setattr("phenomhpc.store.sums.crc32c", lambda data: pytest.fail("read again"))
    with pytest.raises(pytest.fail.Exception):
        store.paths.sums.unlink()
        seal(store, silent())
    monkeypatch.undo()
    seal(store, silent())
    assert store.paths.sums.stat().st_mtime_ns != before and not check(tmp_path / "w").damage


def test_a_shard_that_does_not_come_back_as_written_is_written_again_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plates(tmp_path / "raw", SPEC, silent(), workers=1)
    real, calls = convert_module.check_shard, []

    def rotten(first_bad: int):  # type: ignore[no-untyped-def]
        def look(store, plate, geometry, shard, rows):  # type: ignore[no-untyped-def]
            calls.append(shard)
            if len(calls) <= first_bad:
                path = store.paths.shard(plate, shard)
                data = bytearray(path.read_bytes())
                data[100] ^= 1
                path.write_bytes(bytes(data))
            return real(store, plate, geometry, shard, rows)

        return look

    monkeypatch.setattr(convert_module, "check_shard", rotten(1))
    convert(tmp_path, tmp_path / "raw", verify=True)
    assert len(calls) == 3 and not check(tmp_path).damage
    calls.clear()
    shutil.rmtree(tmp_path / "store")
    monkeypatch.setattr(convert_module, "check_shard", rotten(2))
    with pytest.raises(WorkError, match="what was written twice is not what is read back"):
        convert(tmp_path, tmp_path / "raw", verify=True)
    assert not list((tmp_path / "store").rglob("c/0/0/0/0")) and not list((tmp_path / "store").rglob("00000.json"))
    calls.extend([0] * 9)
    convert(tmp_path, tmp_path / "raw", verify=True)
    assert not check(tmp_path).damage

"""store cache: whole shards or none, never a wrong pixel; one filler at a time; bounded; outdated ones do not count."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from phenomhpc.errors import UsageError
from phenomhpc.progress import silent
from phenomhpc.store import ShardReader, Snapshot, Store, open_store
from phenomhpc.store.cache import CachedShards, shards_of, state_of, within
from phenomhpc.store.fill import fill, filler_of
from phenomhpc.store.layout import StorePaths
from phenomhpc.store.seal import seal
from tests.unit.crop_store import add_plate, new_store, pixels_of
from tests.unit.test_cli import phenomhpc

FIELDS, SIZE = 13, (37, 51)


def small(folder: Path, *, size: tuple[int, int] = SIZE, plates: int = 2, seed: int = 0) -> Snapshot:
    """A sealed store of plates of given pixels; a field of each is set aside."""
    store = new_store(folder, chunk_px=16, fields_per_shard=3)
    for number in range(plates):
        add_plate(store, f"E__P{number}", pixels_of(seed + number, FIELDS, 2, *size), set_aside=[1])
    return seal(store, silent())


def read(snapshot: Snapshot, cached: CachedShards, field_no: int) -> NDArray[np.uint8] | None:
    """A whole field through the cache, by nothing but its location; None where it is not cached."""
    row = snapshot.table[field_no]
    plate = snapshot.plates[int(row["plate"])]
    shard, slot = divmod(int(row["field"]), 3)
    found = cached.locate(plate, shard)
    if found is None:
        return None
    edge, geometry = found.geometry.chunk_px, found.geometry
    padded = np.empty((2, geometry.chunk_rows * edge, geometry.chunk_columns * edge), np.uint8)
    with found.path.open("rb") as file:
        for number, (offset, size) in enumerate(found.index[slot].tolist()):
            y, x = (part * edge for part in divmod(number, geometry.chunk_columns))
            chunk = np.frombuffer(os.pread(file.fileno(), size, offset), np.uint8).reshape(2, edge, edge)
            padded[:, y : y + edge, x : x + edge] = chunk
    return padded[:, : geometry.height, : geometry.width]


def hits(snapshot: Snapshot, folder: Path) -> int:
    """Fields that are cached; each of them has the pixels of the store."""
    cached, found = CachedShards(snapshot.store, folder), 0
    with ShardReader(snapshot.store, snapshot) as reader:
        for field_no, row in enumerate(snapshot.table):
            pixels = read(snapshot, cached, field_no)
            if pixels is not None:
                wanted = np.empty((2, int(row["height"]), int(row["width"])), np.uint8)
                reader.read(field_no, 0, 0, wanted)
                assert np.array_equal(pixels, wanted)
                found += 1
    return found


def inodes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.glob("plates/*.zarr/images/c/*/0/0/0")}


def test_a_full_cache_has_every_pixel_and_is_not_filled_again(tmp_path: Path) -> None:
    snapshot = small(tmp_path / "store")
    state = fill(snapshot, tmp_path / "cache", workers=2)
    assert (state.shards_held, state.fields_held, state.hit_rate) == (10, 24, 1)
    assert (
        state.bytes_held
        == state.bytes_all
        == sum(path.stat().st_size for path in (tmp_path / "cache").glob("plates/*.zarr/images/c/*/0/0/0"))
    )
    assert hits(snapshot, tmp_path / "cache") == 24
    before = inodes(tmp_path / "cache")
    assert fill(snapshot, tmp_path / "cache").hit_rate == 1
    assert inodes(tmp_path / "cache") == before


def test_a_bound_holds_whole_shards_in_an_order_of_their_names(tmp_path: Path) -> None:
    snapshot = small(tmp_path / "store")
    shards = shards_of(snapshot)
    assert [each.num_fields for each in shards if each.shard == 0] == [2, 2]
    assert [each.num_fields for each in shards if each.shard == 4] == [1, 1]
    bound = sum(each.num_bytes for each in shards) // 2
    chosen = within(shards, bound)
    state = fill(snapshot, tmp_path / "cache", max_bytes=bound)
    assert state.bytes_held == sum(each.num_bytes for each in chosen) <= bound
    assert state.fields_held == hits(snapshot, tmp_path / "cache") == sum(each.num_fields for each in chosen)
    before = inodes(tmp_path / "cache")
    assert fill(snapshot, tmp_path / "cache", max_bytes=2 * bound).shards_held > state.shards_held
    assert before.items() <= inodes(tmp_path / "cache").items()
    assert fill(snapshot, tmp_path / "cache", max_bytes=bound) == state  # the others are evicted
    assert inodes(tmp_path / "cache") == before
    assert fill(snapshot, tmp_path / "cache", max_bytes=0).hit_rate == 0
    other = small(tmp_path / "grown", plates=3)  # a plate more changes nothing in the order of the others
    assert [each for each in shards_of(other) if each.plate != "E__P2"] == shards


def test_a_disk_whose_reserve_is_all_that_is_left_is_not_filled(tmp_path: Path) -> None:
    snapshot = small(tmp_path / "store")
    free = shutil.disk_usage(tmp_path).free
    assert fill(snapshot, tmp_path / "cache", reserve_bytes=2 * free).shards_held == 0
    assert fill(snapshot, tmp_path / "cache", reserve_bytes=free // 2).shards_held == 10


def test_what_the_store_has_written_anew_does_not_count_and_is_refreshed(tmp_path: Path) -> None:
    snapshot = small(tmp_path / "store")
    fill(snapshot, tmp_path / "cache")
    before = inodes(tmp_path / "cache")
    add_plate(snapshot.store, "E__P1", pixels_of(99, FIELDS, 2, *SIZE), shards=[2])
    again = seal(snapshot.store, silent())
    assert CachedShards(again.store, tmp_path / "cache").locate("E__P1", 2) is None
    assert state_of(again, tmp_path / "cache").fields_held == hits(again, tmp_path / "cache") == 24 - 3
    assert fill(again, tmp_path / "cache").hit_rate == 1 and hits(again, tmp_path / "cache") == 24
    changed = {name for name, inode in inodes(tmp_path / "cache").items() if before[name] != inode}
    assert changed == {"plates/E__P1.zarr/images/c/2/0/0/0"}


def test_a_file_that_is_cut_or_of_another_time_does_not_count(tmp_path: Path) -> None:
    snapshot = small(tmp_path / "store")
    fill(snapshot, tmp_path / "cache")
    path = StorePaths(tmp_path / "cache").shard("E__P0", 0)
    mtime_ns = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[:-1])
    os.utime(path, ns=(mtime_ns, mtime_ns))
    os.utime(StorePaths(tmp_path / "cache").shard("E__P0", 1), ns=(mtime_ns, mtime_ns + 1))
    assert hits(snapshot, tmp_path / "cache") == 24 - 2 - 3
    assert fill(snapshot, tmp_path / "cache").hit_rate == 1


def test_a_reader_sees_what_is_cached_later_and_an_evicted_file_is_forgotten(tmp_path: Path) -> None:
    snapshot = small(tmp_path / "store")
    cached = CachedShards(snapshot.store, tmp_path / "cache")  # before there is anything
    assert cached.locate("E__P0", 0) is None
    fill(snapshot, tmp_path / "cache")
    assert cached.locate("E__P0", 0) is not None
    fill(snapshot, tmp_path / "cache", max_bytes=0)
    found = cached.locate("E__P0", 0)
    assert found is not None and not found.path.exists()
    cached.forget("E__P0", 0)
    assert cached.locate("E__P0", 0) is None


def test_a_damaged_shard_of_the_store_is_named_and_left_out(tmp_path: Path) -> None:
    snapshot = small(tmp_path / "store")
    path = snapshot.store.paths.shard("E__P0", 2)
    data = bytearray(path.read_bytes())
    data[100] ^= 255
    path.write_bytes(data)
    state = fill(snapshot, tmp_path / "cache")
    assert [where for where, _ in state.skipped] == ["E__P0, shard 2, field 6"] and state.fields_held == 21
    assert CachedShards(snapshot.store, tmp_path / "cache").locate("E__P0", 2) is None
    done = phenomhpc("store", "cache", "store", "--to", "cache", cwd=tmp_path)
    assert done.returncode == 1 and "1 not cached (first: E__P0, shard 2, field 6: " in done.stdout


def test_a_cache_of_another_store_is_refused_and_one_of_a_store_made_anew_starts_over(tmp_path: Path) -> None:
    snapshot, other = small(tmp_path / "store"), small(tmp_path / "other", seed=50)
    fill(snapshot, tmp_path / "cache")
    for act in (lambda: fill(other, tmp_path / "cache"), lambda: state_of(other, tmp_path / "cache")):
        with pytest.raises(UsageError, match=r"is a cache of .*/store, not a cache of .*/other"):
            act()
    for place, said in {
        "store": "is the store itself",
        "store/x": "lies in the other",
        "other": "is a store of its own",
    }.items():
        with pytest.raises(UsageError, match=said):
            fill(snapshot, tmp_path / place)
    cache = open_store(tmp_path / "cache")
    with pytest.raises(UsageError, match=r"is a cache of .*; name that store"):
        fill(Snapshot(store=cache, **{name: getattr(snapshot, name) for name in (
            "digest", "table", "plates", "channels", "dtype", "scale")}), tmp_path / "x")  # fmt: skip
    shutil.rmtree(tmp_path / "store")
    store = new_store(tmp_path / "store", chunk_px=32, fields_per_shard=3)
    add_plate(store, "E__P0", pixels_of(7, FIELDS, 2, *SIZE))
    anew = seal(store, silent())
    assert hits(anew, tmp_path / "cache") == 0
    fill(anew, tmp_path / "cache")
    assert hits(anew, tmp_path / "cache") == FIELDS and open_store(tmp_path / "cache").spec.chunk_px == 32


# -- several at once, and killed --------------------------------------------------------------------------------------

FILL = (
    "import sys; from phenomhpc.progress import lines; from phenomhpc.store import Snapshot, open_store\n"
    "from phenomhpc.store.fill import fill\n"
    "state = fill(Snapshot.open(open_store(sys.argv[1])), sys.argv[2], wait=sys.argv[3] == 'wait', progress=lines(sys.stdout))\n"
    "print(state.shards_held)"
)


def filler(folder: Path, how: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", FILL, str(folder / "store"), str(folder / "cache"), how]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Fields that a filler has copied, and shards that the cache then held."""
    *stages, held = process.communicate(timeout=120)[0].splitlines()
    copied = stages[-1].split()[1].partition("/")[0] if stages else "0"
    return int(copied), int(held)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose caching takes a moment: 40 shards of 3 fields of 1.2 MiB."""
    folder = tmp_path_factory.mktemp("large")
    store = new_store(folder / "store", chunk_px=64, fields_per_shard=3)
    for number in range(4):
        pixels = np.broadcast_to(pixels_of(number, 1, 2, 777, 777), (30, 2, 777, 777))
        add_plate(store, f"E__P{number}", pixels)
    seal(store, silent())
    return folder


def test_two_fillers_at_once_copy_each_shard_once(large: Path, tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(large / "store")
    together = [filler(tmp_path, how) for how in ("wait", "wait", "leave")]
    said = [told(process) for process in together]
    assert sum(copied for copied, _ in said) == 120
    assert [said[0][1], said[1][1]] == [40, 40]


def test_while_one_fills_another_does_nothing_and_takes_over_when_it_is_killed(large: Path, tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(large / "store")
    snapshot, cache = Snapshot.open(open_store(tmp_path / "store")), tmp_path / "cache"
    held, leave = threading.Event(), threading.Event()

    def stop() -> bool:  # asked before each field: the first filler stays in its third shard
        if len(inodes(cache)) >= 2:
            held.set()
            leave.wait(60)
        return leave.is_set()

    first = threading.Thread(target=fill, args=(snapshot, cache), kwargs={"stop": stop})
    first.start()
    assert held.wait(60)
    state = fill(snapshot, cache)
    assert state.filler == f"process {os.getpid()} on {os.uname().nodename}" and state.shards_held == 2
    leave.set()
    first.join(60)
    assert not list(cache.rglob("*.tmp-*")) and not filler_of(StorePaths(cache))
    process, waiting = filler(tmp_path, "wait"), filler(tmp_path, "wait")
    while len(inodes(cache)) < 5 and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    left = inodes(cache)
    assert told(waiting)[1] == 40 and left.items() <= inodes(cache).items()


KILLS = 150 if os.environ.get("PHENOMHPC_SOAK") else 10


@pytest.mark.timeout(3600 if KILLS > 10 else 300)
def test_a_filler_that_is_killed_leaves_whole_shards_only(large: Path, tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(large / "store")
    store = open_store(tmp_path / "store")
    snapshot, moments = Snapshot.open(store), random.Random(7)
    wanted = {plate: pixels_of(number, 1, 2, 777, 777)[0] for number, plate in enumerate(snapshot.plates)}
    kills = 0
    while kills < KILLS:
        process = filler(tmp_path, "wait")
        before = len(inodes(tmp_path / "cache"))
        while process.poll() is None and len(inodes(tmp_path / "cache")) <= min(before, 38):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        alive = process.poll() is None
        process.kill()
        process.communicate()
        kills += alive
        cached = CachedShards(store, tmp_path / "cache")
        for field_no in range(0, snapshot.num_fields, 3):
            pixels = read(snapshot, cached, field_no)
            assert pixels is None or np.array_equal(pixels, wanted[snapshot.plates[field_no // 30]])
        if len(inodes(tmp_path / "cache")) > 30:
            shutil.rmtree(tmp_path / "cache")
    fill(snapshot, tmp_path / "cache")
    assert state_of(snapshot, tmp_path / "cache").hit_rate == 1 and not list((tmp_path / "cache").rglob("*.tmp-*"))


def test_the_threads_that_fill_give_way_and_no_other(tmp_path: Path) -> None:
    snapshot, seen = small(tmp_path / "store"), set()

    def stop() -> bool:
        seen.add((threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
        return False

    fill(snapshot, tmp_path / "cache", workers=2, stop=stop)
    assert {nice for _, nice in seen} == {19}
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19


def test_a_disk_too_small_is_filled_as_far_as_it_goes(tmp_path: Path) -> None:
    unshare = ["unshare", "--mount", "--propagation", "private"]
    if os.geteuid() or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here (root is needed)")
    small(tmp_path / "store", size=(160, 160))  # shards of 150 kB
    (tmp_path / "disk").mkdir()
    cache = f"{sys.executable} -m phenomhpc store cache store --to disk/cache"
    text = (
        f"mount -t tmpfs -o size=1000k none disk\n{cache} --reserve-gb 0.0002\ndf --output=avail -B1 disk | tail -1\n"
        f"mount -o remount,size=200k disk 2>/dev/null || true\nmount -o remount,size=64m disk\n{cache}\n"
        f"{cache} --status\nmount -o remount,ro disk\n{cache} --max-gb 0 2>&1 || echo code $?\n"
    )
    done = subprocess.run(
        [*unshare, "bash", "-c", text], capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    first, left, second, third, refused, code = done.stdout.splitlines()
    assert "expected hit rate " in first and "100.0%" not in first and not first.startswith("disk/cache: 0 of")
    assert int(left) >= 200_000
    assert "10 of 10 shards" in second and third == second
    assert (
        refused.startswith("phenomhpc: cache disk/cache: cannot be written (Read-only file system)")
        and code == "code 1"
    )


def test_the_words_and_the_numbers_of_the_command(tmp_path: Path) -> None:
    chosen = within(shards_of(small(tmp_path / "store")), 40_000)
    assert 1 < len(chosen) < 10
    done = phenomhpc("store", "cache", "store", "--to", "cache", "--status", cwd=tmp_path)
    assert "cache: 0 of 10 shards, 0 of 24 fields" in done.stdout and not (tmp_path / "cache").exists()
    done = phenomhpc("store", "cache", "store", "--to", "cache", "--max-gb", "0.00004", "--json", cwd=tmp_path)
    state = json.loads(done.stdout)
    assert (state["shards_held"], state["bytes_held"]) == (len(chosen), sum(each.num_bytes for each in chosen))
    assert state["hit_rate"] == sum(each.num_fields for each in chosen) / 24
    done = phenomhpc("store", "inspect", "cache", cwd=tmp_path)
    assert f"a cache of {tmp_path}/store" in done.stdout


def test_a_store_that_is_raw_already_is_cached_too(tmp_path: Path) -> None:
    store: Store = new_store(tmp_path / "store", chunk_px=16, fields_per_shard=3, codec=None)
    add_plate(store, "P", pixels_of(1, 5, 2, *SIZE))
    snapshot = seal(store, silent())
    fill(snapshot, tmp_path / "cache")
    assert hits(snapshot, tmp_path / "cache") == 5
    path = StorePaths(tmp_path / "cache").shard("P", 1)
    assert path.read_bytes() == store.paths.shard("P", 1).read_bytes()

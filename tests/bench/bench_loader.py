"""How fast crops come off a store: `make bench-loader`.

Random 256 x 256 x 6 crops of 2048 x 2048 fields per second of CPU time: our reader, our loader (flips and batches too),
tensorstore and zarr-python on the same store and the same crops, in interleaved passes, beside the limit that decoding
alone sets: the chunks those crops touch, already in memory, decoded into one reused buffer (for raw chunks: copied).
Only ratios within one run count; machines differ and are shared.

Shards are laid out for 1 GiB as convert does, though only some fields are written: their index, 200 KB and more, is part of
what reading a crop costs whoever does not keep it.  tensorstore is measured without a cache, its default, and with one that
holds indices but too few decoded chunks to help.  Fields are synthetic, or the real Phenix field tiled where it is at hand.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from phenomhpc.crops import Loader, Sampler
from phenomhpc.plates import decode_plane, find_plates, plane_bytes, read_plate
from phenomhpc.plates.synthetic.biology import LATENTS, SyntheticSpec, plate_effect
from phenomhpc.plates.synthetic.painting import paint_field
from phenomhpc.progress import silent
from phenomhpc.store import ShardReader, Snapshot, Store, StorePaths
from phenomhpc.store.seal import seal
from phenomhpc.store.shardindex import open_shard_index
from phenomhpc.store.shards import decode_blosc
from phenomhpc.store.spec import fields_per_shard
from tests.conftest import REPOSITORY
from tests.unit.crop_store import add_plate, new_store

CROP, CHANNELS, SIDE, PLATE = 256, 6, 2048, "EXP-1__1"
SHARD_MB = 1024
INDEX_CACHE_BYTES = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layout to measure: dtype, codec (None: raw) and chunk edge; of synthetic fields or the real one."""

    name: str
    dtype: Literal["uint8", "uint16"]
    codec: tuple[str, int, str] | None
    chunk_px: int = 128
    real: bool = False


CASES = (
    Case(name="uint8 lz4-bitshuffle", dtype="uint8", codec=("lz4", 5, "bitshuffle")),
    Case(name="uint16 lz4-shuffle", dtype="uint16", codec=("lz4", 5, "shuffle")),
    Case(name="uint8 raw", dtype="uint8", codec=None),
    Case(name="uint16 lz4-shuffle, Phenix", dtype="uint16", codec=("lz4", 5, "shuffle"), real=True),
    Case(name="uint8 lz4-bitshuffle, Phenix", dtype="uint8", codec=("lz4", 5, "bitshuffle"), real=True),
)


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Crops to be read by everyone, in this order."""

    field_no: NDArray[np.int64]
    y: NDArray[np.int32]
    x: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.field_no)

    def __iter__(self) -> Any:
        return zip(self.field_no.tolist(), self.y.tolist(), self.x.tolist(), strict=True)


def painted(dtype: Literal["uint8", "uint16"], fields: int) -> NDArray[Any]:
    """(F, 6, 2048, 2048) of synthetic cells; all fields are turns of one, for painting is slow."""
    spec = SyntheticSpec(field_px=SIDE, dtype=dtype)
    field = paint_field(spec, np.zeros(len(LATENTS)), plate_effect(spec, 0, 0), 0)
    return np.stack([np.rot90(field, turns, axes=(1, 2)) for turns in range(fields)])


def photographed(dtype: str, fields: int, raw: Path) -> NDArray[Any]:
    """(F, 6, 2048, 2048): the real field tiled and turned; as uint8, scaled to each channel's 99.9th percentile."""
    plate = read_plate(find_plates([str(raw)])[0])
    planes = [decode_plane(plane, plane_bytes(plane)) for (plane,) in plate.fields[0].planes if plane is not None]
    field = np.stack(planes)
    if dtype == "uint8":
        top = np.percentile(field, 99.9, axis=(1, 2), keepdims=True)
        field = np.clip(np.rint(field / top * 255), 0, 255).astype(np.uint8)
    tiled = np.tile(field, (1, 2, 2))[:, :SIDE, :SIDE]
    return np.stack([np.rot90(tiled, turns, axes=(1, 2)) for turns in range(fields)])


def touched(crops: Crops, chunk_px: int, columns: int) -> list[list[int]]:
    """Chunk numbers that each crop needs."""
    numbers = []
    for _, y, x in crops:
        rows = range(y // chunk_px, (y + CROP - 1) // chunk_px + 1)
        across = range(x // chunk_px, (x + CROP - 1) // chunk_px + 1)
        numbers.append([row * columns + column for row in rows for column in across])
    return numbers


def decode_limit(store: Store, snapshot: Snapshot, crops: Crops) -> Callable[[], None]:
    """Decodes, from memory, the chunks that the crops touch; nothing else."""
    spec = store.spec
    index = open_shard_index(store.paths.shard_index(PLATE))
    shards = [store.paths.shard(PLATE, number).read_bytes() for number in range(index.shape[0])]
    blocks: list[memoryview] = []
    wanted = touched(crops, spec.chunk_px, -(-SIDE // spec.chunk_px))
    for field_no, chunks in zip(crops.field_no.tolist(), wanted, strict=True):
        shard, slot = divmod(int(snapshot.table[field_no]["field"]), spec.fields_per_shard)
        for chunk in chunks:
            offset, size = index[shard, slot, chunk].tolist()
            blocks.append(memoryview(shards[shard])[offset : offset + size])
    flat = np.empty((CHANNELS, spec.chunk_px, spec.chunk_px), spec.dtype).reshape(-1).view(np.uint8)

    def run() -> None:
        for block in blocks:
            if spec.codec is None:
                flat[:] = block
            else:
                decode_blosc(block, flat)

    return run


def ours(reader: ShardReader, crops: Crops, out: NDArray[Any]) -> Callable[[], None]:
    def run() -> None:
        for slot, (field_no, y, x) in enumerate(crops):
            reader.read(field_no, y, x, out[slot % len(out)])

    return run


def loader(reader: ShardReader, snapshot: Snapshot, sampler: Sampler, count: int) -> Callable[[], None]:
    """As many crops again, flipped and in batches of 32."""

    def run() -> None:
        with Loader(
            reader,
            sampler,
            num_channels=CHANNELS,
            dtype=snapshot.dtype,
            num_patches=(CROP // 16) ** 2,
            global_batch=32,
            micro_batch=32,
        ) as batches:
            for _ in range(count // 32):
                next(batches)

    return run


def with_tensorstore(store: Store, crops: Crops, out: NDArray[Any], cache_bytes: int) -> Callable[[], None]:
    import tensorstore as ts

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store.paths.images(PLATE))}}
    context = ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
    array = ts.open(spec, context=context, open=True, read=True, recheck_cached_data="open").result()

    def run() -> None:
        for slot, (field_no, y, x) in enumerate(crops):
            out[slot % len(out)] = array[field_no, :, y : y + CROP, x : x + CROP].read().result()

    return run


def with_zarr(store: Store, crops: Crops, out: NDArray[Any]) -> Callable[[], None]:
    import zarr

    array = zarr.open_array(str(store.paths.images(PLATE)), mode="r")

    def run() -> None:
        for slot, (field_no, y, x) in enumerate(crops):
            out[slot % len(out)] = array[field_no, :, y : y + CROP, x : x + CROP]

    return run


def measure(runs: dict[str, Callable[[], None]], count: int, passes: int) -> dict[str, float]:
    """Crops per second of CPU time (of all threads): medians over interleaved passes, after one that warms up."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(passes + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if number:
                rates[name].append(count / (time.process_time() - began))
    return {name: statistics.median(values) for name, values in rates.items()}


def bench(case: Case, pixels: NDArray[Any], folder: Path, *, count: int, passes: int) -> dict[str, float]:
    """Rates of one case."""
    shard = fields_per_shard(SHARD_MB, CHANNELS, SIDE, SIDE, pixels.itemsize)
    store = new_store(
        folder,
        channels=CHANNELS,
        dtype=case.dtype,
        chunk_px=case.chunk_px,
        fields_per_shard=shard,
        codec=case.codec,
    )
    add_plate(store, PLATE, pixels)
    snapshot = seal(store, silent())
    sampler = Sampler(snapshot.table, seed=0, crop_px=CROP)
    visits = sampler.visits(np.arange(count))
    crops = Crops(field_no=visits.field_no, y=visits.y[:, 0], x=visits.x[:, 0])
    out = np.empty((32, CHANNELS, CROP, CROP), case.dtype)
    with ShardReader(store, snapshot) as reader:
        runs = {
            "reader": ours(reader, crops, out),
            "tensorstore": with_tensorstore(store, crops, out, 0),
            "tensorstore, cache": with_tensorstore(store, crops, out, INDEX_CACHE_BYTES),
            "zarr-python": with_zarr(store, crops, out),
        }
        for name, run in runs.items():
            out[...] = 0
            run()
            check(name, crops, pixels, out)
        runs["loader"] = loader(reader, snapshot, sampler, count)
        return measure({"decode limit": decode_limit(store, snapshot, crops), **runs}, count, passes)


def check(name: str, crops: Crops, pixels: NDArray[Any], out: NDArray[Any]) -> None:
    """Stop unless the crops that are still in the buffer are what was written."""
    for slot, (field_no, y, x) in list(enumerate(crops))[-len(out) :]:
        if not np.array_equal(out[slot % len(out)], pixels[field_no, :, y : y + CROP, x : x + CROP]):
            raise SystemExit(f"bench_loader: {name}: crop {slot} differs from what was written")


def main() -> None:
    """Print one row per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, default=2)
    parser.add_argument("--crops", type=int, default=96, help="crops per pass; a multiple of 32")
    parser.add_argument("--passes", type=int, default=5)
    given = parser.parse_args()
    raw = Path(os.environ.get("PHENOMHPC_SHARED", REPOSITORY.parent / "shared")) / "data" / "phenix"
    print(f"{CROP} x {CROP} x {CHANNELS} crops per second of CPU time, medians of {given.passes} interleaved passes")
    for case in CASES:
        if case.real and not raw.is_dir():
            print(f"{case.name:28s} skipped: {raw} is absent (set PHENOMHPC_SHARED)")
            continue
        pixels = photographed(case.dtype, given.fields, raw) if case.real else painted(case.dtype, given.fields)
        with tempfile.TemporaryDirectory() as folder:
            rates = bench(case, pixels, Path(folder), count=given.crops, passes=given.passes)
            stored = sum(path.stat().st_size for path in StorePaths(Path(folder)).images(PLATE).rglob("c/*/0/0/0"))
        limit = rates["decode limit"]
        print(f"{case.name}, compressed {pixels.nbytes / stored:.2f} times")
        for name, rate in rates.items():
            print(
                f"    {name:20s} {rate:8,.0f}   {rate / limit:6.1%} of the limit   reader / this {rates['reader'] / rate:6.2f}"
            )


if __name__ == "__main__":
    main()

"""Conversion beside its limit and other writers: `make bench-convert`.

Fields of 2048 x 2048 x 6 uint16 (a real Opera Phenix field, tiled and moved, where it lies beside the project; else synthetic),
as every kind of source file.  CPU time (user + system) of interleaved passes in one process, medians; only ratios count.

limit     bare decode of the planes and bare encode of chunks that lie ready, no file read or written
I/O       reading the sources and writing as many bytes as the shards have, with fsync
ours      converting a unit: reading, decoding, cutting, encoding, writing, fsync, checksums, record; then with sha256, with QC
workers   a whole conversion with one and with two processes, fields per second of wall clock once the first unit runs
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import imagecodecs
import numpy as np
import tifffile
import zarr
from zarr.codecs import BloscCodec, BloscShuffle

from phenomhpc.config import ConvertConfig
from phenomhpc.jobs.here import run_here
from phenomhpc.jobs.survey import geometry_of, spec_of, survey_plate
from phenomhpc.plates import Plate, find_plates, read_plane
from phenomhpc.plates.synthetic.biology import LATENTS, SyntheticSpec, plate_effect
from phenomhpc.plates.synthetic.painting import paint_field
from phenomhpc.progress import silent
from phenomhpc.runs import read_events
from phenomhpc.store import Store, create_store
from phenomhpc.store.convert import Work, convert_unit, shard_unit
from phenomhpc.store.fieldpixels import Treatment
from phenomhpc.store.shards import Geometry, Pixels, compressor_of, write_array_metadata

MEGABYTE = 1e6
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "phenix"
TARGETS = {"limit": 1.15, "QC": 1.10, "zarr-python": 1.5, "ome-zarr-py": 3.0, "two workers": 1.8}


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of source file: its ending, how a plane is written, and how many fields are measured."""

    ending: str
    encode: Callable[[Pixels], bytes]
    fields: int


def _tiff(compression: str | None, predictor: bool = False) -> Callable[[Pixels], bytes]:
    def encode(plane: Pixels) -> bytes:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, plane, compression=compression, predictor=predictor, metadata=None)
        return buffer.getvalue()

    return encode


def formats(fields: int) -> dict[str, Format]:
    """Every kind of source; JPEG 2000 takes ten times as long as any other, so fewer fields of it."""
    return {
        "TIFF, LZW": Format(ending="tif", encode=_tiff("lzw"), fields=fields),
        "TIFF, LZW, predictor": Format(ending="tif", encode=_tiff("lzw", True), fields=fields),
        "TIFF, zlib": Format(ending="tif", encode=_tiff("zlib"), fields=fields),
        "TIFF, raw": Format(ending="tif", encode=_tiff(None), fields=fields),
        "PNG": Format(ending="png", encode=lambda plane: bytes(imagecodecs.png_encode(plane, level=1)), fields=fields),
        "JPEG 2000": Format(
            ending="jp2",
            encode=lambda plane: bytes(imagecodecs.jpeg2k_encode(plane, level=0, reversible=True, codecformat="jp2")),
            fields=max(1, fields // 4),
        ),
    }


def source_fields(number: int, edge: int) -> Iterator[Pixels]:
    """Fields (6, edge, edge) uint16, each another."""
    if SHARED.is_dir():
        names = [f"r01c01f01p01-ch{channel}sk1fk1fl1.tiff" for channel in range(1, 7)]
        planes = [tifffile.imread(SHARED / "images" / name) for name in names]
        for field in range(number):
            rolled = [np.roll(plane, 97 * field, axis=(0, 1)) for plane in planes]
            repeats = -(-edge // planes[0].shape[0])
            yield np.stack([np.tile(plane, (repeats, repeats))[:edge, :edge] for plane in rolled])
        return
    spec = SyntheticSpec(field_px=edge, dtype="uint16")
    for field in range(number):
        yield np.asarray(paint_field(spec, np.zeros(len(LATENTS)), plate_effect(spec, 0, 0), field))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One format's plate in a folder, and the store it goes into."""

    root: Path
    plate: Plate
    config: ConvertConfig
    geometry: Geometry
    pixels: Any

    @classmethod
    def make(cls, root: Path, kind: Format, edge: int) -> Bench:
        raw = root / "EXP" / "Plate1"
        raw.mkdir(parents=True)
        pixels = np.stack(list(source_fields(kind.fields, edge)))
        for number, field in enumerate(pixels):
            for channel, plane in enumerate(field, 1):
                (raw / f"A{number + 1:02d}_s1_w{channel}.{kind.ending}").write_bytes(kind.encode(plane))
        config = ConvertConfig(plates=(str(raw),), store=str(root / "store"), runs=str(root / "runs"), workers=1)
        (found,) = find_plates([str(raw)])
        survey, plate = survey_plate(found, config, None)
        spec = spec_of(config, [survey])
        assert plate is not None and spec is not None
        return cls(root=root, plate=plate, config=config, geometry=geometry_of(config, survey, spec), pixels=pixels)

    def store(self) -> Store:
        shutil.rmtree(self.root / "store", ignore_errors=True)
        survey, _ = survey_plate(find_plates(self.config.plates)[0], self.config, None)
        spec = spec_of(self.config, [survey])
        assert spec is not None
        store = create_store(self.config.store, spec)
        write_array_metadata(store.paths, self.plate.key, spec, self.geometry)
        return store

    def limit(self, store: Store) -> Callable[[], None]:
        compressor = compressor_of(store.spec)
        assert compressor is not None
        data = [plane.path.read_bytes() for field in self.plate.fields for (plane,) in field.planes if plane]
        edge = self.geometry.chunk_px
        fields, channels, height, width = self.pixels.shape
        cut = self.pixels.reshape(fields, channels, height // edge, edge, width // edge, edge)
        chunks = np.ascontiguousarray(cut.transpose(0, 2, 4, 1, 3, 5)).reshape(-1, channels, edge, edge)
        out = np.empty((height, width), self.pixels.dtype)

        def bare() -> None:
            for plane in data:
                read_plane(plane, "", out)
            for chunk in chunks:
                compressor.encode(chunk)

        return bare

    def clear(self) -> None:
        """Remove what a pass has written: the first conversion of a plate finds nothing to remove."""
        for name in ("zarr", "files", "ours"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            (self.root / name).unlink(missing_ok=True)
        for path in (self.root / "store" / "plates").rglob("c/*/0/0/0"):
            path.unlink()

    def files(self, store: Store) -> Callable[[], None]:
        """Reading the sources, and writing as many bytes as the shards have, durably."""
        paths = [plane.path for field in self.plate.fields for (plane,) in field.planes if plane]
        self.convert(store)()
        data = store.paths.shard(self.plate.key, 0).read_bytes()

        def bare() -> None:
            for path in paths:
                path.read_bytes()
            with (self.root / "files").open("wb") as file:
                file.write(data)
                os.fsync(file.fileno())

        return bare

    def convert(self, store: Store, *, hashing: bool = True, qc: bool = False) -> Callable[[], None]:
        work = Work(attempt=1, task=0, token="bench", check_fence=lambda: None)
        units = [shard_unit(self.plate.key, store.spec, self.geometry, n) for n in range(self.geometry.num_shards)]

        def run() -> None:
            with contextlib.nullcontext() if hashing else mock.patch("phenomhpc.store.fieldpixels.hashlib", _NoHash):
                for unit in units:
                    convert_unit(store, self.plate, self.geometry, unit, work, Treatment(qc=qc), lambda num_bytes: None)

        return run


class _NoHash:
    """Stands in for hashlib, so that the cost of hashing can be told apart; no user can turn it off."""

    @staticmethod
    def sha256(data: bytes = b"") -> type[_NoHash]:
        return _NoHash

    @staticmethod
    def hexdigest() -> str:
        return "0" * 64


def cpu() -> float:
    """User and system time of this process and its children, seconds."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def medians(cases: dict[str, Callable[[], None]], passes: int, before: Callable[[], None]) -> dict[str, float]:
    """Median CPU seconds of each case, passes interleaved; the first pass is not counted, nor what is done `before` each."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(passes + 1):
        for name, run in cases.items():
            before()
            began = cpu()
            run()
            if number:
                times[name].append(cpu() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def with_zarr(bench: Bench) -> Callable[[], None]:
    """The same pixels from memory by zarr-python, with the same codec, chunks and shards."""
    edge = bench.geometry.chunk_px

    def write() -> None:
        array = zarr.create_array(
            bench.root / "zarr",
            shape=bench.pixels.shape,
            dtype="uint16",
            chunks=(1, bench.pixels.shape[1], edge, edge),
            shards=bench.pixels.shape,
            compressors=BloscCodec(cname="lz4", clevel=5, shuffle=BloscShuffle.shuffle),
        )
        array[:] = bench.pixels

    return write


def encode_and_write(bench: Bench, store: Store) -> Callable[[], None]:
    """The same pixels from memory by our writer."""
    from phenomhpc.runs import committing
    from phenomhpc.store.shardwriter import ShardWriter

    def write() -> None:
        with committing(bench.root / "ours") as file:
            writer = ShardWriter(file, store.spec, bench.geometry)
            for field in bench.pixels:
                writer.append(field)
            writer.finish()

    return write


OME = """
import resource, shutil, sys
import numpy as np, zarr
from ome_zarr.writer import write_image
from zarr.codecs import BloscCodec, BloscShuffle
pixels = np.load(sys.argv[1])
codec = BloscCodec(cname="lz4", clevel=5, shuffle=BloscShuffle.shuffle)
times = []
for _ in range(int(sys.argv[3]) + 1):
    shutil.rmtree(sys.argv[2], ignore_errors=True)
    began = resource.getrusage(resource.RUSAGE_SELF)
    for number, field in enumerate(pixels):
        group = zarr.open_group(f"{sys.argv[2]}/{number}", mode="w", zarr_format=3)
        options = {"chunks": (field.shape[0], 128, 128), "compressors": codec}
        write_image(field, group, axes="cyx", scale_factors=[], storage_options=options)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    times.append(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)
print(sorted(times[1:])[len(times[1:]) // 2])
"""


def with_ome_zarr(bench: Bench, passes: int) -> float | None:
    """CPU seconds of ome-zarr-py for the same; None where $PHENOMHPC_OME_ZARR names no Python that has it.

    An environment of its own: it holds pydantic back.
    """
    python = os.environ.get("PHENOMHPC_OME_ZARR")
    if not python:
        return None
    np.save(bench.root / "pixels.npy", bench.pixels)
    command = [python, "-c", OME, str(bench.root / "pixels.npy"), str(bench.root / "ome"), str(passes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def by_workers(root: Path, kind: Format, edge: int, fields: int) -> dict[int, float]:
    """Fields per second of wall clock with one and with two workers, interleaved, the better of two each.

    From the start of the first unit to the end of the last: starting processes is no part of a long conversion.
    """
    raw = root / "EXP" / "Plate1"
    raw.mkdir(parents=True)
    for channel, plane in enumerate(next(source_fields(1, edge)), 1):
        first = raw / f"A01_s1_w{channel}.{kind.ending}"
        first.write_bytes(kind.encode(plane))
        for number in range(1, fields):
            row, column = divmod(number, 24)
            os.link(first, raw / f"{'ABCDEFGHIJKLMNOP'[row]}{column + 1:02d}_s1_w{channel}.{kind.ending}")
    speeds: dict[int, float] = {}
    for _ in range(2):
        for workers in (1, 2):
            shutil.rmtree(root / "store", ignore_errors=True)
            settings = {"plates": [str(raw)], "store": str(root / "store"), "runs": str(root / "runs"), "shard_mb": 100}
            config = ConvertConfig.model_validate({**settings, "workers": workers})
            paths, _ = run_here(config, command=["bench"], progress=silent(), fresh=True)
            units = [event for event in read_events(paths) if event["event"] == "unit"]
            ends = [datetime.fromisoformat(event["time"]).timestamp() for event in units]
            begins = [end - event["seconds"] for end, event in zip(ends, units, strict=True)]
            speeds[workers] = max(speeds.get(workers, 0.0), fields / (max(ends) - min(begins)))
    return speeds


def main() -> int:
    """Print the tables; exit code 1 when a target is missed by more than 5 %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edge", type=int, default=2048, help="edge of a field, pixels (a multiple of 128)")
    parser.add_argument("--fields", type=int, default=4, help="fields of a format; four of 2048 are 201 MB")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--source", action="append", help="this kind of source alone, and no writers or workers")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    missed: list[str] = []

    def judge(what: str, ratio: float, target: float, *, at_least: bool = False) -> str:
        wrong = ratio < target / 1.05 if at_least else ratio > target * 1.05
        if wrong:
            missed.append(f"{what}: {ratio:.2f}, target {target}")
        return f"{ratio:.2f}"

    with tempfile.TemporaryDirectory() as folder:
        print(
            "| source | limit, CPU s | ours / limit | / limit, I/O | sha256 adds | MB/s of it | QC / without | MB read, written |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for name, kind in formats(asked.fields).items():
            if asked.source and name not in asked.source:
                continue
            bench = Bench.make(Path(folder) / name.replace(" ", "-"), kind, asked.edge)
            store = bench.store()
            cases = {
                "limit": bench.limit(store),
                "I/O": bench.files(store),
                "ours": bench.convert(store, hashing=False),
                "sha256": bench.convert(store),
                "QC": bench.convert(store, qc=True),
            }
            found = medians(cases, asked.passes, bench.clear)
            read = sum(plane.path.stat().st_size for field in bench.plate.fields for (plane,) in field.planes if plane)
            written = store.paths.shard(bench.plate.key, 0).stat().st_size
            more = found["sha256"] - found["ours"]
            hashed = read / MEGABYTE / max(more, 1e-6)
            rows.append({"source": name, **found, "read": read, "written": written})
            ratio = judge(f"{name}: ours / limit", found["ours"] / found["limit"], TARGETS["limit"])
            with_files = found["ours"] / (found["limit"] + found["I/O"])
            quality = judge(f"{name}: QC", found["QC"] / found["sha256"], TARGETS["QC"])
            moved = f"{read / MEGABYTE:.0f}, {written / MEGABYTE:.0f}"
            words = (
                name,
                f"{found['limit']:.3f}",
                ratio,
                f"{with_files:.2f}",
                f"{more:.3f} s",
                f"{hashed:.0f}",
                quality,
                moved,
            )
            print(f"| {' | '.join(words)} |", flush=True)
            shutil.rmtree(bench.root)
        if asked.source:
            return _tell(missed)
        bench = Bench.make(Path(folder) / "writers", formats(asked.fields)["TIFF, raw"], asked.edge)
        store = bench.store()
        found = medians(
            {"ours": encode_and_write(bench, store), "zarr-python": with_zarr(bench)}, asked.passes, bench.clear
        )
        ome = with_ome_zarr(bench, asked.passes)
        print("\n| writer, from memory | CPU s | CPU time / ours |\n|---|---|---|")
        for name, seconds in (*found.items(), *([("ome-zarr-py", ome)] if ome else [])):
            ratio = seconds / found["ours"]
            words = judge(name, ratio, TARGETS[name], at_least=True) if name in TARGETS else "1.00"
            print(f"| {name} | {seconds:.3f} | {words} |")
        rows.append({"writers": {**found, "ome-zarr-py": ome}})
        speeds = by_workers(Path(folder) / "workers", formats(1)["TIFF, LZW"], asked.edge, 16 * asked.fields)
        print("\n| workers | fields/s | of one |\n|---|---|---|")
        for workers, speed in speeds.items():
            ratio = speed / speeds[1]
            words = judge("two workers", ratio, TARGETS["two workers"], at_least=True) if workers == 2 else "1.00"
            print(f"| {workers} | {speed:.1f} | {words} |")
        rows.append({"workers": speeds})
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2))
    return _tell(missed)


def _tell(missed: list[str]) -> int:
    for words in missed:
        print(f"missed: {words}")
    return int(bool(missed))


if __name__ == "__main__":
    began = time.monotonic()
    code = main()
    print(f"{time.monotonic() - began:.0f} s in all")
    sys.exit(code)

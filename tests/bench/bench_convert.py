"""Conversion beside its limit and zarr-python: `make bench-convert`.

One synthetic plate of 16-bit LZW TIFFs.  `limit` is decoding the sources and encoding the chunks, nothing else; `ours` is a
whole conversion in this process (hashing, records, fsync); `zarr-python` writes the same pixels with the same codec and
shards from memory.  Process times of interleaved passes, medians; only the ratios count.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BloscShuffle

from phenomhpc.config import ConvertConfig
from phenomhpc.jobs.here import run_here
from phenomhpc.plates import find_plates, read_plane, read_plate
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.store import open_store
from phenomhpc.store.shards import compressor_of

PASSES = 3
SPEC = SyntheticSpec(
    experiments=1, plate_rows=2, plate_columns=4, field_px=1080, num_genes=4, dtype="uint16", image_format="tif"
)


def main() -> None:
    """Print a table of CPU seconds and ratios."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_plates(root / "raw", SPEC, silent())
        plate = read_plate(find_plates([str(root / "raw")])[0])
        fields = [[plane.path for (plane,) in field.planes if plane] for field in plate.fields]

        def convert() -> None:
            shutil.rmtree(root / "store", ignore_errors=True)
            settings = {
                "plates": [str(root / "raw")],
                "store": str(root / "store"),
                "runs": str(root / "runs"),
                "workers": 1,
            }
            run_here(ConvertConfig.model_validate(settings), command=["bench"], progress=silent())

        convert()
        store = open_store(root / "store")
        compressor = compressor_of(store.spec)
        assert compressor is not None
        edge = store.spec.chunk_px
        pixels = np.stack([[read_plane(plane.read_bytes(), plane.name) for plane in planes] for planes in fields])
        padded = -(-SPEC.field_px // edge) * edge

        def limit() -> None:
            for planes in fields:
                whole = np.zeros((6, padded, padded), np.uint16)
                for channel, plane in enumerate(planes):
                    whole[channel, : SPEC.field_px, : SPEC.field_px] = read_plane(plane.read_bytes(), plane.name)
                for y in range(0, padded, edge):
                    for x in range(0, padded, edge):
                        compressor.encode(np.ascontiguousarray(whole[:, y : y + edge, x : x + edge]))

        def with_zarr() -> None:
            shutil.rmtree(root / "other", ignore_errors=True)
            array = zarr.create_array(
                root / "other",
                shape=pixels.shape,
                dtype="uint16",
                chunks=(1, 6, edge, edge),
                shards=(len(pixels), 6, padded, padded),
                compressors=BloscCodec(cname="lz4", clevel=5, shuffle=BloscShuffle.shuffle),
            )
            array[:] = pixels

        report(
            {"limit: decode + encode": limit, "ours: convert": convert, "zarr-python: encode + write": with_zarr},
            pixels.nbytes,
        )


def report(cases: dict[str, Callable[[], None]], num_bytes: int) -> None:
    """Median CPU seconds of each case, MB/s of raw pixels, and the ratio to the first."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(PASSES):
        for name, run in cases.items():
            began = time.process_time()
            run()
            times[name].append(time.process_time() - began)
    first = statistics.median(next(iter(times.values())))
    print("| case | CPU s | MB/s of one core | CPU time / limit |\n|---|---|---|---|")
    for name, values in times.items():
        seconds = statistics.median(values)
        print(f"| {name} | {seconds:.2f} | {num_bytes / 1e6 / seconds:.0f} | {seconds / first:.2f} |")


if __name__ == "__main__":
    main()

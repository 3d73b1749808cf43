"""Any crop of any layout equals what zarr and tensorstore read of it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from phenomhpc.progress import silent
from phenomhpc.store import ShardReader
from phenomhpc.store.seal import seal
from phenomhpc.store.tensorreader import TensorReader
from tests.unit.crop_store import add_plate, new_store, pixels_of

CODECS = [
    None,
    *((cname, 5, shuffle) for cname in ("lz4", "zstd") for shuffle in ("bitshuffle", "shuffle", "noshuffle")),
    ("lz4hc", 5, "bitshuffle_pairs"),
]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_crop_equals_what_zarr_and_tensorstore_read(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 140), "height"), data.draw(st.integers(1, 140), "width")
    channels, fields = data.draw(st.integers(1, 3), "channels"), data.draw(st.integers(1, 4), "fields")
    dtype = data.draw(st.sampled_from(["uint8", "uint16"]), "dtype")
    pixels = pixels_of(data.draw(st.integers(0, 99), "seed"), fields, channels, height, width, dtype)
    with tempfile.TemporaryDirectory() as folder:
        store = new_store(
            Path(folder),
            channels=channels,
            dtype=dtype,
            chunk_px=data.draw(st.sampled_from([1, 7, 16, 32, 80] if height * width < 400 else [16, 64, 80, 128])),
            fields_per_shard=data.draw(st.integers(1, 5), "fields per shard"),
            codec=data.draw(st.sampled_from(CODECS), "codec"),
        )
        add_plate(store, "P", pixels)
        snapshot = seal(store, silent())
        images = str(store.paths.images("P"))
        reference = zarr.open_array(images, mode="r")
        assert np.array_equal(np.asarray(reference[:]), pixels)
        with ShardReader(store, snapshot) as reader, TensorReader(snapshot) as other:
            for _ in range(6):
                field_no = data.draw(st.integers(0, fields - 1), "field")
                y0, y1 = sorted(data.draw(st.tuples(st.integers(0, height - 1), st.integers(1, height)), "y"))
                x0, x1 = sorted(data.draw(st.tuples(st.integers(0, width - 1), st.integers(1, width)), "x"))
                y1, x1 = max(y1, y0 + 1), max(x1, x0 + 1)
                out = np.full((channels, y1 - y0, x1 - x0), 77, dtype)
                reader.read(field_no, y0, x0, out)
                assert np.array_equal(out, np.asarray(reference[field_no, :, y0:y1, x0:x1]))
                for either in (reader, other):
                    same = np.full(out.shape, 77, dtype)
                    either.read(field_no, y0, x0, same)
                    assert np.array_equal(same, out)
                    turned = np.full((channels, x1 - x0, y1 - y0), 77, dtype)
                    either.read(field_no, y0, x0, turned[:, ::-1].swapaxes(1, 2))
                    assert np.array_equal(turned, np.rot90(out, axes=(1, 2)))

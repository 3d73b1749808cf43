"""A copy in any codec, chunk edge and shard size has the pixels of its source, as zarr and tensorstore read them."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from phenomhpc.config import RechunkConfig
from phenomhpc.jobs.here import run_here
from phenomhpc.progress import silent
from phenomhpc.store import open_store
from phenomhpc.store.cache import CachedShards
from phenomhpc.store.fill import fill
from phenomhpc.store.seal import seal
from phenomhpc.store.shards import read_shard_index
from phenomhpc.store.verify import verify
from tests.unit.crop_store import add_plate, new_store, pixels_of

CODECS = [None, ("lz4", 5, "bitshuffle"), ("zstd", 1, "bitshuffle"), ("zstd", 3, "shuffle")]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_copy_has_the_pixels_of_its_source(data: st.DataObject) -> None:
    draw = data.draw
    height, width = draw(st.integers(1, 300), "height"), draw(st.integers(1, 300), "width")
    channels, fields = draw(st.integers(1, 2), "channels"), draw(st.integers(1, 7), "fields")
    dtype = draw(st.sampled_from(["uint8", "uint16"]), "dtype")
    edges = st.sampled_from([32, 64, 128, 256])
    pixels = pixels_of(draw(st.integers(0, 99), "seed"), fields, channels, height, width, dtype)
    set_aside = [fields - 1] if fields > 1 and draw(st.booleans(), "set aside") else []
    codec = draw(st.sampled_from(CODECS), "codec")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = new_store(
            root / "source",
            channels=channels,
            dtype=dtype,
            chunk_px=draw(edges, "chunk"),
            fields_per_shard=draw(st.integers(1, 5), "fields per shard"),
            codec=draw(st.sampled_from(CODECS), "source codec"),
        )
        add_plate(source, "P", pixels, set_aside=set_aside)
        sealed = seal(source, silent())
        config = RechunkConfig.model_validate(
            {
                "store": str(root / "source"),
                "to": str(root / "copy"),
                "runs": str(root / "runs"),
                "workers": 1,
                "chunk_px": draw(edges, "copy chunk"),
                "shard_mb": draw(st.sampled_from([None, 1, 2]), "MiB"),
                "verify": True,
                "codec": {"compress": False}
                if codec is None
                else dict(zip(("cname", "level", "shuffle"), codec, strict=True)),
            }
        )
        run_here(config, command=["test"], progress=silent())
        copy = open_store(root / "copy")
        assert copy.spec == replace(
            source.spec, codec=codec, chunk_px=config.chunk_px, fields_per_shard=copy.spec.fields_per_shard
        )
        assert copy.paths.latest.read_text().strip() == sealed.digest
        assert not verify(copy, silent()).damage
        wanted = pixels.copy()
        wanted[set_aside] = 0
        images = str(copy.paths.images("P"))
        other = tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": images}}, open=True, read=True
        )
        assert np.array_equal(np.asarray(zarr.open_array(images, mode="r")[:]), wanted)
        assert np.array_equal(other.result().read().result(), wanted)

        assert fill(sealed, root / "cache", reserve_bytes=0).hit_rate == 1
        cached = str(open_store(root / "cache").paths.images("P"))
        assert np.array_equal(np.asarray(zarr.open_array(cached, mode="r")[:]), wanted)
        shards = CachedShards(source, root / "cache")
        for shard in source.paths.converted_shards("P"):
            if (located := shards.locate("P", shard)) is not None:  # one without a usable field is not cached
                assert np.array_equal(located.index, read_shard_index(located.path, located.geometry))

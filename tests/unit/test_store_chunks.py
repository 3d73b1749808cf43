"""Parts of chunks, decoded and cut in one go: the same pixels as blosc's whole chunk, whatever the packing and the direction."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs.blosc import Blosc
from numpy.typing import NDArray

from phenomhpc.store import chunks as chunks_module
from phenomhpc.store.chunks import ChunkReader
from phenomhpc.store.shards import Geometry, decode_blosc, encoder_of
from phenomhpc.store.spec import DatasetSpec
from tests.unit.crop_store import new_store, pixels_of

CHANNELS = 3
LZ4, ZSTD, FAST = ("lz4", 5), ("zstd", 1), ("lz4hc", 5)
PACKINGS = [
    ("uint8", (*LZ4, "bitshuffle"), 64),
    ("uint8", (*LZ4, "bitshuffle"), 128),
    ("uint8", (*LZ4, "bitshuffle"), 256),
    ("uint8", (*ZSTD, "bitshuffle"), 128),
    ("uint8", (*ZSTD, "bitshuffle"), 256),
    ("uint8", (*ZSTD, "noshuffle"), 64),
    ("uint8", (*FAST, "bitshuffle_pairs"), 128),
    ("uint8", (*FAST, "bitshuffle_pairs"), 256),
    ("uint16", (*LZ4, "shuffle"), 64),
    ("uint16", (*LZ4, "shuffle"), 256),
    ("uint16", (*ZSTD, "shuffle"), 128),
    ("uint16", (*LZ4, "bitshuffle"), 64),
    ("uint16", (*ZSTD, "bitshuffle"), 128),
    ("uint16", (*FAST, "shuffle"), 128),
    ("uint16", (*ZSTD, "noshuffle"), 64),
]
# Packings that no compiled code is for: their rows are no whole words of each plane.
OTHERS = [
    ("uint8", (*LZ4, "bitshuffle"), 32),
    ("uint8", (*FAST, "bitshuffle_pairs"), 64),
    ("uint16", (*LZ4, "shuffle"), 7),
]


def a_chunk(root: Path, dtype: str, codec: tuple[str, int, str], edge: int) -> tuple[DatasetSpec, Geometry, Any, bytes]:
    spec = new_store(root, channels=CHANNELS, dtype=dtype, chunk_px=edge, codec=codec).spec
    geometry = Geometry(num_fields=1, num_channels=CHANNELS, height=edge, width=edge, chunk_px=edge, fields_per_shard=1)
    pixels = pixels_of(5, 1, CHANNELS, edge, edge, dtype)[0]
    return spec, geometry, pixels, encoder_of(spec)(pixels)


def put(reader: ChunkReader, block: bytes, y: int, x: int, out: NDArray[Any]) -> None:
    """The part of one chunk."""
    reader.put(memoryview(block), np.array([[0, len(block)]], np.uint64), y, x, out)


def turned(batch: NDArray[Any], number: int) -> NDArray[Any]:
    """One of the eight views of a square."""
    if number & 1:
        batch = batch[:, ::-1]
    if number & 2:
        batch = batch[..., ::-1]
    return batch.swapaxes(1, 2) if number & 4 else batch


def windows(edge: int) -> list[tuple[int, int, int, int]]:
    """(y, x, h, w): corners, whole, thin, and some at random."""
    rng = np.random.default_rng(edge)
    some = []
    for _ in range(12):
        y, x = (int(start) for start in rng.integers(0, edge, 2))
        some.append((y, x, int(rng.integers(1, edge - y + 1)), int(rng.integers(1, edge - x + 1))))
    return [(0, 0, edge, edge), (0, 0, 1, 1), (edge - 1, edge - 1, 1, 1), (0, 5, edge, 1), (3, 0, 1, edge), *some]


@pytest.mark.parametrize(("dtype", "codec", "edge"), PACKINGS)
def test_any_part_in_any_direction_equals_the_whole_chunk_cut(
    tmp_path: Path, dtype: str, codec: tuple[str, int, str], edge: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, geometry, pixels, block = a_chunk(tmp_path, dtype, codec, edge)
    whole = np.empty_like(pixels)
    decode_blosc(block, whole.reshape(-1).view(np.uint8))
    assert np.array_equal(whole, pixels)
    monkeypatch.setattr(chunks_module, "decode_blosc", None)  # what follows is compiled code
    reader = ChunkReader(spec, geometry)
    for (y, x, height, width), number in itertools.product(windows(edge), range(8)):
        # In the midst of a batch, so that a byte too many would be seen.
        batch = np.full((CHANNELS, edge + 9, edge + 9), 77, dtype)
        view = turned(batch, number)[:, 3 : 3 + height, 5 : 5 + width]
        put(reader, block, y, x, view)
        assert np.array_equal(view, pixels[:, y : y + height, x : x + width])
        view[...] = 77
        assert (batch == 77).all()


@pytest.mark.parametrize("typesize", [1, 2])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_elements_need_not_be_pixels(tmp_path: Path, dtype: str, typesize: int) -> None:
    """Somebody else's blosc may have been told any size of an element."""
    spec, geometry, pixels, _ = a_chunk(tmp_path, dtype, (*LZ4, "bitshuffle"), 128)
    pixels //= 64 if dtype == "uint8" else 512  # else blosc leaves it as it is
    for shuffle in (Blosc.SHUFFLE, Blosc.BITSHUFFLE):
        block = Blosc(cname="lz4", clevel=5, shuffle=shuffle).encode(pixels.reshape(-1).view(f"u{typesize}"))
        assert len(block) < pixels.nbytes
        reader = ChunkReader(spec, geometry)
        for number in range(8):
            batch = np.full((CHANNELS, 137, 137), 77, dtype)
            view = turned(batch, number)[:, 3:123, 5:115]
            put(reader, block, 8, 10, view)
            assert np.array_equal(view, pixels[:, 8:128, 10:120])
            view[...] = 77
            assert (batch == 77).all()


@pytest.mark.parametrize(("dtype", "codec", "edge"), OTHERS)
def test_other_packings_are_left_to_blosc(
    tmp_path: Path, dtype: str, codec: tuple[str, int, str], edge: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, geometry, pixels, block = a_chunk(tmp_path, dtype, codec, edge)
    reader, out = ChunkReader(spec, geometry), np.empty((CHANNELS, edge - 2, edge - 3), dtype)
    put(reader, block, 2, 1, out)
    assert np.array_equal(out, pixels[:, 2:, 1 : edge - 2])
    monkeypatch.setattr(chunks_module, "decode_blosc", None)
    with pytest.raises(TypeError):
        put(reader, block, 2, 1, out)


def test_a_view_whose_pixels_lie_apart_is_filled_too(tmp_path: Path) -> None:
    spec, geometry, pixels, block = a_chunk(tmp_path, "uint8", (*LZ4, "bitshuffle"), 64)
    batch = np.zeros((CHANNELS, 128, 128), np.uint8)
    put(ChunkReader(spec, geometry), block, 0, 0, batch[:, ::2, ::2])
    assert np.array_equal(batch[:, ::2, ::2], pixels) and not batch[:, 1::2].any() and not batch[:, :, 1::2].any()


@pytest.mark.parametrize(("dtype", "codec", "edge"), [PACKINGS[1], PACKINGS[4], PACKINGS[6], PACKINGS[10]])
def test_damaged_frames_are_refused_or_read_within_bounds(
    tmp_path: Path, dtype: str, codec: tuple[str, int, str], edge: int
) -> None:
    spec, geometry, _, block = a_chunk(tmp_path, dtype, codec, edge)
    reader, rng = ChunkReader(spec, geometry), np.random.default_rng(7)
    batch = np.full((CHANNELS, edge + 2, edge), 77, dtype)
    refused = 0
    for case in range(400):
        harmed = bytearray(block)
        head = int(rng.integers(0, 64)) if case % 2 else int(rng.integers(0, len(block)))
        for at in range(head, min(head + int(rng.integers(1, 5)), len(block))):
            harmed[at] = int(rng.integers(256))
        if case % 5 == 0:
            del harmed[int(rng.integers(0, len(harmed))) :]
        if case % 7 == 0 and len(harmed) > 16:  # a lie about its length that fits what is there
            harmed[12:16] = struct.pack("<I", len(harmed))
        try:
            put(reader, bytes(harmed), 0, 0, batch[:, 1:-1])
        except (ValueError, RuntimeError):
            refused += 1
        assert (batch[:, [0, -1]] == 77).all()
    assert refused > 100


@pytest.mark.parametrize("lie", ["outside", "behind", "long", "none", "short"])
def test_a_block_that_lies_about_its_place_or_length_is_refused(tmp_path: Path, lie: str) -> None:
    spec, geometry, _, block = a_chunk(tmp_path, "uint8", (*LZ4, "bitshuffle"), 128)
    harmed = bytearray(block)
    (start,) = struct.unpack_from("<i", block, 16)
    if lie in ("outside", "behind"):
        struct.pack_into("<i", harmed, 16, len(block) + 9 if lie == "outside" else -4)
    elif lie in ("long", "none"):
        struct.pack_into("<i", harmed, start, len(block) if lie == "long" else 0)
    else:
        harmed = harmed[:17]
        struct.pack_into("<I", harmed, 12, 17)
    with pytest.raises(ValueError, match=r"lies outside|is cut"):
        put(ChunkReader(spec, geometry), bytes(harmed), 0, 0, np.empty((CHANNELS, 128, 128), np.uint8))


def test_a_row_of_chunks_is_cut_as_one_whatever_each_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four chunks one is laid out for blosc alone and one is stored as it is."""
    spec, geometry, _, _ = a_chunk(tmp_path, "uint8", (*LZ4, "bitshuffle"), 128)
    pixels = pixels_of(3, 1, CHANNELS, 128, 512)[0]
    pixels[..., 256:384] = np.random.default_rng(1).integers(0, 256, (CHANNELS, 128, 128))
    pixels[..., 128:256] //= 32  # else blosclz leaves it as it is
    parts = [np.ascontiguousarray(pixels[..., start : start + 128]) for start in range(0, 512, 128)]
    blocks = [encoder_of(spec)(piece) for piece in parts]
    blocks[1] = Blosc(cname="blosclz", clevel=5, shuffle=Blosc.SHUFFLE).encode(parts[1])
    assert blocks[1][2] >> 5 != blocks[0][2] >> 5 and len(blocks[2]) == parts[2].nbytes + 16
    whole, by_blosc = decode_blosc, []
    monkeypatch.setattr(chunks_module, "decode_blosc", lambda *given: by_blosc.append(whole(*given)))
    entries = np.array([[1000, len(block)] for block in blocks], np.uint64)
    reader, data = ChunkReader(spec, geometry), memoryview(b"".join(blocks))
    for number in range(8):
        batch = np.full((CHANNELS, 480, 480), 77, np.uint8)
        view = turned(batch, number)[:, 3:104, 5:465]
        reader.put(data, entries, 20, 33, view)
        assert np.array_equal(view, pixels[:, 20:121, 33:493])
        view[...] = 77
        assert (batch == 77).all()
    assert len(by_blosc) == 8


def test_the_chunk_that_is_damaged_is_the_one_that_is_refused(tmp_path: Path) -> None:
    spec, geometry, pixels, block = a_chunk(tmp_path, "uint16", (*LZ4, "shuffle"), 128)
    harmed = bytearray(block)
    harmed[4] ^= 1
    entries = np.array([[0, len(block)], [len(block), len(block)]], np.uint64)
    reader, out = ChunkReader(spec, geometry), np.zeros((CHANNELS, 128, 256), np.uint16)
    with pytest.raises(ValueError, match="its header does not fit its length"):
        reader.put(memoryview(block + bytes(harmed)), entries, 0, 0, out)
    assert np.array_equal(out[..., :128], pixels) and not out[..., 128:].any()
    with pytest.raises(ValueError, match="it is cut"):
        reader.put(memoryview(block + block[:-1]), entries, 0, 0, out)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_raw_chunks_are_cut_the_same_way(tmp_path: Path, dtype: str) -> None:
    spec, geometry, pixels, _ = a_chunk(tmp_path, dtype, (*LZ4, "shuffle"), 128)
    reader, block = ChunkReader(spec, geometry), pixels.tobytes()
    for (y, x, height, width), number in itertools.product(windows(128), range(8)):
        batch = np.full((CHANNELS, 137, 137), 77, dtype)
        view = turned(batch, number)[:, 3 : 3 + height, 5 : 5 + width]
        reader.put(memoryview(block), np.array([[0, len(block)]], np.uint64), y, x, view, is_raw=True)
        assert np.array_equal(view, pixels[:, y : y + height, x : x + width])
        view[...] = 77
        assert (batch == 77).all()
    with pytest.raises(ValueError, match="raw and has the wrong length"):
        reader.put(memoryview(block[:-2]), np.array([[0, len(block) - 2]], np.uint64), 0, 0, view, is_raw=True)


@pytest.mark.parametrize("codec", [LZ4, ZSTD])
def test_where_the_decoders_are_hidden_blosc_decodes(
    tmp_path: Path, codec: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, geometry, pixels, block = a_chunk(tmp_path, "uint8", (*codec, "bitshuffle"), 128)
    monkeypatch.setattr(chunks_module, "_decoders", lambda: (0, 0))
    out = np.zeros((CHANNELS, 100, 90), np.uint8)
    put(ChunkReader(spec, geometry), block, 9, 30, out)
    assert np.array_equal(out, pixels[:, 9:109, 30:120])


def test_the_decoders_are_found_here() -> None:
    """Else everything would be read, but slowly."""
    assert all(chunks_module._decoders())


@pytest.mark.parametrize(("dtype", "codec", "edge"), [PACKINGS[1], PACKINGS[10], PACKINGS[8]])
def test_a_harmed_stream_gives_what_blosc_gives_or_an_error(
    tmp_path: Path, dtype: str, codec: tuple[str, int, str], edge: int
) -> None:
    """Bytes of LZ4 and Zstandard streams changed at random: never pixels that blosc would not have read."""
    spec, geometry, pixels, block = a_chunk(tmp_path, dtype, codec, edge)
    reader, rng = ChunkReader(spec, geometry), np.random.default_rng(11)
    decoded, out, same = np.empty(pixels.nbytes, np.uint8), np.empty_like(pixels), 0
    for _ in range(300):
        harmed = bytearray(block)
        for _ in range(int(rng.integers(1, 4))):
            harmed[int(rng.integers(24, len(block)))] = int(rng.integers(256))
        try:
            put(reader, bytes(harmed), 0, 0, out)
        except (ValueError, RuntimeError):
            with pytest.raises((ValueError, RuntimeError)):
                decode_blosc(bytes(harmed), decoded)
            continue
        decode_blosc(bytes(harmed), decoded)
        assert np.array_equal(out.reshape(-1).view(np.uint8), decoded)
        same += 1
    assert same > 10

"""What is written into shards: byte for byte what blosc makes of the same chunks; checksums; planes that are read into place."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from google_crc32c import extend
from imagecodecs import _lz4
from numcodecs.blosc import Blosc

from phenomhpc.compiled import compiled
from phenomhpc.plates import Plane, UnreadableImage
from phenomhpc.store import checksum, crc_loops, encode, encode_loops
from phenomhpc.store import inplace as inplace_module
from phenomhpc.store.checksum import crc32c
from phenomhpc.store.encode import ChunkEncoder
from phenomhpc.store.inplace import ROOM_BYTES, FieldMemory
from phenomhpc.store.shards import Geometry, encoder_of
from phenomhpc.store.spec import DatasetSpec

CHANNELS, EDGE = 6, 300


def fields() -> dict[str, np.ndarray[Any, np.dtype[np.uint16]]]:
    """Pixels (C, H, W) whose halves LZ4 can and cannot compress, each in every way."""
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 2**16, (CHANNELS, EDGE, EDGE), np.uint16)
    ramp = np.arange(noise.size, dtype=np.uint16).reshape(noise.shape)
    patches = np.where(rng.random((CHANNELS, EDGE // 10, EDGE // 10)) < 0.5, 0, 2**16 - 1).astype(np.uint16)
    mixed = noise & np.kron(patches, np.ones((10, 10), np.uint16))
    return {
        "noise": noise,
        "camera": (noise & 0xFF) | (ramp >> 14 << 8),
        "flat": ramp >> 12,
        "low half flat": noise & 0xFF00,
        "mixed": mixed,
        "hardly": np.where(rng.random(noise.shape) < 0.03, 7, noise).astype(np.uint16),
        "zeros": np.zeros_like(noise),
        "beside noise": np.where(np.arange(EDGE) < 128, ramp >> 12, noise),
    }


def store_spec(codec: tuple[str, int, str] | None, edge: int) -> tuple[DatasetSpec, Geometry]:
    spec = DatasetSpec(channels=tuple("abcdef"), dtype="uint16", chunk_px=edge, fields_per_shard=1, codec=codec)
    return spec, Geometry(
        num_fields=1, num_channels=CHANNELS, height=EDGE, width=EDGE, chunk_px=edge, fields_per_shard=1
    )


@pytest.mark.parametrize("name", fields())
@pytest.mark.parametrize(("level", "edge"), [(5, 128), (5, 96), (3, 96), (9, 128), (1, 96), (5, 160), (5, 100)])
def test_chunks_are_byte_for_byte_bloscs(name: str, level: int, edge: int) -> None:
    spec, geometry = store_spec(("lz4", level, "shuffle"), edge)
    pixels = fields()[name]
    padded = np.zeros((CHANNELS, 2 * EDGE, 2 * EDGE), np.uint16)
    padded[:, :EDGE, :EDGE] = pixels
    apart = np.zeros((CHANNELS, EDGE, EDGE + 40), np.uint16)[:, :, :EDGE]  # rows with something between them
    apart[...] = pixels
    reference = Blosc("lz4", level, Blosc.SHUFFLE)
    for given in (
        pixels,
        apart,
        pixels.swapaxes(1, 2).copy().swapaxes(1, 2),
        np.frombuffer(pixels.tobytes(), "<u2").reshape(pixels.shape),
    ):
        encoder = ChunkEncoder(spec, geometry)
        encoder.begin(given)
        for room in (encoder.most_bytes, 2 * encoder.most_bytes + 5, 4 * encoder.most_bytes):
            memory = np.full(room + 3, 77, np.uint8)
            for y in range(0, EDGE, edge):
                x = 0
                while x < EDGE:
                    sizes, at = encoder.put(y, x, memory[1:-2]), 1
                    assert sizes
                    for size in sizes:
                        chunk = np.ascontiguousarray(padded[:, y : y + edge, x : x + edge])
                        assert memory[at : at + size].tobytes() == bytes(reference.encode(chunk))
                        at, x = at + size, x + edge
                assert x < EDGE + edge
            assert memory[0] == memory[-1] == memory[-2] == 77


def test_large_chunks_of_one_block_are_encoded_by_compiled_code() -> None:
    """Else the test above compares blosc with itself."""
    spec, geometry = store_spec(("lz4", 5, "shuffle"), 128)
    assert ChunkEncoder(spec, geometry)._split is not None
    for codec, edge in ((("zstd", 5, "shuffle"), 128), (("lz4", 5, "bitshuffle"), 128), (("lz4", 5, "shuffle"), 160)):
        assert ChunkEncoder(*store_spec(codec, edge))._split is None


def streams(rng: np.random.Generator, size: int) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Bytes of all the kinds that matter to LZ4: few and many values, runs, repeats near and far, long literals."""
    noise = rng.integers(0, 256, size)
    for values in (2, 5, 200):
        yield (noise % values).astype(np.uint8)
    for longest in (3, 40, 5000):
        yield np.repeat(noise, rng.integers(1, longest, size))[:size].astype(np.uint8)
    for period in (1, 7, 4000, 65535, 65536, 65537):
        repeated = np.resize(noise[:period], size)
        yield np.where(rng.random(size) < 1e-3, noise, repeated).astype(np.uint8)
    yield np.where(np.abs(np.arange(size) - size // 2) < size // 8, 9, noise).astype(np.uint8)
    yield rng.poisson(0.4, size).astype(np.uint8)
    yield np.where(noise < 100, 0, noise).astype(np.uint8)


def test_two_streams_are_what_lz4_makes_of_each() -> None:
    """Also where LZ4 gives up, and nothing behind the room that is given is touched."""
    lz4 = ctypes.CDLL(_lz4.__file__).LZ4_compress_fast
    rng = np.random.default_rng(11)
    tables = np.empty((2, encode_loops.TABLE_ENTRIES), np.uint32)
    for size in (encode_loops.LEAST_BYTES, 98304, 131077):
        kinds = list(streams(rng, size))
        for number, given in enumerate(zip(kinds, kinds[1:] + kinds[:1], strict=True)):
            effort, rooms = 1 + 4 * (number % 3), [size, size]
            held = [np.append(stream, np.zeros(8, np.uint8)) for stream in given]  # what is read behind it
            sources = [stream.ctypes.data for stream in held]
            for change in (0, 0, -1, 9):
                expected, out = np.zeros((2, size + 64), np.uint8), np.full((2, size + 64), 77, np.uint8)
                wanted = tuple(
                    lz4(ctypes.c_void_p(source), ctypes.c_void_p(to.ctypes.data), size, room, effort)
                    for source, to, room in zip(sources, expected, rooms, strict=True)
                )
                (to_a, to_b), (room_a, room_b) = (one.ctypes.data for one in out), rooms
                found = encode_loops.compress_pair(
                    *sources, size, effort, to_a, to_a + room_a, to_b, to_b + room_b, tables.ctypes.data
                )
                assert found == wanted
                for one, other, num, room in zip(out, expected, wanted, rooms, strict=True):
                    assert np.array_equal(one[:num], other[:num]) and (one[room:] == 77).all()
                rooms = [min(size, max(1, (num or room) + change)) for num, room in zip(wanted, rooms, strict=True)]


def test_a_row_of_chunks_is_one_call() -> None:
    spec, geometry = store_spec(("lz4", 5, "shuffle"), 96)
    encoder = ChunkEncoder(spec, geometry)
    encoder.begin(fields()["camera"])
    for num in (1, 2, 3, 4):
        sizes = encoder.put(96, 0, np.empty(num * encoder.most_bytes, np.uint8))
        assert len(sizes) >= min(num, 3) and len(sizes) <= EDGE // 96


def test_an_lz4_that_finds_other_matches_or_cannot_be_found_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [ctypes.c_int] * 3
    none_found = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *numbers)(lambda *given: 0)
    pixels = fields()["camera"]
    for address in (ctypes.cast(none_found, ctypes.c_void_p).value, 0):
        monkeypatch.setattr(encode, "_lz4_address", lambda address=address: address)
        encode._as_blosc.cache_clear()
        try:
            encoder = ChunkEncoder(*store_spec(("lz4", 5, "shuffle"), 128))
        finally:
            encode._as_blosc.cache_clear()
        assert encoder._split is None
        encoder.begin(pixels)
        out = np.empty(encoder.most_bytes, np.uint8)
        (size,) = encoder.put(0, 128, out)
        chunk = np.ascontiguousarray(pixels[:, :128, 128:256])
        assert out[:size].tobytes() == bytes(Blosc("lz4", 5, Blosc.SHUFFLE).encode(chunk))


def test_a_field_of_zeros_and_raw_chunks() -> None:
    for codec in (None, ("lz4", 5, "shuffle")):
        spec, geometry = store_spec(codec, 128)
        encoder = ChunkEncoder(spec, geometry)
        out = np.empty(encoder.most_bytes, np.uint8)
        for pixels in (fields()["noise"], None):
            encoder.begin(pixels)
            chunk = np.zeros((CHANNELS, 128, 128), np.uint16)
            if pixels is not None:
                chunk[:, : EDGE - 256, :] = pixels[:, 256:, :128]
            (size,) = encoder.put(256, 0, out)
            assert out[:size].tobytes() == bytes(encoder_of(spec)(chunk))


SIZES = [0, 1, 7, 8, 9, 255, 256, 257, 511, 1024, 6143, 6144, 6145, 100_001]


@pytest.mark.parametrize("size", SIZES)
def test_compiled_sums_are_crc32c(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum, "COMPILED_BYTES", 0)
    data = np.random.default_rng(size).integers(0, 256, size + 3, np.uint8)
    for first in range(4):
        for begun in (0, 1, 2**32 - 1, 0x12345678):
            part = data[first : first + size]
            assert crc32c(part, begun) == extend(begun, part.tobytes())


@pytest.mark.skipif(not crc_loops.HAS_FOLD, reason="the test above is of that code")
def test_sums_by_the_code_of_older_processors_are_crc32c() -> None:
    older = compiled(crc_loops.SIGNATURE)(crc_loops.by_stretches)
    for size in SIZES:
        data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
        for begun in (0, 0x12345678):
            assert older(begun, data, crc_loops.MOVED, crc_loops.SINGLE) == extend(begun, data.tobytes())


# -- planes that are read to where they belong ------------------------------------------------------------------------


def a_tiff(path: Path, pixels: Any, **options: Any) -> Plane:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **options)
    path.write_bytes(buffer.getvalue())
    return Plane(path)


def test_raw_planes_are_read_into_place_wherever_they_begin(tmp_path: Path) -> None:
    """Headers of any length, tiles of a strip, text behind; the sum is that of all planes, in place or moved."""
    noise = fields()["noise"]
    memory = FieldMemory(noise.shape, np.dtype("<u2"))
    options: list[dict[str, Any]] = [{}, {}, {"description": "x" * 5000}, {"rowsperstrip": 7}, {"bigtiff": True}, {}]
    for _ in range(2):
        memory.begin()
        for channel, plane in enumerate(noise):
            file = a_tiff(tmp_path / "a.tif", plane, **options[channel])
            data = memory.read(channel, file)
            assert data is not None and bytes(data) == file.path.read_bytes()
            assert memory.settle(channel, file, data)
            assert np.array_equal(memory.pixels[: channel + 1], noise[: channel + 1])
        assert memory.checksum() == extend(0, noise.tobytes())


def test_what_is_no_raw_plane_is_left_to_others(tmp_path: Path) -> None:
    noise = fields()["noise"]
    memory = FieldMemory(noise.shape, np.dtype("<u2"))
    for options in ({"compression": "zlib"}, {"byteorder": ">"}, {"tile": (64, 64)}):
        file = a_tiff(tmp_path / "a.tif", noise[0], **options)
        data = memory.read(0, file)
        assert data is None or not memory.settle(0, file, data)
    for other in (noise[0, :-1], noise[0].astype(np.uint32), noise[0].reshape(EDGE // 2, EDGE * 2)):
        file = a_tiff(tmp_path / "a.tif", other)
        data = memory.read(0, file)
        assert data is None or not memory.settle(0, file, data)
    (tmp_path / "a.tif").write_bytes(b"x" * (noise[0].nbytes + 100))
    data = memory.read(0, Plane(tmp_path / "a.tif"))
    assert data is not None and not memory.settle(0, Plane(tmp_path / "a.tif"), data)
    (tmp_path / "a.tif").write_bytes(b"x" * (noise[0].nbytes + 2 * ROOM_BYTES))
    assert memory.read(0, Plane(tmp_path / "a.tif")) is None


def test_a_cut_header_is_refused_in_place_too(tmp_path: Path) -> None:
    """The pixels are all there, what lies behind them is not."""
    noise = fields()["noise"]
    memory = FieldMemory(noise.shape, np.dtype("<u2"))
    file = a_tiff(tmp_path / "a.tif", noise[0])
    whole = bytearray(file.path.read_bytes())
    entries = int.from_bytes(whole[8:10], "little")
    at = 10 + 12 * (entries - 1)
    whole[at : at + 12] = b"\x0f\x01\x02\x00" + (500).to_bytes(4, "little") + len(whole).to_bytes(4, "little")
    file.path.write_bytes(whole)
    data = memory.read(0, file)
    assert data is not None
    with pytest.raises(UnreadableImage, match="truncated"):
        memory.settle(0, file, data)


def test_memory_is_taken_up_by_the_next_field_only_when_it_is_free() -> None:
    shape, dtype = (2, 30, 40), np.dtype("<u2")
    inplace_module._spare.clear()
    first = FieldMemory(shape, dtype)
    first.close()
    second, third = FieldMemory(shape, dtype), FieldMemory(shape, dtype)
    assert np.shares_memory(first.pixels, second.pixels)
    assert not np.shares_memory(second.pixels, third.pixels)
    second.close()
    assert not np.shares_memory(FieldMemory((2, 40, 40), dtype).pixels, second.pixels)

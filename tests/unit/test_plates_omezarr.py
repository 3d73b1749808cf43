"""OME-Zarr plates as input: arrays of every kind, metadata of many writers, damage, incomplete copies, hostile files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from numcodecs import LZ4, Blosc, Delta, GZip, Zlib, Zstd
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from phenomhpc.errors import SET_ASIDE, UsageError
from phenomhpc.plates import (
    Plane,
    Plate,
    ReadOptions,
    UnreadableImage,
    decode_plane,
    find_plates,
    named_plane,
    plane_bytes,
    plane_name,
    plane_shape,
    plane_stat,
    read_plate,
)
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.plates.synthetic.layouts import write_layout
from phenomhpc.progress import silent
from phenomhpc.store import open_store
from phenomhpc.store.verify import verify
from tests.unit.test_plates_layouts import convert, stored

PIXELS = np.random.default_rng(5).integers(0, 4000, (2, 3, 45, 70)).astype(np.uint16)
PIXELS[1, 2, :, :40] = 0

SPEC = SyntheticSpec(
    experiments=1, plates_per_experiment=1, plate_rows=1, plate_columns=3, field_px=70, num_genes=1, num_unexpressed=0,
    image_format="tif", dtype="uint16",
)  # fmt: skip


def planes_of(folder: Path) -> np.ndarray:  # type: ignore[type-arg]
    """Read plane by plane; into a buffer of the right kind and into none."""
    read = []
    for index in np.ndindex(PIXELS.shape[:2]):
        plane = Plane(folder, index)
        assert plane_shape(plane) == (45, 70, str(PIXELS.dtype))
        out = np.full((45, 70), 7, np.uint16)
        found = decode_plane(plane, plane_bytes(plane), out)
        assert found is out and np.array_equal(found, decode_plane(plane, plane_bytes(plane)))
        read.append(found)
    return np.array(read).reshape(PIXELS.shape)


# -- arrays -----------------------------------------------------------------------------------------------------------

V3 = {
    "plain": {},
    "raw": {"compressors": None},
    "blosc": {"compressors": BloscCodec(cname="lz4", shuffle="bitshuffle")},
    "gzip+crc": {"compressors": [GzipCodec(), Crc32cCodec()]},
    "zstd": {"compressors": ZstdCodec(level=3), "chunk_key_encoding": {"name": "default", "separator": "."}},
    "v2 names": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "big endian": {"serializer": BytesCodec(endian="big")},
    "sharded": {"shards": (2, 3, 48, 96), "compressors": BloscCodec()},
    "shards of the rest": {"shards": (1, 2, 32, 64), "compressors": None},
    "shards of one chunk": {"chunks": (1, 1, 48, 96), "shards": (1, 1, 48, 96)},
    "stacks in a chunk": {"chunks": (2, 3, 45, 70)},
}
V2 = {
    "blosc": {"compressors": Blosc()},
    "raw": {"compressors": None},
    "zlib": {"compressors": Zlib()},
    "gzip": {"compressors": GZip()},
    "lz4": {"compressors": LZ4()},
    "zstd": {"compressors": Zstd(), "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "order F": {"order": "F", "compressors": None},
    "big endian": {"dtype": ">u2"},
}


@pytest.mark.parametrize(
    ("version", "how"), [(3, name) for name in V3] + [(2, name) for name in V2], ids=lambda value: str(value)
)
def test_arrays_that_zarr_writes(version: int, how: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"chunks": (1, 1, 16, 32), "dtype": "uint16", **(V3 if version == 3 else V2)[how]}
    array = zarr.create_array(tmp_path / "a", shape=PIXELS.shape, zarr_format=version, fill_value=0, **settings)  # type: ignore[arg-type]
    array[...] = PIXELS
    assert np.array_equal(planes_of(tmp_path / "a"), PIXELS)


@pytest.mark.parametrize("place", ["start", "end"])
def test_shards_that_tensorstore_writes(place: str, tmp_path: Path) -> None:
    inner = {"chunk_shape": [1, 1, 16, 16], "index_location": place, "codecs": [{"name": "zstd"}]}
    spec = {
        "driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "a")},
        "metadata": {
            "shape": PIXELS.shape, "data_type": "uint16",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 3, 48, 80]}},
            "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        },
    }  # fmt: skip
    tensorstore.open(spec, create=True).result()[...].write(PIXELS).result()
    assert np.array_equal(planes_of(tmp_path / "a"), PIXELS)


def test_what_is_hashed_is_the_metadata_and_the_chunks_of_the_plane_alone(tmp_path: Path) -> None:
    """A chunk of a plane that changes changes its bytes and its stat, and no other plane's."""
    write(tmp_path / "a", {})
    planes = [Plane(tmp_path / "a", index) for index in np.ndindex(2, 3)]
    before = [(plane_bytes(plane), plane_stat(plane)) for plane in planes]
    chunk = tmp_path / "a" / "c/1/0/2/1"
    data = bytearray(chunk.read_bytes())
    status = chunk.stat()
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    os.utime(chunk, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after = [(plane_bytes(plane), plane_stat(plane)) for plane in planes]
    assert [old[0] != new[0] for old, new in zip(before, after, strict=True)] == [
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    assert [old[1] != new[1] for old, new in zip(before, after, strict=True)] == [
        False,
        False,
        False,
        True,
        False,
        False,
    ]


def write(folder: Path, changes: dict[str, Any], pixels: np.ndarray = PIXELS) -> None:  # type: ignore[type-arg]
    settings: dict[str, Any] = {"chunks": (1, 1, 16, 32), "compressors": ZstdCodec(), **changes}
    array = zarr.create_array(folder, shape=pixels.shape, dtype=pixels.dtype, fill_value=9, **settings)  # type: ignore[arg-type]
    array[...] = pixels


@pytest.mark.parametrize("shards", [None, (1, 3, 48, 96)])
def test_a_missing_chunk_is_the_fill_value_and_a_plane_without_any_is_missing(
    shards: tuple[int, ...] | None, tmp_path: Path
) -> None:
    pixels = PIXELS.copy()
    pixels[0, 1, :16, :32] = 9
    pixels[1, 2] = 9
    write(tmp_path / "a", {"shards": shards}, pixels)
    plane = Plane(tmp_path / "a", (0, 1))
    assert np.array_equal(decode_plane(plane, plane_bytes(plane)), pixels[0, 1])
    with pytest.raises(FileNotFoundError, match="no chunk of it is there; is the copy complete"):
        plane_bytes(Plane(tmp_path / "a", (1, 2)))
    shutil.rmtree(tmp_path / "a" / "c")
    assert plane_shape(plane) == (45, 70, "uint16")
    with pytest.raises(FileNotFoundError):
        plane_bytes(plane)


@pytest.mark.parametrize("how", ["zstd", "gzip+crc", "sharded", "blosc", "raw"])
def test_a_chunk_that_is_cut_is_no_chunk(how: str, tmp_path: Path) -> None:
    write(tmp_path / "a", V3[how])
    (chunk, *_) = sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file() and path.name != "zarr.json")
    whole = chunk.read_bytes()
    plane = Plane(tmp_path / "a", (0, 0))
    for size in {0, 1, 3, 4, 15, 16, len(whole) // 2, len(whole) - 1}:
        chunk.write_bytes(whole[:size])
        with pytest.raises(UnreadableImage) as caught:
            decode_plane(plane, plane_bytes(plane))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["gzip+crc", "sharded with crc"])
def test_one_flipped_bit_is_found_where_the_array_has_checksums(how: str, tmp_path: Path) -> None:
    inner = [BloscCodec(), Crc32cCodec()]
    write(tmp_path / "a", {"shards": (1, 1, 48, 96), "compressors": inner} if "sharded" in how else V3[how])
    (chunk, *_) = sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file() and path.name != "zarr.json")
    whole, plane = chunk.read_bytes(), Plane(tmp_path / "a", (0, 0))
    for at in range(0, len(whole), 37):
        chunk.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises((UnreadableImage, FileNotFoundError)):
            decode_plane(plane, plane_bytes(plane))


def test_a_frame_that_holds_less_than_a_chunk_gives_no_pixels_that_nobody_wrote(tmp_path: Path) -> None:
    write(tmp_path / "a", {})
    (tmp_path / "a" / "c/0/0/0/0").write_bytes(Zstd().encode(b"\1" * 100))
    with pytest.raises(UnreadableImage, match="a chunk of 100 bytes, 1024 are needed"):
        decode_plane(Plane(tmp_path / "a", (0, 0)), plane_bytes(Plane(tmp_path / "a", (0, 0))))
    (tmp_path / "a" / "c/0/0/0/0").write_bytes(Zstd().encode(bytes(10**8)))
    with pytest.raises(UnreadableImage, match="cannot be decoded"):
        decode_plane(Plane(tmp_path / "a", (0, 0)), plane_bytes(Plane(tmp_path / "a", (0, 0))))


def test_what_is_not_read_is_said_in_one_line(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "f", shape=(4, 4), dtype="float32", chunks=(4, 4))
    zarr.create_array(
        tmp_path / "t", shape=(4, 4), dtype="uint16", chunks=(4, 4), filters=[TransposeCodec(order=(1, 0))]
    )
    zarr.create_array(
        tmp_path / "d", shape=(4, 4), dtype="uint16", chunks=(4, 4), filters=[Delta(dtype="<u2")], zarr_format=2
    )
    nested = ShardingCodec(chunk_shape=(2, 2))
    zarr.create_array(tmp_path / "n", shape=(4, 4), dtype="uint16", chunks=(4, 4), shards=(8, 8), serializer=nested)
    for name, words in (
        ("f", "has dtype float32, neither uint8 nor uint16"), ("t", "has the codec 'transpose'; bytes, blosc"),
        ("d", "has the codec 'filters'"), ("n", "has the codec 'sharding_indexed'"),
    ):  # fmt: skip
        with pytest.raises(UnreadableImage, match=words):
            plane_shape(Plane(tmp_path / name, ()))


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "huge": (lambda said: said.update(shape=[2, 3, 10**9, 10**9]), "claims 1000000000x1000000000 pixels"),
    "huge chunk": (
        lambda said: said["chunk_grid"]["configuration"].update(chunk_shape=[2, 3, 2**30, 2**30]), "claims chunks of"
    ),
    "tiny chunks": (
        lambda said: (said.update(shape=[2, 3, 8192, 8192]), said["chunk_grid"]["configuration"].update(chunk_shape=[1] * 4)),
        "claims too many chunks",
    ),
    "negative": (lambda said: said.update(shape=[2, 3, -45, 70]), "senseless Zarr metadata .sizes"),
    "text": (lambda said: said.update(shape="many"), "senseless Zarr metadata"),
    "no codecs": (lambda said: said.pop("codecs"), "lacks 'codecs'"),
    "wild name": (
        lambda said: said.update(chunk_key_encoding={"name": "default", "configuration": {"separator": "/../../"}}),
        "senseless Zarr metadata .its separator",
    ),
    "fill": (lambda said: said.update(fill_value="NaN"), "fill value NaN"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_metadata_are_refused_before_anything_is_made_for_them(kind: str, tmp_path: Path) -> None:
    write(tmp_path / "a", {})
    path = tmp_path / "a" / "zarr.json"
    said = json.loads(path.read_bytes())
    change, words = HOSTILE[kind]
    change(said)
    path.write_text(json.dumps(said))
    for look in (plane_shape, plane_bytes):
        with pytest.raises(UnreadableImage, match=words):
            look(Plane(tmp_path / "a", (0, 0)))


def test_deeply_nested_json_and_indices_that_an_array_does_not_have(tmp_path: Path) -> None:
    write(tmp_path / "a", {})
    for index in ((), (0,), (2, 0), (0, -1), (0, 0, 0)):
        with pytest.raises(UnreadableImage, match="has no plane"):
            plane_bytes(Plane(tmp_path / "a", index))
    (tmp_path / "a" / "zarr.json").write_text("[" * 10**6)
    with pytest.raises(UnreadableImage, match=r"is no JSON"):
        plane_shape(Plane(tmp_path / "a", (0, 0)))


def test_names_of_planes(tmp_path: Path) -> None:
    write(tmp_path / "P.zarr" / "A" / "1" / "0" / "0", {})
    (tmp_path / "P.zarr" / "odd@1.tif").touch()
    plane = Plane(tmp_path / "P.zarr/A/1/0/0", (1, 0))
    assert plane_name(plane, tmp_path / "P.zarr") == "A/1/0/0@1,0" == plane_name(plane)
    assert named_plane("A/1/0/0@1,0", tmp_path / "P.zarr") == plane
    for name in ("odd@1.tif", "gone.tif", "A@x/gone.tif", "B/1/0/0@1"):
        assert named_plane(name, tmp_path / "P.zarr") == Plane(tmp_path / "P.zarr" / name)


# -- plates -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> Plate:
    folder = tmp_path_factory.mktemp("plate")
    write_plates(folder, SPEC, silent(), workers=1)
    return read_plate(find_plates([str(folder)])[0])


@pytest.fixture(params=["omezarr", "omezarr-4"])
def written(request: pytest.FixtureRequest, plate: Plate, tmp_path: Path) -> Path:
    return write_layout(plate, tmp_path / "raw", request.param)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the OME-Zarr metadata of a group, 0.5 or 0.4."""
    new = (folder / "zarr.json").is_file()
    path = folder / ("zarr.json" if new else ".zattrs")
    said = json.loads(path.read_bytes())
    change(said["attributes"]["ome"] if new else said)
    path.write_text(json.dumps(said))


def read(folder: Path, **options: Any) -> Plate:
    return read_plate(find_plates([str(folder)], "omezarr")[0], ReadOptions(**options))


def chunks(image: Path) -> list[Path]:
    return sorted(path for path in (image / "0").rglob("*") if path.is_file() and path.name[0].isdigit())


def test_damage_sets_fields_aside_by_name_and_verify_finds_what_changes_later(written: Path, tmp_path: Path) -> None:
    for chunk in chunks(written / "A/2/1"):
        chunk.write_bytes(chunk.read_bytes()[:20])
    shutil.rmtree(written / "A/3/1/0")
    summary = convert(tmp_path, written, max_set_aside=0.9)
    assert summary.exit_code == SET_ASIDE
    said = dict(summary.set_aside)
    assert "A/2/1/0@0: has a" in said["SYN-01__1 A02 site 1"]
    assert (
        "neither zarr.json nor .zarray" in said["SYN-01__1 A03 site 1"]
        or "No such file" in said["SYN-01__1 A03 site 1"]
    )
    store = open_store(tmp_path / "store")
    assert verify(store, silent()).damage == ()
    chunk = chunks(written / "A/1/1")[0]
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    damage = verify(store, silent()).damage
    assert damage and {entry.reason for entry in damage} <= {
        "the source is not what was converted", "the source has a shard index that does not match its checksum"
    }  # fmt: skip
    assert all("A/1/1/0@" in entry.thing for entry in damage)
    # Of a shard whose index is cut there is nothing to hash.
    hashed = 6 if (written / "zarr.json").is_file() else 12
    shutil.rmtree(written)
    assert verify(store, silent()).absent_sources == hashed and verify(store, silent()).damage == ()


def test_a_plane_without_chunks_is_missing_and_what_is_put_right_is_converted(written: Path, tmp_path: Path) -> None:
    kept = shutil.copytree(written / "A/2/1/0", tmp_path / "kept")
    for chunk in chunks(written / "A/2/1"):
        chunk.unlink()
    summary = convert(tmp_path, written, max_set_aside=0.9)
    assert [reason.split(": ", 1)[1] for _, reason in summary.set_aside] == [
        "A/2/1/0@0: no chunk of it is there; is the copy complete?"
    ]
    assert not stored(tmp_path)[1].any()
    shutil.copytree(kept, written / "A/2/1/0", dirs_exist_ok=True)
    assert convert(tmp_path, written).exit_code == 0 and stored(tmp_path)[1].any()
    assert verify(open_store(tmp_path / "store"), silent()).damage == ()


def test_metadata_of_other_writers(written: Path) -> None:
    """Only what was imaged is listed; no omero; nanometres, and a scale for all levels; images counted from 0."""

    def sparse(said: dict[str, Any]) -> None:
        said["plate"] |= {"rows": [{"name": "A"}], "columns": [{"name": "2"}, {"name": "03"}]}
        said["plate"]["wells"] = [{"path": "A/03", "rowIndex": 0, "columnIndex": 1}, {"path": "A/2"}]

    def image(said: dict[str, Any]) -> None:
        said.pop("omero")
        scales = said["multiscales"][0]
        for axis in scales["axes"][1:]:
            axis["unit"] = "nanometer"
        scales["datasets"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [1, 2.0, 2.0]}]
        scales["coordinateTransformations"] = [
            {"type": "scale", "scale": [1, 300, 300]}, {"type": "translation", "translation": [0, -5000, 7000]}
        ]  # fmt: skip

    (written / "A/3").rename(written / "A/03")
    edit(written, sparse)
    for well in ("2", "03"):
        (written / "A" / well / "1").rename(written / "A" / well / "0")
        edit(written / "A" / well, lambda said: said["well"].update(images=[{"path": "0"}]))
        edit(written / "A" / well / "0", image)
    plate = read(written)
    assert [(field.well.name, field.site) for field in plate.fields] == [("A02", 0), ("A03", 0)]
    assert (plate.rows, plate.columns) == (8, 12) and read(written, plate_format=384).columns == 24
    assert [channel.name for channel in plate.channels] == [f"ch{number}" for number in range(1, 7)]
    field = plate.fields[0]
    assert (field.pixel_size_um, field.position_x_um, field.position_y_um) == pytest.approx((0.6, 7.0, -5.0))


def test_acquisitions_of_the_same_channels_are_timepoints_and_of_others_strays(written: Path) -> None:
    for name, acquisition in (("2", 7), ("3", 9)):
        shutil.copytree(written / "A/1/1", written / "A/1" / name)
        images = [{"path": "1", "acquisition": 4}, {"path": "2", "acquisition": 7}, {"path": "3", "acquisition": 9}]
        edit(written / "A/1", lambda said, images=images: said["well"].update(images=images))  # type: ignore[misc]
        if acquisition == 9:
            edit(written / "A/1/3", lambda said: said["omero"]["channels"][0].update(label="other"))
    plate = read(written)
    assert [(field.well.name, field.site, field.timepoint) for field in plate.fields] == [
        ("A01", 1, 1), ("A01", 1, 2), ("A02", 1, 1), ("A03", 1, 1)
    ]  # fmt: skip
    assert [(thing, reason.split(",")[0]) for thing, reason in plate.strays] == [("A/1/3/0", "has the channels 'other")]


WRONG: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "axes": ("A/2/1", lambda said: said["multiscales"][0].update(axes=[{"name": n} for n in "cxy"]), "its axes are 'cxy'"),
    "version": ("A/2/1", lambda said: (said.update(version="9.9")), "is OME-Zarr '9.9'; 0.4 and 0.5 are read"),
    "path": (
        "A/2/1", lambda said: said["multiscales"][0]["datasets"][0].update(path="../../../x"), "leaves the plate's folder"
    ),
    "scale": (
        "A/2/1",
        lambda said: said["multiscales"][0]["datasets"][0].update(
            coordinateTransformations=[{"type": "scale", "scale": [1]}]
        ),
        "its scale has 1 numbers for 3 axes",
    ),
    "channels": (
        "A/2/1", lambda said: said["omero"]["channels"][2].update(label="other"), "it has the channels 'DNA, ER, other"
    ),
    "nothing": ("A/2/1", lambda said: said.pop("multiscales"), "its multiscales are no list"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_an_image_whose_metadata_are_wrong_keeps_its_slot_with_the_reason(kind: str, written: Path) -> None:
    place, change, words = WRONG[kind]
    edit(written / place, change)
    plate = read(written)
    assert [field.problem is None for field in plate.fields] == [True, False, True]
    problem = plate.fields[1].problem
    assert problem is not None and words in problem[1] and "image A/2/1" in problem[1]
    assert problem[0] == {"path": "hostile", "channels": "bad_shape"}.get(kind, "unreadable")


def test_wells_and_images_that_have_no_place_are_strays_and_a_senseless_plate_is_refused(
    written: Path, tmp_path: Path
) -> None:
    def more(said: dict[str, Any]) -> None:
        said["plate"]["wells"] += [
            {"path": "../B/1"}, {"path": "A/1"}, {"path": "B/9", "rowIndex": 0, "columnIndex": 8}, 7, {"path": "C/1"}
        ]  # fmt: skip

    edit(written, more)
    edit(written / "A/1", lambda said: said["well"]["images"].extend([{"path": "../../B"}, {"path": "1"}, {}]))
    plate = read(written)
    assert len(plate.fields) == 3
    reasons = [reason for _, reason in plate.strays]
    assert sum("is no path of an image" in reason for reason in reasons) == 3 and len(reasons) == 8
    assert any("listed twice" in reason for reason in reasons) and any("two wells" in reason for reason in reasons)
    edit(written, lambda said: said["plate"].update(rows=[{"name": str(n)} for n in range(99)]))
    with pytest.raises(UsageError, match="no plate has 99 x 12 wells"):
        read(written)
    edit(written, lambda said: said["plate"].update(rows="ABC"))
    with pytest.raises(UsageError, match="its rows are no list"):
        read(written)
    for image in written.glob("A/*/1"):
        shutil.rmtree(image)
    edit(written, lambda said: said["plate"].update(rows=[{"name": "A"}]))
    with pytest.raises(UsageError, match=r"no image that can be read \(first: image A/1/1"):
        read(written)


def test_a_plate_of_a_codec_that_is_not_read_is_refused_in_one_line(written: Path, tmp_path: Path) -> None:
    for image in written.glob("A/*/1/0"):
        shutil.rmtree(image)
        zarr.create_array(image, shape=(6, 70, 70), dtype="float32", chunks=(1, 70, 70))
    with pytest.raises(UsageError, match="has dtype float32, neither uint8 nor uint16") as caught:
        convert(tmp_path, written)
    assert "\n" not in str(caught.value)

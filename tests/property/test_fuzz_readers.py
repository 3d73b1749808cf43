"""Raw plates mutated at random: never a hang, a crash, a wrong pixel, another exception, or a write outside the store.

Each case runs in a process of its own, with a time limit; its number alone makes it again (PHENOMHPC_FUZZ_FIRST).
"""

from __future__ import annotations

import faulthandler
import hashlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from phenomhpc.config import ConvertConfig
from phenomhpc.errors import PhenomError
from phenomhpc.jobs.survey import geometry_of, spec_of, survey_plate
from phenomhpc.plates import Plane, find_plates, named_plane, plane_bytes, read_plate
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.plates.synthetic.layouts import WRITERS, write_layout
from phenomhpc.progress import silent
from phenomhpc.store import create_store
from phenomhpc.store.convert import Work, convert_unit, shard_unit
from phenomhpc.store.fieldpixels import Treatment
from phenomhpc.store.shards import write_array_metadata
from phenomhpc.store.verify import check_shard

SOAK = bool(os.environ.get("PHENOMHPC_SOAK"))
CASES = 10_000 if SOAK else 200
FIRST = int(os.environ.get("PHENOMHPC_FUZZ_FIRST", "0"))
LIMIT_S = 30
SPEC = SyntheticSpec(
    experiments=1, plates_per_experiment=1, plate_rows=1, plate_columns=4, field_px=32, num_genes=1, num_unexpressed=0,
    dtype="uint16",
)  # fmt: skip
INDEX = (".xml", ".mlf", ".mrf", ".mes", ".htd", ".csv", ".json", ".zattrs", ".zarray", ".zgroup")
BOMB = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><x>&b;</x>'


@pytest.fixture(scope="module")
def raws(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small plate in every layout, and in RxRx with every kind of image."""
    folder = tmp_path_factory.mktemp("fuzz")
    found: dict[str, Path] = {}
    for ending in ("png", "jp2", "tif"):
        write_plates(folder / ending, replace(SPEC, image_format=ending), silent(), workers=1)  # type: ignore[arg-type]
        found[f"rxrx-{ending}"] = folder / ending / "SYN-01" / "Plate1"
    plate = read_plate(find_plates([str(found["rxrx-tif"])])[0])
    plate = replace(plate, fields=plate.fields[:3])
    for layout in WRITERS:
        write_layout(plate, folder / layout, layout, stack=1)
        found[layout] = folder / layout
    return found


@pytest.mark.timeout(7200 if SOAK else 400)
def test_mutated_plates_never_hang_crash_or_give_a_wrong_pixel(raws: dict[str, Path], tmp_path: Path) -> None:
    names = sorted(raws)
    ends: dict[str, int] = {}
    for number in range(FIRST, FIRST + CASES):
        end = case(raws[names[number % len(names)]], tmp_path / f"{number}", number)
        assert end in ("refused", "converted", "set aside"), f"case {number} ({names[number % len(names)]}): {end}"
        ends[end] = ends.get(end, 0) + 1
        shutil.rmtree(tmp_path / f"{number}")
    assert min(ends.get(end, 0) for end in ("refused", "converted", "set aside")) >= CASES // 50, ends


def case(source: Path, folder: Path, number: int) -> str:
    """How a conversion of a mutated copy ends: in a forked child, so that nothing it does harms the next."""
    raw = folder / "raw" / "EXP" / "P"
    shutil.copytree(source, raw)
    rng = random.Random(f"fuzz {number}")
    for _ in range(rng.choice((1, 1, 1, 3))):
        mutate(raw, rng)
    before = listing(folder)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        faulthandler.disable()
        signal.alarm(LIMIT_S)
        try:
            words = convert(raw, folder, source)
        except PhenomError as error:
            words = "refused" if "\n" not in str(error) else f"more than one line: {error}"
        except BaseException:
            words = traceback.format_exc()
        os.write(writing, words.encode()[:60_000])
        sys.stderr.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        words = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    after = {path: what for path, what in listing(folder).items() if not path.startswith("store/")}
    return words if after == before else f"wrote outside the store: {sorted(set(after) ^ set(before))}"


def listing(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def convert(raw: Path, folder: Path, source: Path) -> str:
    """Convert without the run around it; compare every stored plane with what another reader makes of its source."""
    config = ConvertConfig(plates=(str(raw),), store=str(folder / "store"), runs=str(folder / "runs"))
    set_aside = 0
    for found in find_plates(config.plates, config.layout):
        survey, plate = survey_plate(found, config, None)
        if plate is None:
            return "refused"
        spec = spec_of(config, [survey])
        assert spec is not None
        geometry = geometry_of(config, survey, spec)
        store = create_store(config.store, spec)
        write_array_metadata(store.paths, plate.key, spec, geometry)
        work = Work(attempt=1, task=0, token="fuzz", check_fence=lambda: None)
        for shard in range(geometry.num_shards):
            unit = shard_unit(plate.key, spec, geometry, shard)
            record = convert_unit(store, plate, geometry, unit, work, Treatment(), lambda num_bytes: None)
            damage = check_shard(store, plate.key, geometry, shard, record.rows)
            assert not damage, damage
            set_aside += len(record.set_aside)
            compare(store.paths.images(plate.key), plate.root, record.rows, source / plate.root.relative_to(raw))
    return "set aside" if set_aside else "converted"


def compare(images: Path, root: Path, rows: tuple[dict[str, object], ...], pristine: Path) -> None:
    """Of a source whose header tifffile does not understand any more: what its pixels are under the header that it had."""
    import zarr

    array = zarr.open_array(images, mode="r")
    for row in rows:
        if row["status"] != "ok":
            continue
        stored = np.asarray(array[int(row["field_index"])])  # type: ignore[call-overload]
        for channel, source in enumerate(row["sources"]):  # type: ignore[call-overload,var-annotated,arg-type]
            path = (root / source["path"]).resolve()
            assert path.is_relative_to(root.resolve()), f"{path} lies outside the plate"
            plane = named_plane(source["path"], root)
            data = plane_bytes(plane)
            assert hashlib.sha256(data).hexdigest() == source["sha256"]
            if plane.index is not None:
                whole = pristine / plane.path.relative_to(root)
                assert np.array_equal(stored[channel], plane_of_array(plane, whole)), f"{source['path']}: other pixels"
            elif data[:2] in (b"II", b"MM"):
                try:
                    expected = tifffile.imread(path)
                except Exception:  # dozens of kinds
                    expected = tifffile.imread(io.BytesIO(with_header_of(pristine / source["path"], data)))
                assert np.array_equal(stored[channel], expected), f"{path}: other pixels"


def plane_of_array(plane: Plane, pristine: Path) -> np.ndarray:  # type: ignore[type-arg]
    """As zarr-python reads it; where it does not understand the metadata any more, its chunks under those that they had."""
    import zarr

    try:
        array = zarr.open_array(plane.path, mode="r")
    except Exception:  # dozens of kinds
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(plane.path, folder, dirs_exist_ok=True)
            for name in ("zarr.json", ".zarray", ".zattrs"):
                if (pristine / name).is_file():
                    shutil.copy(pristine / name, folder)
            return np.asarray(zarr.open_array(folder, mode="r")[(*plane.index, ...)])  # type: ignore[misc]
    return np.asarray(array[(*plane.index, ...)])  # type: ignore[misc]


def with_header_of(pristine: Path, data: bytes) -> bytes:
    """The mutated pixels under the header that they had."""
    whole = pristine.read_bytes()
    with tifffile.TiffFile(pristine) as tiff:
        (start,), (size,) = tiff.pages.first.dataoffsets, tiff.pages.first.databytecounts
    return whole[:start] + data[start : start + size] + whole[start + size :]


# -- mutations --------------------------------------------------------------------------------------------------------


def mutate(raw: Path, rng: random.Random) -> None:
    """Spoil one file: an index half of the time, where there is one."""
    files = sorted(path for path in raw.rglob("*") if path.is_file())
    indices = [path for path in files if (path.suffix or path.name).lower() in INDEX]
    path = rng.choice(indices if indices and rng.random() < 0.5 else files)
    text = path in indices
    change = rng.choice([*BYTES, *(TEXT if text else ())])
    path.write_bytes(change(path.read_bytes(), rng))
    if rng.random() < 0.05:
        path.rename(path.with_name(rng.choice(("A01_s1_w1", "..hidden", "x" * 200, "r99c99f1p1-ch1")) + path.suffix))
    elif rng.random() < 0.03:
        path.unlink()


def flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def double(data: bytes, rng: random.Random) -> bytes:
    start, size = rng.randrange(len(data) + 1), rng.randrange(1, 2000)
    return data[: start + size] + data[start:]


def drop(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.randrange(1, 2000) :]


def fill(data: bytes, rng: random.Random) -> bytes:
    start, size = rng.randrange(len(data) + 1), rng.randrange(1, 64)
    return data[:start] + rng.choice((b"\0", b"\xff")) * size + data[start + size :]


def numbers(data: bytes, rng: random.Random) -> bytes:
    """One number of a text becomes another."""
    places = [at for at in range(len(data)) if data[at : at + 1].isdigit()]
    if not places:
        return data
    at = rng.choice(places)
    wild = (b"0", b"-1", b"99999999999999999999", b"1e308", b"NaN", b"65536", b"\xd9\xa3", b"2", b"")
    return data[:at] + rng.choice(wild) + data[at + 1 :]


WILD_PATHS = (
    b"../../../../etc/passwd", b"/etc/passwd", b"C:\\x", b"..", b".", b"a\0b", b"https://h/x", b"x" * 5000, b"",
)  # fmt: skip


def paths(data: bytes, rng: random.Random) -> bytes:
    """One file name of a text leads elsewhere."""
    for ending in (b".tiff", b".tif"):
        places = [at for at in range(len(data)) if data.startswith(ending, at)]
        if places:
            at = rng.choice(places)
            start = max(data.rfind(sign, 0, at) for sign in (b">", b",", b'"', b"\n")) + 1
            return data[:start] + rng.choice(WILD_PATHS) + data[at + len(ending) :]
    key = b'"path": "'
    places = [at + len(key) for at in range(len(data)) if data.startswith(key, at)]
    if not places:
        return data
    at = rng.choice(places)
    return data[:at] + rng.choice((*WILD_PATHS, b"A/1", b"0")) + data[data.index(b'"', at) :]


def bomb(data: bytes, rng: random.Random) -> bytes:
    if data.startswith(b"{"):
        return rng.choice((b"[", b'{"a":')) * 10**6
    return BOMB if rng.random() < 0.5 else data.replace(b"?>", b'?><!DOCTYPE x SYSTEM "file:///etc/passwd">', 1)


def lines(data: bytes, rng: random.Random) -> bytes:
    """Lines shuffled, doubled or left out."""
    parts = data.split(b"\n")
    way = rng.randrange(3)
    if way == 0:
        rng.shuffle(parts)
    elif way == 1:
        parts.insert(rng.randrange(len(parts)), rng.choice(parts))
    else:
        parts.pop(rng.randrange(len(parts)))
    return b"\n".join(parts)


Change = Callable[[bytes, random.Random], bytes]
BYTES: tuple[Change, ...] = (flip, flip, cut, double, drop, fill)
TEXT: tuple[Change, ...] = (numbers, numbers, paths, paths, bomb, lines)


def _all() -> Iterator[Change]:
    yield from (*BYTES, *TEXT)


@pytest.mark.parametrize("change", list(_all()), ids=lambda change: change.__name__)
def test_every_mutation_changes_something(change: Change) -> None:
    text = b'<?xml version="1.0"?>\n<a>1</a>\n<b>r01.tiff</b>\n' * 3
    assert any(change(text, random.Random(seed)) != text for seed in range(20))

"""sums.json: a checksum of every file of a store that has none of its own, so that one flipped bit anywhere is found.

Shards have theirs in the fields tables, a shard index in itself.  Written last by seal; what is as old and as long as it was
is not read again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from google_crc32c import value as crc32c

from phenomhpc.runs import canonical_json, commit
from phenomhpc.store.layout import StorePaths

# path below the store -> bytes, mtime_ns, crc32c
Sums = dict[str, tuple[int, int, int]]


def write_sums(paths: StorePaths) -> None:
    """Commit the sums of what lies there now, unless they are there already."""
    before, problem = read_sums(paths)
    found: Sums = {name: sum_ for name, sum_ in before.items() if _is_left_out(paths, name)}
    for path in _files(paths):
        name, status = str(path.relative_to(paths.root)), path.stat()
        known = before.get(name)
        stamp = (status.st_size, status.st_mtime_ns)
        found[name] = known if known is not None and known[:2] == stamp else (*stamp, crc32c(path.read_bytes()))
    if found != before or problem:
        body = canonical_json(found)
        commit(paths.sums, body + f"\n{crc32c(body):08x}\n".encode())


def read_sums(paths: StorePaths) -> tuple[Sums, str]:
    """The sums, and what is wrong with the file; none and "" where a store has none."""
    try:
        data = paths.sums.read_bytes()
    except FileNotFoundError:
        return {}, ""
    body, _, tail = data.partition(b"\n")
    if tail != f"{crc32c(body):08x}\n".encode():
        return {}, "does not match its checksum; store seal writes it anew"
    return {name: (size, mtime, crc) for name, (size, mtime, crc) in json.loads(body).items()}, ""


def check_sums(paths: StorePaths) -> Iterator[tuple[str, str]]:
    """(path below the store, what is wrong) of every file that is not what was sealed.

    A store that was copied without its .progress is whole.
    """
    sums, problem = read_sums(paths)
    if problem:
        yield str(paths.sums.relative_to(paths.root)), problem
    for name, (size, _, crc) in sums.items():
        if _is_left_out(paths, name):
            continue
        try:
            data = (paths.root / name).read_bytes()
        except FileNotFoundError:
            yield name, "is missing"
            continue
        except OSError as error:
            yield name, f"cannot be read ({error.strerror})"
            continue
        if len(data) != size or crc32c(data) != crc:
            yield name, "is not what was sealed (while a conversion goes on: seal, and verify again)"


def _is_left_out(paths: StorePaths, name: str) -> bool:
    """Of a store that was copied without its .progress: does the file belong there?"""
    return name.startswith(f"{paths.progress.name}{os.sep}") and not paths.progress.is_dir()


def _files(paths: StorePaths) -> Iterator[Path]:
    """Every small file: not the shards and their indices, the sums themselves, or what a killed writer has left."""
    yield from (path for path in (paths.dataset, paths.origin, paths.set_aside, paths.unmatched) if path.is_file())
    for plate in paths.converted_plates():
        yield from (paths.plate(plate) / "zarr.json", paths.images(plate) / "zarr.json")
        yield from (path for path in (paths.fields(plate), paths.annotations(plate)) if path.is_file())
        yield from sorted(path for path in paths.light(plate).glob("*.npy"))
    for folder in (paths.snapshots, paths.progress):
        for place, _, names in os.walk(folder):
            yield from (Path(place) / name for name in sorted(names) if ".tmp-" not in name)

"""dataset.json: what all plates of a store have in common, written once when the store is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phenomhpc.errors import UsageError
from phenomhpc.runs import commit, make_folder
from phenomhpc.store.layout import StorePaths

SCHEMA = 1
MEBIBYTE = 2**20
DTYPES = ("uint8", "uint16")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Channels in stored order, dtype, and how pixels are cut and compressed.

    codec is (cname, level, shuffle), or None for raw chunks; fields_per_shard is for the first plate's field size and is
    used for all of them.
    """

    channels: tuple[str, ...]
    dtype: str
    chunk_px: int
    fields_per_shard: int
    codec: tuple[str, int, str] | None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"store: dtype {self.dtype}: only {' and '.join(DTYPES)} are stored")
        if not self.channels:
            raise UsageError("store: no channel at all; is the plate empty?")

    @property
    def itemsize(self) -> int:
        """Bytes per pixel."""
        return 1 if self.dtype == "uint8" else 2


@dataclass(frozen=True, kw_only=True)
class Store:
    """An open store: where it is and what it holds."""

    paths: StorePaths
    spec: DatasetSpec


# Bitshuffle whose elements are two pixels of uint8: the codec's typesize is 2, what any reader of blosc takes from the chunk.
PAIRS = "bitshuffle_pairs"


def shuffle_for(dtype: str, shuffle: str) -> str:
    """What `auto` means: uint8 hardly compresses without bitshuffle; uint16 decodes 1.6 times faster with byte shuffle."""
    if shuffle != "auto":
        return shuffle
    return "bitshuffle" if dtype == "uint8" else "shuffle"


def packing(spec: DatasetSpec) -> tuple[str, int]:
    """Name of the shuffle as blosc has it, and bytes of what it takes for an element."""
    assert spec.codec is not None
    shuffle = spec.codec[2]
    if shuffle != PAIRS:
        return shuffle, spec.itemsize
    even = len(spec.channels) * spec.chunk_px**2 % 2 == 0
    return "bitshuffle", 2 if even else spec.itemsize


def fields_per_shard(shard_mb: int, num_channels: int, height: int, width: int, itemsize: int) -> int:
    """As many fields as `shard_mb` MiB of raw pixels hold; at least one."""
    return max(1, shard_mb * MEBIBYTE // (num_channels * height * width * itemsize))


def _read_spec(path: Path) -> DatasetSpec:
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
        if raw.get("schema") != SCHEMA:
            raise UsageError(
                f"store {path.parent}: schema {raw.get('schema')}, this version reads {SCHEMA}; upgrade phenomhpc"
            )
        raw["channels"] = tuple(raw["channels"])
        raw["codec"] = tuple(raw["codec"]) if raw["codec"] else None
        return DatasetSpec(**raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"store {path.parent}: dataset.json is damaged ({error}); restore it from a copy") from error


def open_store(root: Path | str) -> Store:
    """Open an existing store.  Raises UsageError where there is none."""
    paths = StorePaths(Path(root).absolute())
    if not paths.dataset.is_file():
        what = "is no store (no dataset.json)" if paths.root.exists() else "does not exist"
        raise UsageError(f"store {root}: {what}; phenomhpc convert makes one")
    return Store(paths=paths, spec=_read_spec(paths.dataset))


def create_store(root: Path | str, spec: DatasetSpec) -> Store:
    """Make a store, or open the one there if it has the same spec.  Raises UsageError naming what differs."""
    paths = StorePaths(Path(root).absolute())
    refuse_foreign_folder(paths)
    if paths.dataset.is_file():
        store = open_store(root)
        refuse_difference(root, store.spec, spec)
        return store
    try:
        make_folder(paths.root)
    except OSError as error:
        raise UsageError(f"store {root}: cannot be made ({error.strerror}); choose another folder") from error
    write_spec(paths, spec)
    return Store(paths=paths, spec=spec)


def write_spec(paths: StorePaths, spec: DatasetSpec) -> None:
    """Commit dataset.json."""
    commit(paths.dataset, json.dumps(asdict(spec), indent=2) + "\n")


def refuse_foreign_folder(paths: StorePaths) -> None:
    """Raise UsageError for a folder with anything in it but a store.

    Tasks of one array make a store at the same time: what dataset.json is made from may lie there, and whatever else
    does came after dataset.json, so the listing has to come before the look at it.
    """
    root = paths.root
    if root.exists() and not root.is_dir():
        raise UsageError(f"store {root}: is a file; choose another folder")
    entries = [entry.name for entry in root.iterdir()] if root.is_dir() else []
    others = [name for name in entries if not name.startswith((".", paths.dataset.name))]
    if others and not paths.dataset.is_file():
        raise UsageError(f"store {root}: a folder that is no store and is not empty; choose another folder")


def refuse_difference(root: Path | str, have: DatasetSpec, want: DatasetSpec, who: str = "these settings") -> None:
    """Raise UsageError naming the first thing in which `want` does not fit a store of `have`.

    Fields per shard follow the first plate's size, and a plane of another dtype is set aside field by field.
    """
    for name in ("channels", "chunk_px", "codec"):
        if getattr(have, name) != getattr(want, name):
            raise UsageError(
                f"store {root}: has {name}={_plain(getattr(have, name))}, {who} would be {_plain(getattr(want, name))}; "
                "use another --store, or the store's settings"
            )


def _plain(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(str(entry) for entry in value)
    return str(value)

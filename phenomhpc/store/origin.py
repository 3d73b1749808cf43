"""origin.json: which store another was made from.  A copy has the same pixels in other bytes; a cache holds some of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from phenomhpc.errors import UsageError
from phenomhpc.runs import canonical_json, commit
from phenomhpc.store.layout import StorePaths
from phenomhpc.store.spec import DatasetSpec, Store

COPY, CACHE = "copy", "cache"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """kind: copy or cache; store: the other's path; spec: digest of its dataset.json; snapshot: the one whose fields are cached."""

    kind: str
    store: str
    spec: str
    snapshot: str | None = None


def spec_digest(spec: DatasetSpec) -> str:
    """sha256, hexadecimal, of what dataset.json says."""
    return hashlib.sha256(canonical_json(asdict(spec))).hexdigest()


def origin_of(store: Store, kind: str, snapshot: str | None = None) -> Origin:
    """What a copy or a cache of a store writes down."""
    return Origin(kind=kind, store=str(store.paths.root), spec=spec_digest(store.spec), snapshot=snapshot)


def read_origin(paths: StorePaths) -> Origin | None:
    """What a store was made from; None for one of its own.  Raises UsageError where that cannot be read."""
    try:
        return Origin(**json.loads(paths.origin.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{paths.origin}: is damaged ({error}); remove the folder, or restore it from a copy"
        ) from error


def write_origin(paths: StorePaths, origin: Origin) -> None:
    """Commit it, unless it is there already."""
    text = json.dumps(asdict(origin), indent=2) + "\n"
    if not paths.origin.is_file() or paths.origin.read_text() != text:
        commit(paths.origin, text)


def refuse_wrong_place(source: Store, target: Path | str, kind: str, option: str = "--to") -> None:
    """Raise UsageError where a copy or cache cannot go: into the source, around it, or into a store that is none of it.

    What a run that was killed at its very start has left, a dataset.json and nothing else, is gone on with.
    """
    root, there = source.paths.root.resolve(), Path(target).resolve()
    if there == root:
        raise UsageError(f"{option} {target}: is the store itself; choose another {option}")
    if root in there.parents or there in root.parents:
        raise UsageError(f"{option} {target}: one of the two lies in the other; choose another {option}")
    paths = StorePaths(Path(target).absolute())
    begun = paths.plates.exists()  # before the look at the origin, which is there before any plate is
    origin = read_origin(paths)
    if origin is None and begun:
        raise UsageError(f"{option} {target}: is a store of its own, no {kind} of {root}; choose another {option}")
    if origin is not None and (origin.kind, origin.store) != (kind, str(source.paths.root)):
        moved = f" (where that store was moved, say so in {paths.origin.name})" if origin.kind == kind else ""
        raise UsageError(
            f"{option} {target}: is a {origin.kind} of {origin.store}, not a {kind} of {source.paths.root}; choose another "
            f"{option}{moved}"
        )


def refuse_cache(store: Store) -> None:
    """Raise UsageError when a store is a cache: it has no fields tables, and any part of it may be missing."""
    origin = read_origin(store.paths)
    if origin is not None and origin.kind == CACHE:
        raise UsageError(f"store {store.paths.root}: is a cache of {origin.store}; name that store")

"""Completion records: they alone decide what is done.

A record lies beside the product (.progress/ of a store or an embeddings folder), is committed after the product, and
carries a digest of the settings and the inputs.  Begin = remove the record, then the unit's files; so a record that is
there always speaks of a whole product, and one of other settings or inputs does not count.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from phenomhpc.commit import commit

SCHEMA = 1
# Raised when code changes what a unit's product looks like for the same settings and inputs.
CODE_SCHEMA = 1


def now() -> str:
    """The present moment: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def canonical_json(value: Any) -> bytes:
    """One byte string per value: sorted keys, no spaces, UTF-8; NaN refused with ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(kind: str, settings: Mapping[str, Any], inputs: Sequence[Any]) -> str:
    """sha256 (hex) of canonical JSON of {kind, code_schema, settings, inputs}; inputs are [path, bytes, sha256] or such."""
    content = {"kind": kind, "code_schema": CODE_SCHEMA, "settings": dict(settings), "inputs": list(inputs)}
    return hashlib.sha256(canonical_json(content)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class CompletionRecord:
    """What one unit of work left behind.

    outputs: [path, bytes, crc32c] per file; set_aside: [thing, reason] per input left out; rows: one mapping per
    product row (a field, a well), whose columns belong to the kind of job; pending: what a cheap check compares
    ([path, bytes, mtime_ns] per input), so that a rerun need not hash its inputs.
    """

    unit_id: str
    digest: str
    attempt: int
    task: int
    token: str
    started: str
    ended: str
    outputs: tuple[tuple[str, int, int], ...] = ()
    set_aside: tuple[tuple[str, str], ...] = ()
    rows: tuple[dict[str, Any], ...] = ()
    pending: tuple[tuple[str, int, int], ...] = ()
    host: str = field(default_factory=socket.gethostname)
    schema: int = SCHEMA


def write_record(path: Path, record: CompletionRecord) -> None:
    """Commit a record; the unit counts as done from here on."""
    commit(path, canonical_json(asdict(record)), token=record.token)


def read_record(path: Path) -> CompletionRecord | None:
    """The record, or None where there is none, or one this version cannot read (its unit is then done again)."""
    try:
        raw = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        return None
    for name in ("outputs", "set_aside", "pending"):
        raw[name] = tuple(tuple(entry) for entry in raw.get(name, ()))
    raw["rows"] = tuple(raw.get("rows", ()))
    try:
        return CompletionRecord(**raw)
    except TypeError:
        return None

"""Reading a site lock: YAML or site.json in, a checked Lock out, or one line.  Needs nothing but PyYAML and pydantic."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from phenomhpc.errors import UsageError
from phenomhpc.nodes.exclusions import SITE_FILE
from phenomhpc.nodes.hostlist import expand
from phenomhpc.nodes.lock import Lock
from phenomhpc.nodes.lock_rules import problems_of

DERIVED = "derived"


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would silently keep the last."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"{key} is there twice", problem_mark=key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_lock(path: Path) -> Lock:
    """The lock in a file, site.lock.yml or site.json, as lock_from checks it.  Raises UsageError, one line."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        words = error.strerror if isinstance(error, OSError) else "no text"
        raise UsageError(f"{path}: not readable ({words})") from None
    try:
        value = yaml.load(text, _Loader)  # a SafeLoader; JSON is YAML
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UsageError(f"{path}: {where}is no YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: is no YAML: {str(error).splitlines()[0]}") from None
    return lock_from(value, str(path))


def lock_from(value: Any, name: str) -> Lock:
    """A lock from its YAML's or JSON's value.  Raises UsageError: the key, the value, the way out, and how many more there are."""
    if not isinstance(value, dict):
        raise UsageError(f"{name}: is no lock: wants keys such as schema, name, slurm")
    try:
        lock = Lock.model_validate({key: each for key, each in value.items() if key != DERIVED})
    except ValidationError as error:
        raise UsageError(f"{name}: {_words(error)}") from None
    problems = problems_of(lock)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UsageError(f"{name}: {problems[0]}{more}")
    return lock


def _words(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{key}={_shown(first['input'])}: no such key; keys here: {', '.join(_keys(first['loc'][:-1]))}{more}"
    if first["type"] == "missing":
        return f"{key}: is missing{more}"
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{key}={_shown(first['input'])}: {message[:1].lower()}{message[1:]}{more}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys(place: tuple[int | str, ...]) -> list[str]:
    """Keys of the part of the lock that a place names."""
    model: Any = Lock
    for part in place:
        if isinstance(part, str) and part in getattr(model, "model_fields", {}):
            model = _part_of(model.model_fields[part].annotation)
    return [field.alias or name for name, field in getattr(model, "model_fields", {}).items()]


def _part_of(annotation: Any) -> Any:
    """The model in Part | None, tuple[Part, ...] and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in getattr(annotation, "__args__", ()) if (found := _part_of(each)) is not None), None)


def site_json(lock: Lock) -> dict[str, Any]:
    """What /etc/phenomhpc/site.json holds: the lock with every default, and `derived`, for readers without this code.

    derived: gpus {host: count}, hosts {host: classes}, real_memory_mb {node type: MiB}, digest of the lock.
    """
    value: dict[str, Any] = lock.model_dump(mode="json", by_alias=True)
    return {
        **value,
        DERIVED: {
            "digest": lock_digest(lock),
            "gpus": {node: kind.gpus for kind in lock.slurm.node_types for node in expand(kind.nodes)},
            "hosts": {host: list(classes) for host, classes in lock.classes().items()},
            "real_memory_mb": {kind.name: lock.real_memory_mb(kind) for kind in lock.slurm.node_types},
        },
    }


def lock_digest(lock: Lock) -> str:
    """sha256 of a lock's canonical JSON."""
    text = json.dumps(lock.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def site_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Where this host's site.json is."""
    return Path(environment.get("PHENOMHPC_SITE") or SITE_FILE)


def find_lock(path: Path | None) -> Lock | None:
    """The lock at `path`, else this host's; None where neither is."""
    if path is not None:
        return read_lock(path)
    return read_lock(site_path()) if site_path().is_file() else None

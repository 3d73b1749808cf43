"""Defaults of a place and a person, later wins:

discovered from Slurm < /etc/phenomhpc/site.json < ~/.config/phenomhpc/config.yaml < ./phenomhpc.yaml < PHENOMHPC_*

A default is a short name (store, runs, partition ...); LANDING says which setting of which job it fills.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from phenomhpc.errors import UsageError

PROJECT_FILE = "phenomhpc.yaml"
SITE_FILE = "/etc/phenomhpc/site.json"
_CLUSTER = {
    name: f"cluster.{name}"
    for name in ("partition", "account", "qos", "gpus_per_node", "cpus_per_task", "mem_mb", "time_minutes")
}
_GPUS = {"gpus_per_node": _CLUSTER.pop("gpus_per_node")}
_EVERY_JOB = {"runs": "runs", **_CLUSTER}
# default -> dotted key, per kind of job; converting and evaluating have no use for a GPU
LANDING: dict[str, dict[str, str]] = {
    "convert": {**_EVERY_JOB, "store": "store", "raw": "plates"},
    "rechunk": dict(_EVERY_JOB),
    "pretrain": {**_EVERY_JOB, **_GPUS, "store": "store"},
    "embed": {**_EVERY_JOB, **_GPUS, "store": "store"},
    "evaluate": {**_EVERY_JOB, "annotations": "annotations"},
    "run": {**_EVERY_JOB, **_GPUS},
    "pipeline": {**_EVERY_JOB, **_GPUS, "store": "store", "raw": "plates", "annotations": "annotations"},
}
NAMES = sorted({name for landing in LANDING.values() for name in landing})


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Defaults from one source, by short name."""

    source: str
    values: Mapping[str, Any]


def _checked(source: str, values: Any) -> Layer:
    if not isinstance(values, dict):
        raise UsageError(f"{source}: is no mapping of names to values; known names are {', '.join(NAMES)}")
    for name in values:
        if name not in NAMES:
            near = difflib.get_close_matches(str(name), NAMES, 1, 0.3)
            hint = f"did you mean {near[0]}?" if near else f"known names are {', '.join(NAMES)}"
            raise UsageError(f"{source}: {name}: no such default; {hint}")
    return Layer(source=source, values={name: value for name, value in values.items() if value is not None})


def _yaml_layer(path: Path) -> Layer:
    try:
        return _checked(str(path), yaml.safe_load(path.read_text()) or {})
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"{path}: is no YAML ({first}); mend or remove it") from error


def site_defaults(site: Mapping[str, Any]) -> dict[str, Any]:
    """Short names from site.json (its schema is the lock's): paths, and the default partition's name and GPUs."""
    paths = site.get("paths") or {}
    found: dict[str, Any] = {name: paths.get(name) for name in ("store", "runs", "raw")}
    for partition in (site.get("slurm") or {}).get("partitions") or []:
        if partition.get("default"):
            found |= {"partition": partition.get("name"), "gpus_per_node": partition.get("gpus_per_node")}
    return {name: value for name, value in found.items() if value is not None}


def _site_layer(path: Path) -> Layer:
    try:
        return _checked(str(path), site_defaults(json.loads(path.read_text())))
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path}: is no site description ({error}); ask the cluster's administrator") from error


def _environment_layer(environment: Mapping[str, str]) -> Layer:
    values = {}
    for name in NAMES:
        text = environment.get(f"PHENOMHPC_{name.upper()}")
        if text:
            values[name] = yaml.safe_load(text) if text.isdigit() else text
    return Layer(source="PHENOMHPC_*", values=values)


def default_layers(
    *,
    discovered: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    home: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Layer]:
    """The layers that exist, weakest first.  `discovered` is what slurm/ found out; the rest is read here."""
    environment = os.environ if environment is None else environment
    home = home or Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    layers = [Layer(source="Slurm", values=dict(discovered))] if discovered else []
    site = Path(environment.get("PHENOMHPC_SITE", SITE_FILE))
    if site.is_file():
        layers.append(_site_layer(site))
    for path in (home / "phenomhpc" / "config.yaml", (folder or Path.cwd()) / PROJECT_FILE):
        if path.is_file():
            layers.append(_yaml_layer(path))
    layers.append(_environment_layer(environment))
    return [layer for layer in layers if layer.values]

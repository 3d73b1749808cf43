"""From recipe, defaults, flags and overrides to one validated, frozen model, knowing where each value came from.

Order, later wins: the model's own defaults < default_layers() < the recipe named < flags < overrides.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from phenomhpc.config.base import JobModel
from phenomhpc.config.defaults import LANDING, PROJECT_FILE, Layer, default_layers
from phenomhpc.config.models import JOBS, AnyConfig, PipelineConfig
from phenomhpc.config.overrides import Override, assign, flatten, merge, parse_override
from phenomhpc.config.recipes import compose_recipe, groups, keys_of
from phenomhpc.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A job's settings, and for each dotted key the source of its value."""

    config: AnyConfig
    origins: Mapping[str, str]


# Settings that are paths: made absolute where they are given, since a Slurm task runs in another folder.
_PATHS = (
    *("plates", "new", "store", "to", "runs", "metadata", "out", "onnx", "workdir"),
    *("annotations", "unexpressed", "arms", "centromeres"),
)
# A path, or the name of a run: absolute only where there is such a path.
_PATHS_OR_RUNS = ("checkpoint", "embeddings", "init_from")

# What a job cannot do without, and the flag that gives it.
_REQUIRED: dict[str, tuple[str, ...]] = {
    "convert": ("plates", "store"),
    "rechunk": ("store", "to"),
    "pretrain": ("store",),
    "embed": ("store", "checkpoint"),
    "evaluate": ("embeddings", "annotations"),
    "run": ("command",),
    "pipeline": ("plates", "store", "annotations"),
}
_REQUIRED_WITH_NEW = ("store", "embeddings", "annotations")


def _submodel(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of a job's model."""
    keys = []
    for name, field in model.model_fields.items():
        below = _submodel(field.annotation)
        keys += known_keys(below, f"{prefix}{name}.") if below else [f"{prefix}{name}"]
    return keys


def _nearest(key: str, known: Sequence[str]) -> str:
    by_last = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    near = by_last[:1] or difflib.get_close_matches(key, known, 1, 0.4)
    if near:
        return f"nearest key: {near[0]}"
    return f"keys here: {', '.join(known[:12])}{' ...' if len(known) > 12 else ''}"


def _refusal(kind: str, error: ValidationError, texts: Mapping[str, str]) -> UsageError:
    """One line for the first thing that is wrong (and a count of the others)."""
    problems = error.errors(include_url=False)
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and part in _words(kind))
    full = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    source = f" [{texts[full]}]" if full in texts else ""
    if first["type"] == "extra_forbidden":
        return UsageError(
            f"{kind}: {full}={first['input']!r}: no such key; {_nearest(full, known_keys(JOBS[kind]))}{source}{more}"
        )
    message = str(first["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if first["type"] == "value_error":
        return UsageError(f"{kind}: {key or 'settings'}: {message}{source}{more}")
    return UsageError(f"{kind}: {key or full}={first['input']!r}: {message}{source}{more}")


def _words(kind: str) -> set[str]:
    return {word for key in known_keys(JOBS[kind]) for word in key.split(".")}


def _apply_defaults(kind: str, layers: Sequence[Layer], tree: dict[str, Any], origins: dict[str, str]) -> None:
    for layer in layers:
        for name, key in LANDING[kind].items():
            if name in layer.values:
                assign(tree, key, layer.values[name])
                origins[key] = layer.source


def _split_groups(overrides: Sequence[Override]) -> tuple[dict[str, str], list[Override]]:
    names = set(groups())
    chosen = {override.key: str(override.value) for override in overrides if override.key in names}
    return chosen, [override for override in overrides if override.key not in names]


def resolve(
    kind: str,
    flags: Mapping[str, Any],
    overrides: Sequence[str],
    *,
    recipe: str | None = None,
    layers: Sequence[Layer] | None = None,
) -> Resolved:
    """The settings of one job.

    flags: dotted keys set by the command line's own options (None: not given); overrides: `key=value` words.
    Raises UsageError, one line: the key, the value, what is allowed and the nearest existing key.
    """
    chosen, settings = _split_groups([parse_override(text) for text in overrides])
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    _apply_defaults(kind, default_layers() if layers is None else layers, tree, origins)
    composed = compose_recipe(recipe or kind, chosen)
    merge(tree, composed, skip_none=True)
    for key, value in flatten(composed).items():
        if value is not None:
            group = key.split(".")[0]
            origins[key] = f"{group}={chosen[group]}" if group in chosen else f"recipe {recipe or kind}"
    for group, choice in chosen.items():
        origins |= {key: f"{group}={choice}" for key in keys_of(group, choice) if group not in composed}
    for key, value in flags.items():
        if value is not None:
            assign(tree, key, list(value) if isinstance(value, tuple) else value)
            origins[key] = "flag"
    for override in settings:
        _refuse_whole_group(kind, override)
        assign(tree, override.key, override.value)
        origins[override.key] = "override"
    _make_absolute(tree)
    return Resolved(config=validate(kind, tree, origins), origins=_all_origins(kind, origins))


def _absolute(path: Any) -> Any:
    if isinstance(path, list | tuple):
        return [_absolute(entry) for entry in path]
    return os.path.abspath(os.path.expanduser(path)) if isinstance(path, str) and path else path  # noqa: PTH100, PTH111


def _make_absolute(tree: dict[str, Any]) -> None:
    """Paths of the tree's top level, in place; `~` is the person's home.  abspath: a glob is no Path."""
    tree.setdefault("runs", JobModel.model_fields["runs"].default)
    for key in _PATHS:
        if key in tree:
            tree[key] = _absolute(tree[key])
    for key in _PATHS_OR_RUNS:
        if isinstance(tree.get(key), str) and Path(tree[key]).expanduser().exists():
            tree[key] = _absolute(tree[key])


def require(config: AnyConfig) -> None:
    """Raise UsageError naming the first setting the job cannot do without that is missing."""
    adding = isinstance(config, PipelineConfig) and bool(config.new)
    for key in _REQUIRED_WITH_NEW if adding else _REQUIRED[config.kind]:
        if not getattr(config, key):
            if key == "command":
                raise UsageError(
                    "run: what to run is missing; give it behind --, e.g. phenomhpc run -- python train.py"
                )
            default = next((name for name, landing in LANDING[config.kind].items() if landing == key), None)
            hint = f", or set {default} in ./{PROJECT_FILE} (phenomhpc init writes one)" if default else ""
            raise UsageError(f"{config.kind}: {key} is missing; give --{key}{hint}")


def _refuse_whole_group(kind: str, override: Override) -> None:
    field = JOBS[kind].model_fields.get(override.key)
    if field is not None and _submodel(field.annotation):
        below = known_keys(JOBS[kind])
        inside = [key for key in below if key.startswith(f"{override.key}.")]
        raise UsageError(
            f"{kind}: {override.text}: {override.key} is a group of settings; set one of {', '.join(inside[:8])}"
        )


def _all_origins(kind: str, origins: Mapping[str, str]) -> dict[str, str]:
    return {key: origins.get(key, "built in") for key in known_keys(JOBS[kind])}


def validate(kind: str, tree: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> AnyConfig:
    """A validated model of the job `kind` from nested mappings.  Raises UsageError."""
    try:
        model: JobModel = JOBS[kind].model_validate(dict(tree))
    except ValidationError as error:
        raise _refusal(kind, error, origins or {}) from error
    return model  # type: ignore[return-value]


def dump(config: AnyConfig) -> str:
    """The text of run.yaml: the kind and every setting, resolved."""
    content = {"kind": config.kind, **config.model_dump(mode="json")}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


# The same in C, where yaml was built with it: a list of a thousand runs reads a thousand files.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_run_config(path: Path) -> AnyConfig:
    """What dump() wrote.  Raises UsageError naming the file."""
    try:
        content = yaml.load(path.read_text(), _LOADER)
        kind = content.pop("kind")
    except (OSError, yaml.YAMLError, AttributeError, KeyError) as error:
        raise UsageError(f"{path}: is no resolved configuration of a run ({error})") from error
    return validate(kind, content)

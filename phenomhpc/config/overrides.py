"""Overrides: `key=value` on the command line.

The key is a dotted path, the value everything behind the first `=`, read as one YAML scalar or flow list; so
`data.where=focus > 0.2` and `store=/data/a=b` mean what they say.  Hydra's own grammar (`+`, `~`, `${}`) is refused:
one way to set a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from phenomhpc.errors import UsageError

KEY = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")


@dataclass(frozen=True, kw_only=True)
class Override:
    """One setting: where, what, and the words it was given in."""

    key: str
    value: Any
    text: str


def _value(key: str, text: str) -> Any:
    if "${" in text:
        raise UsageError(f"{key}={text}: interpolation ${{...}} is not supported; write the value itself")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # `a: b: c`, `@x`, `> 3`: no YAML value, so the words themselves
    if isinstance(value, dict):
        # `path: x` and `{a: 1}` both read as mappings; only the first is a person's plain text.
        if text.lstrip().startswith("{"):
            raise UsageError(f"{key}={text}: a mapping is no value; set its keys one by one, as {key}.NAME=VALUE")
        return text
    if isinstance(value, list) and not text.lstrip().startswith("["):
        return text
    if value is None and text.strip() not in {"", "null", "~", "Null", "NULL"}:
        return text  # a comment: `#3`
    if isinstance(value, str):
        # YAML would cut a comment off (`x #1`); quotes are YAML's to remove, the rest is the person's.
        return value if text[:1] in {"'", '"'} else text
    if isinstance(value, int | float) and ":" in text:
        return text  # YAML reads 2:4 as 124 minutes
    if isinstance(value, bool | int | float | list) or value is None:
        return value
    return text  # dates and the like stay the words they are


def parse_override(text: str) -> Override:
    """Split and read one override.  Raises UsageError naming it."""
    if text[:1] in {"+", "~"}:
        raise UsageError(f"{text}: a leading {text[0]} is not supported; every key exists already: write KEY=VALUE")
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text}: no override; write KEY=VALUE, such as optim.steps=1000")
    if not KEY.match(key):
        raise UsageError(
            f"{text}: {key!r} is no key; a key is made of letters, digits, '_' and dots, such as optim.steps"
        )
    return Override(key=key, value=_value(key, value), text=text)


def assign(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings, making what is missing on the way.

    Raises UsageError when a part of the way is a value already, which would be lost.
    """
    *parents, last = key.split(".")
    for number, parent in enumerate(parents, 1):
        below = tree.get(parent)
        if below is None:
            below = tree[parent] = {}
        elif not isinstance(below, dict):
            whole = ".".join(parents[:number])
            raise UsageError(
                f"{key}={value}: {whole}={below} was given as a whole; beside its settings write {whole}.recipe={below}"
            )
        tree = below
    tree[last] = value


def merge(base: dict[str, Any], over: Mapping[str, Any], *, skip_none: bool = False) -> None:
    """Lay `over` onto `base`, in place, mapping by mapping; with `skip_none` a null says nothing."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            merge(base[key], value, skip_none=skip_none)
        elif isinstance(value, Mapping):
            base[key] = {}
            merge(base[key], value, skip_none=skip_none)
        elif value is not None or not skip_none:
            base[key] = value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat

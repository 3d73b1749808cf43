"""From flags to a job's settings: what `phenomhpc submit` and phenomhpc.submit(...) share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phenomhpc.cli.arguments import parse_minutes

if TYPE_CHECKING:
    from phenomhpc.config import AnyConfig


def prepare(kind: str, settings: dict[str, Any], overrides: list[str], own: dict[str, Any]) -> AnyConfig:
    """The job's settings, from the flags and the verb's own values.  Raises UsageError."""
    from phenomhpc.config import require, resolve
    from phenomhpc.jobs.references import resolve_references

    if own["time"]:
        settings = {**settings, "cluster.time_minutes": parse_minutes(str(own["time"]))}
    config = resolve(kind, settings, overrides, recipe=own["recipe"]).config
    require(config)
    return resolve_references(config)

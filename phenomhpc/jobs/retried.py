"""What people asked for when they retried a run: attempts/NNN/retry.json, NNN being the attempt that had ended.

It is a decision, like the steward's, and written before it is carried out: an attempt with one is followed by another.  What
it says holds until the next retry: cluster settings over run.yaml's, which code is imported, which units are done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from phenomhpc.config import AnyConfig, load_run_config, validate
from phenomhpc.runs import AttemptPaths, RunPaths, Unit, canonical_json, commit, read_events, read_manifest


@dataclass(frozen=True, kw_only=True)
class Retry:
    """One retry.  after: the attempt that had ended (0: none was made).

    cluster: settings that replace those of run.yaml, without the leading `cluster.`; own_code: the attempts behind import the
    code that was copied for them, not what was submitted; provenance: of that code; what: in words, what was chosen;
    only: ids of the units that are done (None: all that is missing); again: units that are done once more although they were
    done, because some of their input was set aside.
    """

    after: int
    cluster: Mapping[str, Any] = field(default_factory=dict)
    own_code: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)
    what: str = "all that is missing"
    only: tuple[str, ...] | None = None
    again: tuple[str, ...] = ()


def write_retry(attempt: AttemptPaths, retry: Retry) -> None:
    """Commit retry.json; from here on the run goes on."""
    commit(attempt.retry, canonical_json(asdict(retry)))


def read_retries(paths: RunPaths) -> list[Retry]:
    """All retries of a run, oldest first."""
    found = []
    for number in range(paths.last_attempt() + 1):
        try:
            raw = json.loads(paths.attempt(number).retry.read_bytes())
        except FileNotFoundError:
            continue
        raw["only"] = None if raw["only"] is None else tuple(raw["only"])
        found.append(Retry(**{**raw, "again": tuple(raw["again"])}))
    return found


def is_retried(paths: RunPaths) -> bool:
    """Was the newest attempt answered by a retry that is still to be carried out?"""
    return paths.attempt(paths.last_attempt()).retry.is_file()


def run_config(paths: RunPaths) -> AnyConfig:
    """run.yaml, with the cluster settings of the retries over it.  Raises UsageError naming the file or the key."""
    config = load_run_config(paths.run_yaml)
    settings = {key: value for retry in read_retries(paths) for key, value in retry.cluster.items()}
    return with_cluster(config, settings) if settings else config


def with_cluster(config: AnyConfig, settings: Mapping[str, Any]) -> AnyConfig:
    """The job with other cluster settings.  Raises UsageError for one that does not exist or a bad value."""
    tree = config.model_dump()
    return validate(config.kind, {**tree, "cluster": {**tree["cluster"], **settings}})


def code_of(paths: RunPaths, attempt: int) -> Path:
    """What an attempt imports: the code that was submitted, or that of the newest retry before it that brought its own."""
    for retry in reversed(read_retries(paths)):
        if retry.own_code and retry.after < attempt:
            return paths.attempt(retry.after).code
    return paths.code


def in_scope(paths: RunPaths, units: Sequence[Unit]) -> Sequence[Unit]:
    """Of the units that are missing those that the newest retry asked for, and those it wants done once more."""
    retries = read_retries(paths)
    if not retries:
        return units
    missing = list(units)
    last = retries[-1]
    if last.only is not None:
        wanted = set(last.only)
        missing = [unit for unit in missing if unit.unit_id in wanted]
    done = {
        event["unit_id"] for event in read_events(paths) if event["event"] == "unit" and event["attempt"] > last.after
    }
    again = set(last.again) - done - {unit.unit_id for unit in missing}
    return missing + units_by_id(paths, again)


def units_by_id(paths: RunPaths, ids: Iterable[str]) -> list[Unit]:
    """Units as the newest attempt that had them planned them."""
    wanted = set(ids)
    found: dict[str, Unit] = {}
    for number in range(paths.last_attempt(), 0, -1):
        manifest = paths.attempt(number).manifest
        if not wanted - found.keys():
            break
        for unit in read_manifest(manifest) if manifest.is_file() else ():
            if unit.unit_id in wanted:
                found.setdefault(unit.unit_id, unit)
    return list(found.values())

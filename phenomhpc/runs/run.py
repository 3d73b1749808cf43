"""Making, finding and ending runs."""

from __future__ import annotations

import difflib
import json
import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from phenomhpc.commit import commit, fsync_folder, make_folder
from phenomhpc.errors import UsageError
from phenomhpc.runs.paths import RUN_ID, RunPaths
from phenomhpc.runs.records import canonical_json, now

FOLDER_MODE = 0o750


def create_run(
    runs: Path, kind: str, run_yaml: str, provenance: Mapping[str, Any], *, name: str | None = None
) -> RunPaths:
    """Make RUNS/ID/ with run.yaml (last, so that a folder without one is no run).  ID = kind, local time, four hex digits."""
    if name is not None and not RUN_ID.match(name):
        raise UsageError(f"run name {name!r}: only letters, digits, '.', '_' and '-' are allowed")
    try:
        make_folder(runs)
    except OSError as error:
        raise UsageError(f"runs={runs}: cannot be made ({error.strerror}); choose a folder with --runs") from error
    while True:
        stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        paths = RunPaths((runs / (name or f"{kind}-{stamp}-{secrets.token_hex(2)}")).absolute())
        try:
            paths.root.mkdir(mode=FOLDER_MODE)
            break
        except FileExistsError:
            if name is not None:
                raise UsageError(f"run {name}: exists already in {runs}; choose another name") from None
        except OSError as error:
            raise UsageError(f"runs={runs}: not writable ({error.strerror}); choose a folder with --runs") from error
    commit(
        paths.provenance, json.dumps({"created": now(), "kind": kind, **provenance}, indent=2, sort_keys=True) + "\n"
    )
    commit(paths.run_yaml, run_yaml)
    return paths


def read_provenance(paths: RunPaths) -> dict[str, Any]:
    """provenance.json; its `kind` and `created` are always there."""
    value: dict[str, Any] = json.loads(paths.provenance.read_bytes())
    return value


def list_runs(runs: Path) -> list[RunPaths]:
    """All runs in a folder, oldest first."""
    if not runs.is_dir():
        return []
    found = [RunPaths(entry.absolute()) for entry in runs.iterdir() if (entry / "run.yaml").is_file()]
    return sorted(found, key=lambda paths: (str(read_provenance(paths)["created"]), paths.id))


def find_run(runs: Path, name: str, *, kind: str | None = None) -> RunPaths:
    """The run called `name`: an ID in `runs`, an unambiguous beginning of one, `last`, or a run directory's path.

    kind: only runs of this kind are looked at for `last` and beginnings.  Raises UsageError naming the nearest IDs.
    """
    for candidate in (runs / name, Path(name)):
        if name and (candidate / "run.yaml").is_file():
            return RunPaths(candidate.absolute())
    known = [paths for paths in list_runs(runs) if kind is None or read_provenance(paths)["kind"] == kind]
    if name == "last" and known:
        return known[-1]
    starting = [paths for paths in known if paths.id.startswith(name)]
    if len(starting) == 1:
        return starting[0]
    ids = [paths.id for paths in starting] or difflib.get_close_matches(name, [paths.id for paths in known], 3, 0.3)
    hint = f"did you mean {', '.join(ids[-3:])}?" if ids else "`phenomhpc runs` lists them"
    raise UsageError(f"{f'{kind} ' if kind else ''}run {name!r}: not found in {runs}; {hint}")


def write_outcome(paths: RunPaths, *, state: str, exit_code: int, message: str = "", **fields: Any) -> None:
    """End the run as a whole: state is finished, failed or cancelled."""
    commit(
        paths.outcome,
        canonical_json({"ended": now(), "state": state, "exit_code": exit_code, "message": message, **fields}),
    )


def read_outcome(paths: RunPaths) -> dict[str, Any] | None:
    """How the run ended, or None while it has not."""
    try:
        value: dict[str, Any] = json.loads(paths.outcome.read_bytes())
    except FileNotFoundError:
        return None
    return value


def set_outcome_aside(paths: RunPaths) -> None:
    """Let an ended run go on: its outcome is kept beside the attempt that it ended with, then removed; durable on return."""
    commit(paths.attempt(paths.last_attempt()).outcome, paths.outcome.read_bytes())
    paths.outcome.unlink()
    fsync_folder(paths.root)

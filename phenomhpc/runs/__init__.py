"""The run directory: the truth about a run.

paths.py owns every name, records.py says what is done, units.py and manifest.py what is to be done, events.py what happened,
fence.py who may still write, heartbeat.py who is alive, run.py makes, finds and ends runs.
"""

from phenomhpc.commit import TEMPORARY, commit, commit_first, committing, make_folder, new_token, remove_temporaries
from phenomhpc.runs.context import TaskContext
from phenomhpc.runs.events import (
    PROGRESS,
    UNITS,
    Event,
    EventWriter,
    read_events,
    read_events_but_units,
    read_log,
    read_task_events,
    unit_ids,
    walk_events,
)
from phenomhpc.runs.fence import attempt_token, check_fence, claim_start, open_attempt
from phenomhpc.runs.manifest import count_units, first_kind, read_manifest, write_manifest
from phenomhpc.runs.paths import AttemptPaths, GatePaths, RoundsPaths, RunPaths
from phenomhpc.runs.provenance import PACKAGE, changed_files, collect_provenance, git
from phenomhpc.runs.records import CompletionRecord, canonical_json, digest_of, now, read_record, write_record
from phenomhpc.runs.run import (
    create_run,
    find_run,
    list_runs,
    read_outcome,
    read_provenance,
    set_outcome_aside,
    write_outcome,
)
from phenomhpc.runs.units import Unit, Units

__all__ = [
    "PACKAGE",
    "PROGRESS",
    "TEMPORARY",
    "UNITS",
    "AttemptPaths",
    "CompletionRecord",
    "Event",
    "EventWriter",
    "GatePaths",
    "RoundsPaths",
    "RunPaths",
    "TaskContext",
    "Unit",
    "Units",
    "attempt_token",
    "canonical_json",
    "changed_files",
    "check_fence",
    "claim_start",
    "collect_provenance",
    "commit",
    "commit_first",
    "committing",
    "count_units",
    "create_run",
    "digest_of",
    "find_run",
    "first_kind",
    "git",
    "list_runs",
    "make_folder",
    "new_token",
    "now",
    "open_attempt",
    "read_events",
    "read_events_but_units",
    "read_log",
    "read_manifest",
    "read_outcome",
    "read_provenance",
    "read_record",
    "read_task_events",
    "remove_temporaries",
    "set_outcome_aside",
    "unit_ids",
    "walk_events",
    "write_manifest",
    "write_outcome",
    "write_record",
]

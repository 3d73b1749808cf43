"""Events of many units, told together, say what they said one by one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from phenomhpc.jobs.usage import starts_of, useful_of_units
from phenomhpc.runs import (
    UNITS,
    RunPaths,
    canonical_json,
    read_events,
    read_events_but_units,
    read_log,
    unit_ids,
)

NAMES = st.sampled_from(["a", "b/00001", "plate \\ 1", 'q"', "ü", '"event":"unit"', "", "z,"])
LINES = st.lists(
    st.tuples(
        st.sampled_from(["unit", "unit", "unit", "started", "ended", "failed"]),
        st.integers(0, 2),
        NAMES,
        st.none() | st.floats(0.001, 1e9),
        st.booleans(),
        st.none() | st.integers(1, 10**13),
    ),
    max_size=25,
)


def written(folder: str, lines: list[tuple[str, int, str, float | None, bool, int | None]]) -> RunPaths:
    paths = RunPaths(Path(folder))
    paths.events.mkdir()
    files: dict[int, bytes] = {}
    for number, (event, task, name, seconds, torn, num) in enumerate(lines):
        fields: dict[str, Any] = {
            "time": f"2026-11-23T10:{number:02d}:00.000000+00:00", "seq": number, "event": event, "attempt": 1, "task": task,
            "token": "t/0/5_1", "host": name, "job_id": None,
        }  # fmt: skip
        if event == "unit":
            fields |= {"unit_id": name, "set_aside": 0, **({"seconds": seconds} if seconds else {})}
            fields |= {"count": num, "bytes": 2 * num, "cost_s": 1.5} if num else {}
        if event == "ended":
            fields |= {"seconds": 1.0, "code": 0}
        line = canonical_json(fields)
        files[task] = files.get(task, b"") + (line[: len(line) // 2] if torn else line) + b"\n"
    for task, data in files.items():
        paths.events_file(1, task).write_bytes(data)
    return paths


@given(LINES)
@settings(max_examples=150, deadline=None)
def test_units_told_together_are_those_told_one_by_one(
    lines: list[tuple[str, int, str, float | None, bool, int | None]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = written(folder, lines)
        plain, log = read_events(paths), read_log(paths)
        others = [event for event in plain if event["event"] != "unit"]
        assert [event for event in log if event["event"] != UNITS] == others
        assert read_events_but_units(paths) == others
        assert unit_ids(log) == unit_ids(plain)
        units = [event for event in plain if event["event"] == "unit"]
        told = [
            (event["task"], *unit)
            for event in log
            if event["event"] == UNITS
            for unit in zip(*(event[name] for name in ("times", "unit_ids", "seconds", "counts", "bytes")), strict=True)
        ]
        assert sorted(told, key=str) == sorted(
            (
                (event["task"], event["time"], event["unit_id"], *map(event.get, ("seconds", "count", "bytes")))
                for event in units
            ),
            key=str,
        )
        one, other = starts_of(plain, (), (), 0.0), starts_of(log, (), (), 0.0)
        assert one == other
        assert useful_of_units(one) == useful_of_units(other)

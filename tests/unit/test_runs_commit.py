"""commit(): whole or absent, whatever happens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from phenomhpc.runs import commit, committing, remove_temporaries
from tests.unit.crash_replay import Call, crashes, trace

OLD, NEW = b"old" * 2000, b"new" * 7000

GOOD = f"""
import sys
from pathlib import Path
from phenomhpc.commit import commit, committing
folder = Path(sys.argv[1]) / "made"
commit(folder / "NAME", {OLD!r}, token="t1")
open(folder / "RETURNED-1", "w").close()
with committing(folder / "NAME", token="t2") as file:
    file.write({NEW[:5000]!r}); file.flush(); file.write({NEW[5000:]!r})
open(folder / "RETURNED-2", "w").close()
"""


def without(program: str, line: str) -> str:
    """The program with one safety measure of commit() taken out."""
    start = "import os, sys\nimport phenomhpc.runs\nmodule = sys.modules['phenomhpc.commit']"
    return f"{start}\n{line}\n{program}"


NO_DATA_FSYNC = without(
    GOOD, "module.os.fsync = lambda fd, real=os.fsync: None if os.path.isfile(f'/proc/self/fd/{fd}') else real(fd)"
)
NO_FOLDER_FSYNC = without(GOOD, "module.fsync_folder = lambda folder: None")
IN_PLACE = f"""
import os, sys
from pathlib import Path
folder = Path(sys.argv[1]) / "made"; folder.mkdir()
for number, data in ((1, {OLD!r}), (2, {NEW!r})):
    with open(folder / "NAME", "wb") as file:
        file.write(data); file.flush(); os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY); os.fsync(descriptor); os.close(descriptor)
    open(folder / f"RETURNED-{{number}}", "w").close()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def violations(calls: list[Call]) -> list[str]:
    """What any crash at any point breaks of commit()'s promise."""
    found = []
    for cut in range(len(calls) + 1):
        returned = sum(1 for call in calls[:cut] if call.name == "open" and "RETURNED" in call.path)
        allowed = [{None, OLD}, {OLD, NEW}, {NEW}][returned]
        for disk in crashes(calls[:cut]):
            content = next((data for path, data in disk.items() if path.endswith("/NAME")), None)
            if content not in allowed:
                found.append(f"cut after {cut} calls: {None if content is None else len(content)} bytes")
    return found


@pytest.fixture
def traced(tmp_path: Path) -> Path:
    if shutil.which("strace") is None:
        pytest.skip("strace absent: make test installs it where it can")
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def test_a_crash_at_any_point_leaves_the_old_or_the_new_content_whole(traced: Path) -> None:
    calls = trace(GOOD, traced)
    assert sum(call.name == "rename" for call in calls) == 2
    assert not violations(calls)


@pytest.mark.parametrize(
    "program", [NO_DATA_FSYNC, NO_FOLDER_FSYNC, IN_PLACE], ids=["no fsync", "no folder fsync", "in place"]
)
def test_the_replay_finds_a_commit_without_its_safety_measures(traced: Path, program: str) -> None:
    assert violations(trace(program, traced))


def test_an_exception_publishes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    commit(tmp_path / "NAME", "before")
    with pytest.raises(ZeroDivisionError), committing(tmp_path / "NAME", token="t") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert (tmp_path / "NAME").read_text() == "before"
    assert names(tmp_path) == ["NAME"]


def test_temporaries_of_the_dead_are_removed_by_name(tmp_path: Path) -> None:
    for name in ("a.tmp-1", "a.tmp-2", "ab.tmp-3", "b"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path, "a")
    assert names(tmp_path) == ["ab.tmp-3", "b"]
    remove_temporaries(tmp_path)
    assert names(tmp_path) == ["b"]

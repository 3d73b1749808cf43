"""Fixtures every part shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real samples; skips, by name, where it is absent."""
    folder = Path(os.environ.get("PHENOMHPC_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"real samples absent: {folder} (set PHENOMHPC_SHARED)")
    return folder


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The cluster's files, which take longest, spread evenly among the others: few at any time, and not all of them at the end."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting = [path for path, held in files.items() if held[0].get_closest_marker("slurm")]
    others = [path for path in files if path not in set(waiting)]
    place = {path: float(number) for number, path in enumerate(others)}
    apart = 0.9 * len(others) / max(1, len(waiting))
    place |= {path: number * apart - 0.5 for number, path in enumerate(waiting)}
    items[:] = [item for path in sorted(place, key=place.__getitem__) for item in files[path]]

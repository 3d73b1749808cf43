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

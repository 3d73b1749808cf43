"""Compiled functions: kept where something can be written, compiled by each process where nothing can."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from phenomhpc.compiled import compiled
from phenomhpc.models import standardise_loops
from phenomhpc.slurm.submit import PACKAGE, copy_code
from phenomhpc.store import encode_loops, frames

SOURCE = """
def twice(values):
    for number in range(len(values)):
        values[number] *= 2
"""


def test_a_function_that_nobody_can_keep_is_compiled_all_the_same() -> None:
    import numpy as np

    names: dict[str, Any] = {}
    exec(SOURCE, names)  # in no file, so there is no place beside it
    values = np.arange(4)
    compiled("void(i8[::1])")(names["twice"])(values)
    assert values.tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("module", [frames, encode_loops])
def test_loops_are_compiled_anew_when_their_instructions_change(module: Any) -> None:
    """numba would go on with machine code that was made with other instructions."""
    now = hashlib.sha256((PACKAGE / "store" / "vectors.py").read_bytes()).hexdigest()
    assert now.startswith(module.COMPILED_WITH), (
        f"vectors.py has changed: set {module.__name__}.COMPILED_WITH to {now[:16]}"
    )


def test_what_is_compiled_goes_with_the_code_of_a_run(tmp_path: Path) -> None:
    assert standardise_loops.__file__ is not None and Path(standardise_loops.__file__).is_relative_to(PACKAGE)
    copy_code(tmp_path / "code")
    program = (
        "from phenomhpc.models import standardise_loops as loops; print(loops.__file__); "
        "print(sum(loops.standardise_planes.stats.cache_misses.values()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "code")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    where, misses = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path / "code") and misses == "0"

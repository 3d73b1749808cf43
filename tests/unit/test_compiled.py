"""Compiled functions: kept where something can be written, compiled by each process where nothing can."""

from __future__ import annotations

from typing import Any

from phenomhpc.compiled import compiled

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

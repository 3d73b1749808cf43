"""Philox equals numpy's."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from phenomhpc import philox as philox_module
from phenomhpc.philox import MASK, philox, uniform, uniform32


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize(
    ("seed", "purpose", "index", "draw"), [(1, 2, 3, 0), (2**63 - 1, 5, 2**64 - 1, 7), (0, 1, 0, 0), (5, 3, 10**10, 2)]
)
def test_a_block_is_the_one_numpy_computes(
    seed: int, purpose: int, index: int, draw: int, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(philox_module, "_is_compiled", lambda num_blocks: is_compiled)
    before = (index + (draw << 64) - 1) % 2**256
    counter = np.array([(before >> (64 * word)) % 2**64 for word in range(4)], dtype=np.uint64)
    numpys = np.random.Philox(key=np.array([seed, purpose], dtype=np.uint64), counter=counter).random_raw(4)
    assert np.array_equal(philox(seed, purpose, index, draw), numpys)


def test_it_is_a_function_of_the_index_alone_and_broadcasts() -> None:
    index = np.arange(1000, dtype=np.uint64)
    all_at_once = philox(7, MASK, index)
    assert np.array_equal(all_at_once[313], philox(7, MASK, 313))
    assert philox(7, MASK, index[:, None], np.arange(3)).shape == (1000, 3, 4)
    assert np.array_equal(philox(7, MASK, index[:, None], np.arange(3))[5, 2], philox(7, MASK, 5, 2))


def test_compiled_code_gives_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    index, draw = (rng.integers(0, 2**64, (40, 30), dtype=np.uint64) for _ in range(2))
    for seed in (0, -5, 2**64 - 1, 2**70 + 3):
        found = []
        for is_compiled in (False, True):
            monkeypatch.setattr(philox_module, "_is_compiled", lambda num_blocks, answer=is_compiled: answer)
            found.append((philox(seed, MASK, index, draw[0]), philox(seed, 7, index[::2, :20].T, draw[:20, :1])))
        assert all(np.array_equal(*both) for both in zip(*found, strict=True))


def test_few_words_do_not_load_compiled_code() -> None:
    code = "import sys; from phenomhpc.philox import philox; philox(1, 2, range({})); print('numba' in sys.modules)"
    for num, is_loaded in ((100, "False"), (1024, "True")):
        done = subprocess.run([sys.executable, "-c", code.format(num)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == is_loaded


def test_uniforms_lie_in_the_half_open_interval_and_are_spread() -> None:
    words = philox(1, MASK, np.arange(5000))
    for values in (uniform(words), uniform32(words)):
        assert values.min() >= 0 and values.max() < 1
        assert abs(values.mean() - 0.5) < 0.01
    top = np.array([2**64 - 1], dtype=np.uint64)
    assert uniform(top)[0] < 1 and uniform32(top)[0] < 1

"""Property: a pixel of every level of a pyramid is the mean of the pixels below it, whatever the size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenomhpc.store.pyramid import MAX_LEVELS, level_size, num_levels, pyramid


@given(
    st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, MAX_LEVELS), st.integers(0, 2**32),
    st.sampled_from(["uint8", "uint16"]),
)  # fmt: skip
def test_every_pixel_is_the_mean_of_its_block(
    channels: int, height: int, width: int, levels: int, seed: int, dtype: str
) -> None:
    most = np.iinfo(dtype).max
    pixels = np.random.default_rng(seed).choice([0, 1, most - 1, most], (channels, height, width)).astype(dtype)
    found = list(pyramid(pixels, levels))
    assert len(found) == levels and np.array_equal(found[0], pixels)
    for level, scaled in enumerate(found):
        edge = 2**level
        assert scaled.shape == (channels, level_size(height, level), level_size(width, level)) and scaled.dtype == dtype
        for y, x in np.ndindex(scaled.shape[1:]):
            block = pixels[:, y * edge : (y + 1) * edge, x * edge : (x + 1) * edge].reshape(channels, -1).tolist()
            assert scaled[:, y, x].tolist() == [(2 * sum(row) + len(row)) // (2 * len(row)) for row in block]


def test_the_largest_sums_fit() -> None:
    white = np.full((1, 2**8, 2**8), 2**16 - 1, np.uint16)
    assert [level.max() for level in pyramid(white, MAX_LEVELS)] == [2**16 - 1] * MAX_LEVELS
    with pytest.raises(ValueError, match="10 levels: 1 to 9"):
        next(pyramid(white, MAX_LEVELS + 1))


@pytest.mark.parametrize(("size", "levels"), [(1, 1), (256, 1), (257, 2), (1080, 4), (2048, 4), (2160, 5), (10**6, 9)])
def test_levels_go_down_to_one_chunk(size: int, levels: int) -> None:
    assert num_levels(size, 10, 256) == num_levels(10, size, 256) == levels

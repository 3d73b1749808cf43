"""Property: mutated image files are refused or give a plane, quickly; never a crash, a hang or a foreign dtype."""

from __future__ import annotations

import io
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phenomhpc.plates import UnreadableImage, read_plane
from phenomhpc.plates.synthetic.writing import encode

CASES = 1200
LIMIT_S = 5.0


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16]), hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
    ),
    st.sampled_from(["png", "jp2", "tif"]),
)
def test_any_plane_comes_back_from_any_format(plane: np.ndarray, image_format: str) -> None:
    read = read_plane(encode(plane, image_format), "x")
    assert read.dtype == plane.dtype and np.array_equal(read, plane)


def originals(plane: np.ndarray) -> list[bytes]:
    found = [encode(plane, "png"), encode(plane, "jp2")]
    for options in (
        {"compression": "lzw", "predictor": True, "rowsperstrip": 8},
        {"compression": "lzw", "tile": (16, 16)},
        {"compression": "zlib"},
        {"rowsperstrip": 8},
    ):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, plane, metadata=None, **options)
        found.append(buffer.getvalue())
    return found


def mutate_and_read(seed: int) -> None:
    """Read files with some bytes changed, mostly in the header."""
    draw = np.random.default_rng(seed)
    plane = (np.cumsum(draw.integers(-2, 3, (61, 83)), axis=0) + 300).astype(np.uint16)
    files = originals(plane)
    for number in range(CASES):
        data = bytearray(files[number % len(files)])
        for _ in range(int(draw.integers(1, 6))):
            end = len(data) if draw.random() < 0.3 else 400
            data[int(draw.integers(4, min(end, len(data))))] = int(draw.integers(256))
        if draw.random() < 0.1:
            del data[int(draw.integers(len(data))) :]
        began = time.monotonic()
        try:
            read = read_plane(bytes(data), "x")
        except UnreadableImage as error:
            assert "\n" not in str(error)
        else:
            assert read.ndim == 2 and read.dtype in (np.uint8, np.uint16)
        assert time.monotonic() - began < LIMIT_S, f"case {number}"


@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_files_never_crash_or_hang(seed: int) -> None:
    """In a process of its own: a decoder's segmentation fault must fail this test, not end the run."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.property.test_plates_images", str(seed)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]


if __name__ == "__main__":
    mutate_and_read(int(sys.argv[1]))

"""Loss terms and keyed numbers equal NumPy's for every shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phenomhpc.models.keyed import drop_path_factors, philox, uniform32
from phenomhpc.models.losses import fourier_l1, masked_mse
from phenomhpc.models.vit import patchify, unpatchify

SIDES = st.integers(1, 9)
WORDS = st.integers(0, 2**64 - 1)


def images(rng: np.random.Generator, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=shape).astype(np.float32), rng.normal(size=shape).astype(np.float32)


@given(st.integers(1, 3), st.integers(1, 4), SIDES, SIDES, st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_fourier_loss_is_numpys_whole_spectrum(b: int, c: int, h: int, w: int, seed: int) -> None:
    pred, target = images(np.random.default_rng(seed), b, c, h, w)
    spectra = np.abs(np.fft.fft2(pred.astype(np.float64))), np.abs(np.fft.fft2(target.astype(np.float64)))
    expected = np.abs(spectra[0] - spectra[1]).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(
        fourier_l1(*map(torch.from_numpy, (pred, target))).numpy(), expected, rtol=1e-3, atol=1e-4
    )


@given(st.integers(1, 3), st.integers(2, 20), st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_masked_mse_is_the_notes_formula(b: int, patches: int, values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pred, target = images(rng, b, patches, values)
    hidden = rng.integers(1, patches + 1)
    mask = np.zeros((b, patches), np.float32)
    for row in mask:
        row[rng.permutation(patches)[:hidden]] = 1
    loss = masked_mse(*map(torch.from_numpy, (pred, target, mask)))
    whole = (mask * ((pred.astype(np.float64) - target) ** 2).mean(2)).sum() / mask.sum()
    assert float(loss.mean()) == pytest.approx(whole, rel=1e-4)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 8), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_identical_input_gives_zero(c: int, grid: int, patch: int, seed: int) -> None:
    image = torch.from_numpy(images(np.random.default_rng(seed), 2, c, grid * patch, grid * patch)[0])
    patches = patchify(image, patch)
    again = unpatchify(patches, patch, c)
    assert torch.equal(again, image)
    assert not fourier_l1(again, image).any()
    assert not masked_mse(patches, patches.clone(), torch.ones(patches.shape[:2])).any()


def numpy_philox(seed: int, purpose: int, index: int, draw: int) -> np.ndarray:
    """One block of numpy's Philox at exactly this counter (numpy counts up before it draws)."""
    counter = (index | draw << 64) - 1 & (1 << 256) - 1
    words = np.array([counter >> 64 * i & 2**64 - 1 for i in range(4)], np.uint64)
    return np.random.Philox(counter=words, key=np.array([seed, purpose], np.uint64)).random_raw(4)


def int64(*words: int) -> torch.Tensor:
    return torch.from_numpy(np.array(words, np.uint64).view(np.int64))


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**32), WORDS, WORDS)
def test_philox_is_numpys(seed: int, purpose: int, index: int, draw: int) -> None:
    actual = philox(seed, purpose, int64(index), int64(draw)).numpy().view(np.uint64)[0]
    assert np.array_equal(actual, numpy_philox(seed, purpose, index, draw))


@given(st.lists(WORDS, min_size=1, max_size=20))
def test_uniform32_is_the_top_24_bits(words: list[int]) -> None:
    expected = np.array([word >> 40 for word in words], np.float32) / 2**24
    assert np.array_equal(uniform32(int64(*words)).numpy(), expected)


def test_drop_path_keeps_its_rate_and_its_mean() -> None:
    factors = drop_path_factors(3, torch.arange(20_000), (0.0, 0.25, 0.6))
    assert torch.equal(factors[0], torch.ones(20_000))
    for row, rate in ((1, 0.25), (2, 0.6)):
        assert (factors[row] == 0).float().mean().item() == pytest.approx(rate, abs=0.02)
        assert factors[row].mean().item() == pytest.approx(1, abs=0.05)
    both = ((factors[1] == 0) & (factors[2] == 0)).float().mean().item()
    assert both == pytest.approx(0.25 * 0.6, abs=0.02)  # blocks are independent

"""Loss terms and keyed numbers equal NumPy's for every shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phenomhpc.models.keyed import drop_path_factors, philox, uniform32
from phenomhpc.models.losses import fourier_l1, masked_mse, weighted_mean
from phenomhpc.models.mae import build_mae
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
    hidden = rng.integers(1, patches + 1)  # up to all of them
    mask = np.zeros((b, patches), np.float32)
    for row in mask:
        row[rng.permutation(patches)[:hidden]] = 1
    loss = masked_mse(*map(torch.from_numpy, (pred, target, mask)))
    whole = (mask * ((pred.astype(np.float64) - target) ** 2).mean(2)).sum() / mask.sum()
    assert float(loss.mean()) == pytest.approx(whole, rel=1e-4)


def test_a_crop_with_nothing_hidden_has_no_masked_error() -> None:
    pred, target = map(torch.from_numpy, images(np.random.default_rng(0), 2, 5, 4))
    mask = torch.tensor([[0.0] * 5, [1.0] * 5])
    loss = masked_mse(pred, target, mask)
    assert loss[0] == 0
    assert float(loss[1]) == pytest.approx(float((pred[1] - target[1]).square().mean()), rel=1e-6)


@given(st.lists(st.tuples(st.floats(0, 10, width=32), st.sampled_from([0.0, 1.0, 0.5])), min_size=1, max_size=9))
def test_a_weighted_mean_is_numpys_and_0_without_weight(rows: list[tuple[float, float]]) -> None:
    values, weights = np.array(rows, np.float32).T
    expected = np.average(values.astype(np.float64), weights=weights) if weights.sum() else 0.0
    actual = weighted_mean(torch.from_numpy(values.copy()), torch.from_numpy(weights.copy()))
    assert float(actual) == pytest.approx(expected, rel=1e-5, abs=1e-6)


TRANSFORMER = {
    "dim": 8, "depth": 1, "heads": 2, "mlp_ratio": 2.0, "qk_norm": True, "layer_scale": 0.1, "drop_path": 0.0,
    "decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2,
}  # fmt: skip


def numpy_patches(images: np.ndarray, patch: int, *, by_channel: bool) -> np.ndarray:
    """Cut out one after the other: f64[B, L, P], place by place, or channel by channel and place by place."""
    b, c, h, w = images.shape
    groups = [[i] for i in range(c)] if by_channel else [list(range(c))]
    places = [(y, x) for y in range(0, h, patch) for x in range(0, w, patch)]
    cut = [images[:, group, y : y + patch, x : x + patch].reshape(b, -1) for group in groups for y, x in places]
    return np.stack(cut, axis=1)


def numpy_images(patches: np.ndarray, patch: int, grid: int, channels: int, *, by_channel: bool) -> np.ndarray:
    """Put together one after the other."""
    out = np.zeros((len(patches), channels, grid * patch, grid * patch))
    for number in range(patches.shape[1]):
        channel, place = divmod(number, grid * grid)
        y, x = (patch * at for at in divmod(place, grid))
        chosen = [channel] if by_channel else list(range(channels))
        out[:, chosen, y : y + patch, x : x + patch] = patches[:, number].reshape(len(patches), -1, patch, patch)
    return out


@given(
    kind=st.sampled_from(["mae_vit", "ca_mae_vit", "unet_mae"]),
    channels=st.integers(1, 3),
    grid=st.integers(2, 4),
    patch=st.integers(1, 7),
    ratio=st.sampled_from([0.3, 0.5, 0.75]),
    fourier=st.sampled_from([0.0, 0.01, 1.0]),
    weights=st.lists(st.sampled_from([0.0, 1.0, 1.0]), min_size=3, max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_the_loss_of_every_architecture_and_shape_is_numpys(
    kind: str, channels: int, grid: int, patch: int, ratio: float, fourier: float, weights: list[float], seed: int
) -> None:
    """From prediction, mask and pixels alone, in float64, with the full complex transform: L = (1 - w) L_mse + w L_F."""
    rng = np.random.default_rng(seed)
    own = {"options": {"width": 4, "levels": 1}} if kind == "unet_mae" else TRANSFORMER
    edge = grid * patch
    shared = {"crop_px": edge, "patch_px": patch, "mask_ratio": ratio, "fourier_weight": fourier}
    model = build_mae(channels, seed=1, kind=kind, **shared, **own)
    pixels = rng.normal(size=(3, channels, edge, edge)).astype(np.float32)
    noise = rng.random((3, model.num_patches), dtype=np.float32)
    with torch.no_grad():
        output = model(*map(torch.from_numpy, (pixels, noise)), torch.arange(3), torch.tensor(weights))

    by_channel = kind == "ca_mae_vit"
    pred, mask = output.pred.numpy().astype(np.float64), output.mask.numpy().astype(np.float64)
    target = numpy_patches(pixels.astype(np.float64), patch, by_channel=by_channel)
    completed = numpy_images(pred, patch, grid, channels, by_channel=by_channel)
    mse = (mask * ((pred - target) ** 2).mean(2)).sum(1) / mask.sum(1)
    spectra = np.abs(np.fft.fft2(completed)), np.abs(np.fft.fft2(pixels.astype(np.float64)))
    amplitude = np.abs(spectra[0] - spectra[1]).mean((1, 2, 3))
    share = np.array(weights) / max(sum(weights), 1.0)
    expected = share @ mse, share @ amplitude
    assert float(output.loss_mse) == pytest.approx(expected[0], rel=1e-4, abs=1e-6)
    assert float(output.loss_fourier) == pytest.approx(expected[1], rel=1e-3, abs=1e-4)
    assert float(output.loss) == pytest.approx((1 - fourier) * expected[0] + fourier * expected[1], rel=1e-3, abs=1e-4)


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
    factors = drop_path_factors(3, torch.arange(20_000), torch.tensor([0.0, 0.25, 0.6]))
    assert torch.equal(factors[0], torch.ones(20_000))
    for row, rate in ((1, 0.25), (2, 0.6)):
        assert (factors[row] == 0).float().mean().item() == pytest.approx(rate, abs=0.02)
        assert factors[row].mean().item() == pytest.approx(1, abs=0.05)
    both = ((factors[1] == 0) & (factors[2] == 0)).float().mean().item()
    assert both == pytest.approx(0.25 * 0.6, abs=0.02)  # blocks are independent

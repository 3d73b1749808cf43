"""Encoders: what a crop becomes, whatever else is in its batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phenomhpc.embed.channels import match_channels
from phenomhpc.embed.encode import ModelEncoder, require_precision
from phenomhpc.errors import UsageError
from phenomhpc.models.intensity import PERCENTILES, IntensityStatistics
from phenomhpc.models.mae import MaskedAutoencoder, build_mae

FIELDS = {
    "crop_px": 16,
    "patch_px": 4,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "mlp_ratio": 2.0,
    "qk_norm": True,
    "layer_scale": 0.1,
    "drop_path": 0.5,
    "mask_ratio": 0.75,
    "decoder_dim": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "fourier_weight": 0.01,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def crops() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16), dtype=np.uint8)


def _model() -> MaskedAutoencoder:
    return build_mae(3, seed=1, **FIELDS)


def _vit(model: MaskedAutoencoder | None = None) -> ModelEncoder:
    return ModelEncoder(model or _model(), (255.0, 255.0, 255.0), device=torch.device("cpu"))


def test_the_padding_of_a_batch_changes_no_bit_of_the_rest(crops: np.ndarray) -> None:
    padded, other = crops.copy(), crops.copy()
    padded[5:] = 0
    other[5:] = np.random.default_rng(1).integers(0, 256, other[5:].shape)
    for encoder in (_vit(), IntensityStatistics((255.0,) * 3)):
        assert np.array_equal(encoder.encode(padded)[:5], encoder.encode(crops)[:5])
        assert np.array_equal(encoder.encode(other)[:5], encoder.encode(crops)[:5])


def test_another_batch_size_agrees_to_rounding(crops: np.ndarray) -> None:
    encoder = _vit()
    one_by_one = np.concatenate([encoder.encode(crops[i : i + 1]) for i in range(len(crops))])
    np.testing.assert_allclose(encoder.encode(crops), one_by_one, rtol=1e-5, atol=1e-6)


def test_encoding_is_inference_without_stochastic_depth(crops: np.ndarray) -> None:
    model = _model().train()
    encoder = _vit(model)
    assert np.array_equal(encoder.encode(crops), encoder.encode(crops))
    assert encoder.encode(crops).shape == (8, encoder.num_features)


def test_uint16_crops_with_their_scale_embed_as_the_same_picture_in_uint8(crops: np.ndarray) -> None:
    wide = ModelEncoder(_model(), (255.0 * 257,) * 3, device=torch.device("cpu"))
    np.testing.assert_allclose(wide.encode(crops.astype(np.uint16) * 257), _vit().encode(crops), rtol=1e-4, atol=1e-5)


def test_bf16_stays_near_fp32(crops: np.ndarray) -> None:
    half = ModelEncoder(_model(), (255.0,) * 3, device=torch.device("cpu"), precision="bf16")
    a, b = half.encode(crops).astype(np.float64), _vit().encode(crops).astype(np.float64)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert half.encode(crops).dtype == np.float32
    assert cosine.min() > 0.999 and not np.array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_intensity_statistics_are_those_of_numpy(dtype: type) -> None:
    pixels = np.random.default_rng(2).integers(0, np.iinfo(dtype).max, (2, 3, 7, 5)).astype(dtype)
    scale = (100.0, 200.0, 400.0)
    encoder = IntensityStatistics(scale, threads=3)
    features = encoder.encode(pixels).reshape(2, 3, -1)
    assert encoder.num_features == features.shape[1] * features.shape[2]
    for b in range(2):
        for c in range(3):
            values = pixels[b, c].astype(np.float64).ravel() / scale[c]
            expected = [values.mean(), values.std(), *np.percentile(values, PERCENTILES, method="lower")]
            np.testing.assert_allclose(features[b, c], expected, rtol=1e-6)


def test_channels_are_matched_by_name_and_a_missing_one_is_named() -> None:
    assert match_channels(["er", "dna", "mito"], ["dna", "er"], "S") == [1, 0]
    with pytest.raises(UsageError, match="no channel rna"):
        match_channels(["er", "dna"], ["dna", "rna"], "S")


@pytest.mark.parametrize(("has", "refused"), [((7, 0), True), ((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_a_gpu_without_bf16_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, has: tuple[int, int], refused: bool
) -> None:
    """What torch tells of a GPU stands in for one: there is none here."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: has)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    for precision in ("fp32", "fp16"):
        require_precision(precision, torch.device("cuda"))
    require_precision("bf16", torch.device("cpu"))
    if not refused:
        require_precision("bf16", torch.device("cuda"))
        return
    with pytest.raises(
        UsageError, match=r"precision=bf16: Tesla T4 has compute capability 7\.\d, .*; use precision=fp16"
    ):
        require_precision("bf16", torch.device("cuda"))

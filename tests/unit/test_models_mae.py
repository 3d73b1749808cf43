"""The masked autoencoder: its parts against their definitions, its size against the published one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from phenomhpc.errors import UsageError
from phenomhpc.models.mae import MaskedAutoencoder, build_mae, count_parameters, outline_mae
from phenomhpc.models.standardise import Standardiser, standardise
from phenomhpc.models.vit import ParallelBlock, patchify, sincos_positions, unpatchify

TINY: dict[str, Any] = {
    "crop_px": 32,
    "patch_px": 8,
    "dim": 32,
    "depth": 3,
    "heads": 2,
    "mlp_ratio": 4.0,
    "qk_norm": True,
    "layer_scale": 0.1,
    "drop_path": 0.5,
    "mask_ratio": 0.75,
    "decoder_dim": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "fourier_weight": 0.01,
}
B, C, SIDE, L = 4, 3, 32, 16


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (B, C, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    crops = standardise(pixels, torch.full((C,), 255.0))
    noise = torch.rand(B, L, generator=generator)
    return crops, noise, torch.arange(B), torch.ones(B)


def tiny(**changes: Any) -> MaskedAutoencoder:
    return build_mae(C, seed=7, **{**TINY, **changes})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_standardise_is_the_notes_formula(dtype: type) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, np.iinfo(dtype).max, (2, 3, 16, 16)).astype(dtype)
    scale = np.array([255.0, 1000.0, 40000.0], np.float32)
    x = pixels.astype(np.float64) / scale[:, None, None]
    expected = (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + 1e-5)
    actual = standardise(torch.from_numpy(pixels), torch.from_numpy(scale))
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_blank_crops_stay_at_zero() -> None:
    blank = torch.full((1, 2, 8, 8), 37, dtype=torch.uint8)
    assert standardise(blank, torch.full((2,), 255.0)).abs().max() < 1e-3


def test_patchify_follows_rows_then_columns_and_inverts() -> None:
    image = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).reshape(2, 3, 16, 16)
    patches = patchify(image, 4)
    assert patches.shape == (2, 16, 48)
    for row in range(4):
        for column in range(4):
            part = image[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert torch.equal(patches[:, 4 * row + column], part.reshape(2, 48))
    assert torch.equal(unpatchify(patches, 4, 3), image)


def test_positions_are_concat_sin_h_cos_h_sin_w_cos_w() -> None:
    dim, grid = 16, 5
    table = sincos_positions(dim, grid).numpy()
    assert np.all(table[0] == 0)  # class token
    omega = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
    for h in range(grid):
        for w in range(grid):
            expected = np.concatenate([np.sin(h * omega), np.cos(h * omega), np.sin(w * omega), np.cos(w * omega)])
            np.testing.assert_allclose(table[1 + h * grid + w], expected, atol=1e-6)


def test_block_is_norm_then_attention_and_mlp_side_by_side() -> None:
    """Against the definition written out head by head with separate matrices."""
    dim, heads, tokens = 16, 2, 5
    block = ParallelBlock(dim, heads, mlp_ratio=4.0, qk_norm=True, layer_scale=0.5)
    block.initialise(torch.Generator().manual_seed(0))
    x = torch.randn(1, tokens, dim, generator=torch.Generator().manual_seed(1))

    def layer_norm(v: np.ndarray) -> np.ndarray:
        return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-6)

    y = layer_norm(x[0].numpy().astype(np.float64))
    w_in, w_out = block.in_proj.weight.detach().numpy(), block.out_proj.weight.detach().numpy()
    q, k, v, mlp = np.split(y @ w_in.T, [dim, 2 * dim, 3 * dim], axis=1)
    attended = []
    for head in range(heads):
        part = slice(head * dim // heads, (head + 1) * dim // heads)
        logits = layer_norm(q[:, part]) @ layer_norm(k[:, part]).T / np.sqrt(dim / heads)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        attended.append(shares / shares.sum(1, keepdims=True) @ v[:, part])
    gelu = torch.nn.functional.gelu(torch.from_numpy(mlp)).numpy()
    branch = np.concatenate(attended, axis=1) @ w_out[:, :dim].T + gelu @ w_out[:, dim:].T
    np.testing.assert_allclose(block(x)[0].detach().numpy(), x[0].numpy() + 0.5 * branch, atol=1e-5)


def test_mask_hides_all_but_the_smallest_noise(inputs: Any) -> None:
    crops, noise, keys, weight = inputs
    mask = tiny().eval()(crops, noise, keys, weight).mask
    assert torch.equal(mask.sum(1), torch.full((B,), 12.0))
    for b in range(B):
        assert set(torch.nonzero(mask[b] == 0).ravel().tolist()) == set(noise[b].argsort()[:4].tolist())


def test_hidden_pixels_do_not_reach_the_prediction(inputs: Any) -> None:
    crops, noise, keys, weight = inputs
    model = tiny().eval()
    first = model(crops, noise, keys, weight)
    patches = patchify(crops, 8)
    changed = unpatchify(torch.where(first.mask[:, :, None] > 0, torch.full_like(patches, 9.0), patches), 8, C)
    assert torch.equal(model(changed, noise, keys, weight).pred, first.pred)


def test_loss_is_the_weighted_mean_of_single_crops(inputs: Any) -> None:
    crops, noise, keys, _ = inputs
    model = tiny().eval()
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0])
    together = model(crops, noise, keys, weight)
    alone = [model(crops[b : b + 1], noise[b : b + 1], keys[b : b + 1]) for b in (0, 1, 3)]
    for name in ("loss", "loss_mse", "loss_fourier"):
        mean = torch.stack([getattr(output, name) for output in alone]).mean()
        torch.testing.assert_close(getattr(together, name), mean)
    torch.testing.assert_close(together.loss, 0.99 * together.loss_mse + 0.01 * together.loss_fourier)


def test_padding_changes_no_gradient_and_all_padding_gives_zero(inputs: Any) -> None:
    crops, noise, keys, _ = inputs
    model = tiny()

    def gradients(n: int, weight: list[float]) -> list[torch.Tensor]:
        model.zero_grad()
        model(crops[:n], noise[:n], keys[:n], torch.tensor(weight)).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for a, b in zip(gradients(2, [1, 1]), gradients(4, [1, 1, 0, 0]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert all(torch.count_nonzero(g) == 0 for g in gradients(4, [0, 0, 0, 0]))


def test_every_parameter_gets_a_gradient(inputs: Any) -> None:
    model = tiny(drop_path=0.0)
    model(*inputs).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_stochastic_depth_depends_on_the_key_not_on_the_place_in_the_batch(inputs: Any) -> None:
    crops, noise, _, weight = inputs
    model = tiny(drop_path=0.9)
    keys = torch.tensor([5, 17, 2**40, 11])
    order = torch.tensor([2, 0, 3, 1])
    pred = model(crops, noise, keys, weight).pred
    torch.testing.assert_close(model(crops[order], noise[order], keys[order], weight).pred, pred[order])
    assert not torch.allclose(model(crops, noise, keys + 1, weight).pred, pred)
    evaluated = tiny(drop_path=0.9).eval()
    assert torch.equal(evaluated(crops, noise, keys, weight).pred, evaluated(crops, noise, keys + 1, weight).pred)


def test_building_is_a_function_of_the_seed_and_leaves_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = tiny(), tiny(), build_mae(C, seed=8, **TINY)
    assert torch.equal(before, torch.get_rng_state())
    for (name, p), q in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert not torch.equal(first.patch_embed.weight, other.patch_embed.weight)


def test_encode_pools_tokens_of_the_asked_block(inputs: Any) -> None:
    crops = inputs[0]
    model = tiny().eval()
    with torch.no_grad():
        assert model.encode(crops).shape == (B, 32)
        assert torch.equal(model.encode(crops), model.encode(crops, block=3))
        assert not torch.allclose(model.encode(crops), model.encode(crops, block=2))
        assert not torch.allclose(model.encode(crops), model.encode(crops, pooling="class"))
        # rows of a batch do not see each other
        torch.testing.assert_close(model.encode(crops[:1]), model.encode(crops)[:1])


@pytest.mark.parametrize("block", [0, 4])
def test_encode_refuses_a_block_that_is_not_there(block: int, inputs: Any) -> None:
    with pytest.raises(UsageError, match=rf"block={block}: the encoder has blocks 1 to 3"):
        tiny().encode(inputs[0], block=block)


def test_encode_refuses_crops_of_another_shape() -> None:
    with pytest.raises(UsageError, match="crops of 3 x 64 x 64: this encoder takes 3 x 32 x 32"):
        tiny().encode(torch.zeros(1, 3, 64, 64))


def test_reconstruction_keeps_visible_patches_and_fills_hidden_ones(inputs: Any) -> None:
    crops, noise, keys, weight = inputs
    model = tiny().eval()
    output, images = model(crops, noise, keys, weight), model.reconstruct(crops, noise)
    hidden = output.mask[:, :, None] > 0
    original, filled, masked = (patchify(image, 8) for image in (crops, images.reconstructed, images.masked))
    torch.testing.assert_close(filled, torch.where(hidden, output.pred, original))
    assert torch.equal(masked, torch.where(hidden, torch.zeros_like(original), original))


def test_a_mask_ratio_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model.mask_ratio=0.99 of 16 patches leaves 0 visible"):
        tiny(mask_ratio=0.99)


@pytest.mark.parametrize(
    ("recipe", "millions"), [("mae_vit_s16", 22), ("mae_vit_b16", 86), ("mae_vit_l16", 304), ("mae_vit_l8", 304)]
)
def test_recipes_have_as_many_parameters_as_published(recipe: str, millions: float) -> None:
    counts = count_parameters(outline_mae(6, **recipe_fields(recipe)))
    assert counts["encoder"] / 1e6 == pytest.approx(millions, rel=0.01)
    assert counts["decoder"] / 1e6 == pytest.approx(25, rel=0.07)


def test_g8_has_as_many_parameters_as_published() -> None:
    counts = count_parameters(outline_mae(6, **recipe_fields("mae_vit_g8")))
    assert sum(counts.values()) / 1e9 == pytest.approx(1.86, rel=0.01)


def recipe_fields(name: str) -> dict[str, Any]:
    from phenomhpc.config import resolve

    return resolve("pretrain", {}, [f"model={name}"]).config.model.model_dump()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_are_standardised_as_floats_are(dtype: type) -> None:
    """Compiled code for integers on a CPU, and the operators that any device has."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 200, (3, 2, 130, 140)).astype(dtype)
    pixels[0, 0], pixels[1, 1, :, 1:] = np.iinfo(dtype).max, 0
    scale = torch.tensor([255.0, 900.0])
    compiled = standardise(torch.from_numpy(pixels), scale)
    operators = standardise(torch.from_numpy(pixels.astype(np.float32)), scale)
    # In f32 a value is rounded as its plane's greatest is: to 2^-24 of up to 130 (one bright column of 140), and sums of 18,200.
    np.testing.assert_allclose(compiled.numpy(), operators.numpy(), rtol=1e-4, atol=1e-3)


def test_a_standardiser_gives_the_same_in_memory_of_its_own() -> None:
    rng, scale = np.random.default_rng(2), torch.tensor([255.0, 255.0])
    batches = [torch.from_numpy(rng.integers(0, 255, (n, 2, 128, 130)).astype(np.uint8)) for n in (4, 2, 5)]
    reused = Standardiser(scale)
    for pixels in batches:
        assert torch.equal(reused(pixels), standardise(pixels, scale))
    assert reused(batches[0]).data_ptr() == reused(batches[1]).data_ptr()

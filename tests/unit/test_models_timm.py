"""timm's ViT weights give, under our names, the features that timm's own forward pass gives.

timm is not installed: state dicts are built to its naming, and its forward pass is written out here as its source has it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from phenomhpc.errors import UsageError
from phenomhpc.models.mae import build_mae
from phenomhpc.models.timm_weights import from_timm, load_timm
from phenomhpc.models.vit_mae import VitMae

D, DEPTH, HEADS, HIDDEN, PATCH, SIDE, C = 16, 2, 2, 64, 4, 16, 3
L = (SIDE // PATCH) ** 2
State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model(**changes: Any) -> VitMae:
    fields: dict[str, Any] = {
        "crop_px": SIDE, "patch_px": PATCH, "dim": D, "depth": DEPTH, "heads": HEADS, "mlp_ratio": 4.0, "qk_norm": False,
        "layer_scale": 0.0, "drop_path": 0.0, "mask_ratio": 0.75, "decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2,
        "fourier_weight": 0.01, "block": "sequential", "qkv_bias": True, "positions": "learned",
    }  # fmt: skip
    built = build_mae(changes.pop("num_channels", C), seed=1, **{**fields, **changes}).eval()
    assert isinstance(built, VitMae)
    return built


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def outside(*, registers: int = 0, positions: int = 1 + L) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, D), "pos_embed": (1, positions, D), "patch_embed.proj.weight": (D, C, PATCH, PATCH),
        "patch_embed.proj.bias": (D,), "norm.weight": (D,), "norm.bias": (D,), "head.weight": (10, D), "head.bias": (10,),
    }  # fmt: skip
    return shapes | ({"reg_token": (1, registers, D)} if registers else {})


def sequential(
    i: int, *, qk_norm: bool = False, scale: bool = False, qkv_bias: bool = True
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of timm's Block."""
    shapes: dict[str, tuple[int, ...]] = {
        "norm1.weight": (D,), "norm1.bias": (D,), "attn.qkv.weight": (3 * D, D), "attn.proj.weight": (D, D),
        "attn.proj.bias": (D,), "norm2.weight": (D,), "norm2.bias": (D,), "mlp.fc1.weight": (HIDDEN, D),
        "mlp.fc1.bias": (HIDDEN,), "mlp.fc2.weight": (D, HIDDEN), "mlp.fc2.bias": (D,),
    }  # fmt: skip
    if qkv_bias:
        shapes["attn.qkv.bias"] = (3 * D,)
    if qk_norm:
        shapes |= {f"attn.{x}_norm.{kind}": (D // HEADS,) for x in "qk" for kind in ("weight", "bias")}
    if scale:
        shapes |= {"ls1.gamma": (D,), "ls2.gamma": (D,)}
    return {f"blocks.{i}.{name}": shape for name, shape in shapes.items()}


def parallel(i: int, *, qkv_bias: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of timm's ParallelScalingBlock, with qk-norm and LayerScale."""
    shapes: dict[str, tuple[int, ...]] = {
        "in_norm.weight": (D,), "in_norm.bias": (D,), "in_proj.weight": (HIDDEN + 3 * D, D),
        "q_norm.weight": (D // HEADS,), "q_norm.bias": (D // HEADS,), "k_norm.weight": (D // HEADS,),
        "k_norm.bias": (D // HEADS,), "attn_out_proj.weight": (D, D), "attn_out_proj.bias": (D,),
        "mlp_out_proj.weight": (D, HIDDEN), "mlp_out_proj.bias": (D,), "ls.gamma": (D,),
    }  # fmt: skip
    shapes |= {"in_proj.bias": (HIDDEN + 3 * D,)} if qkv_bias else {"mlp_bias": (HIDDEN,)}
    return {f"blocks.{i}.{name}": shape for name, shape in shapes.items()}


def fill(*parts: dict[str, tuple[int, ...]]) -> State:
    shapes = {name: shape for part in parts for name, shape in part.items()}
    return {name: random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def norm(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: State, at: str) -> torch.Tensor:
    """Head by head, [B, N, D]; normalised queries and keys where there are weights for it."""
    heads = []
    for head in range(HEADS):
        part = slice(head * D // HEADS, (head + 1) * D // HEADS)
        query, key = q[..., part], k[..., part]
        if f"{at}q_norm.weight" in state:
            query, key = norm(query, state, f"{at}q_norm"), norm(key, state, f"{at}k_norm")
        shares = (query @ key.transpose(1, 2) / (D / HEADS) ** 0.5).softmax(-1)
        heads.append(shares @ v[..., part])
    return torch.cat(heads, dim=-1)


def timm_features(state: State, crops: torch.Tensor) -> torch.Tensor:
    """VisionTransformer.forward_features: tokens [B, 1 + registers + L, D] after the last norm."""
    x = F.conv2d(crops, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    prefix = [state["cls_token"].expand(len(x), -1, -1)]
    if "reg_token" in state:
        prefix.append(state["reg_token"].expand(len(x), -1, -1))
    if state["pos_embed"].shape[1] == L:  # no_embed_class
        x = torch.cat([*prefix, x + state["pos_embed"]], dim=1)
    else:
        x = torch.cat([*prefix, x], dim=1) + state["pos_embed"]
    for i in range(DEPTH):
        at = f"blocks.{i}."
        x = timm_parallel(x, state, at) if f"{at}in_proj.weight" in state else timm_sequential(x, state, at)
    return norm(x, state, "norm")


def timm_sequential(x: torch.Tensor, state: State, at: str) -> torch.Tensor:
    y = F.linear(norm(x, state, f"{at}norm1"), state[f"{at}attn.qkv.weight"], state.get(f"{at}attn.qkv.bias"))
    y = F.linear(
        attend(*y.chunk(3, -1), state, f"{at}attn."), state[f"{at}attn.proj.weight"], state[f"{at}attn.proj.bias"]
    )
    x = x + y * state.get(f"{at}ls1.gamma", 1.0)
    y = F.gelu(F.linear(norm(x, state, f"{at}norm2"), state[f"{at}mlp.fc1.weight"], state[f"{at}mlp.fc1.bias"]))
    y = F.linear(y, state[f"{at}mlp.fc2.weight"], state[f"{at}mlp.fc2.bias"])
    return x + y * state.get(f"{at}ls2.gamma", 1.0)


def timm_parallel(x: torch.Tensor, state: State, at: str) -> torch.Tensor:
    bias = state.get(f"{at}in_proj.bias")
    if bias is None:
        bias = torch.cat([state[f"{at}mlp_bias"], torch.zeros(3 * D)])
    y = F.linear(norm(x, state, f"{at}in_norm"), state[f"{at}in_proj.weight"], bias)
    mlp, q, k, v = y.split([HIDDEN, D, D, D], dim=-1)
    attended = attend(q, k, v, state, at)
    attended = F.linear(attended, state[f"{at}attn_out_proj.weight"], state[f"{at}attn_out_proj.bias"])
    mlp = F.linear(F.gelu(mlp), state[f"{at}mlp_out_proj.weight"], state[f"{at}mlp_out_proj.bias"])
    return x + state[f"{at}ls.gamma"] * (attended + mlp)


PLAIN = fill(outside(), *(sequential(i) for i in range(DEPTH)))
VARIANTS: dict[str, tuple[State, dict[str, Any]]] = {
    "plain": (PLAIN, {}),
    "layer_scale, qk_norm": (
        fill(outside(), *(sequential(i, qk_norm=True, scale=True) for i in range(DEPTH))),
        {"qk_norm": True, "layer_scale": 0.1},
    ),
    "no bias on q, k, v": (
        fill(outside(), *(sequential(i, qkv_bias=False) for i in range(DEPTH))),
        {"qkv_bias": False},
    ),
    "registers without positions": (
        fill(outside(registers=2, positions=L), *(sequential(i) for i in range(DEPTH))),
        {"registers": 2},
    ),
    "registers with positions": (
        fill(outside(registers=2, positions=1 + 2 + L), *(sequential(i) for i in range(DEPTH))),
        {"registers": 2},
    ),
    "parallel": (
        fill(outside(), *(parallel(i, qkv_bias=False) for i in range(DEPTH))),
        {"block": "parallel", "qkv_bias": False, "qk_norm": True, "layer_scale": 0.1},
    ),
    "parallel with biases": (
        fill(outside(), *(parallel(i, qkv_bias=True) for i in range(DEPTH))),
        {"block": "parallel", "qk_norm": True, "layer_scale": 0.1},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_features_are_timms(name: str) -> None:
    state, changes = VARIANTS[name]
    ours = model(**changes)
    load_timm(ours, state)
    crops = torch.randn(3, C, SIDE, SIDE, generator=torch.Generator().manual_seed(9))
    expected = timm_features(state, crops)
    prefix = 1 + changes.get("registers", 0)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(crops), expected[:, prefix:].mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.encode(crops, pooling="class"), expected[:, 0], rtol=1e-4, atol=1e-5)


def test_the_decoder_stays_and_the_given_tensors_are_left_alone() -> None:
    ours, before = model(), model()
    copies = {name: tensor.clone() for name, tensor in PLAIN.items()}
    load_timm(ours, PLAIN)
    assert torch.equal(ours.decoder_pred.weight, before.decoder_pred.weight)
    assert not torch.equal(ours.patch_embed.weight, before.patch_embed.weight)
    assert all(torch.equal(PLAIN[name], copies[name]) for name in PLAIN)


@pytest.mark.parametrize("how", ["mean", "repeat"])
def test_other_channels_are_adapted_when_asked(how: Any) -> None:
    """A grey picture, the same in every channel, gives the same features with 5 channels as with timm's 3."""
    grey = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    six = model(num_channels=6)
    load_timm(six, PLAIN, adapt_channels=how)
    with torch.no_grad():
        expected = timm_features(PLAIN, grey.expand(-1, C, -1, -1))[:, 1:].mean(1)
        torch.testing.assert_close(six.encode(grey.expand(-1, 6, -1, -1)), expected, rtol=1e-4, atol=1e-5)
    weights = six.patch_embed.weight.detach().reshape(D, 6, PATCH, PATCH)
    same = 1 if how == "mean" else 3
    assert torch.equal(weights[:, 0], weights[:, same])
    assert torch.equal(weights[:, 0], weights[:, 1]) == (how == "mean")


def without(*names: str) -> State:
    return {name: tensor for name, tensor in PLAIN.items() if name not in names}


@pytest.mark.parametrize(
    ("state", "changes", "message"),
    [
        (without("cls_token", "norm.bias"), {}, r"missing: class_token, norm\.bias"),
        ({**PLAIN, "norm_pre.weight": torch.zeros(D)}, {}, r"not expected: norm_pre\.weight"),
        ({**PLAIN, "blocks.0.mlp.w12.weight": torch.zeros(D)}, {}, r"not expected: blocks\.0\.mlp\.w12\.weight"),
        ({**PLAIN, "reg_token": torch.zeros(1, 2, D)}, {}, r"not expected: register_tokens"),
        (PLAIN, {"qkv_bias": False}, r"not expected: blocks\.0\.qkv\.bias, blocks\.1\.qkv\.bias; set block, qkv_bias"),
        (PLAIN, {"depth": 3}, r"missing: blocks\.2\.norm_1\.weight.* and \d+ more"),
        (PLAIN, {"positions": "sincos"}, r"not expected: positions"),
        (PLAIN, {"block": "parallel"}, r"missing: blocks\.0\.qkv_bias"),
        (
            PLAIN,
            {"num_channels": 6},
            r"patch_embed\.weight is \(16, 48\) there and \(16, 96\) in the model; they were trained on 3 channels, the",
        ),
        (
            PLAIN,
            {"crop_px": 32},
            r"positions is \(17, 16\) there and \(65, 16\) in the model; their grid .* 4 x 4: crop_px=16",
        ),
        (
            VARIANTS["parallel"][0],
            {**VARIANTS["parallel"][1], "mlp_ratio": 2.0},
            r"of another shape: .*blocks\.0\.in_proj\.weight is \(112, 16\) there and \(80, 16\) in the model",
        ),
        (PLAIN, {"mlp_ratio": 2.0}, r"of another shape: blocks\.0\.mlp_in\.weight is \(64, 16\) there and \(32, 16\)"),
    ],
)
def test_what_does_not_fit_is_named(state: State, changes: dict[str, Any], message: str) -> None:
    ours = model(**changes)
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    with pytest.raises(UsageError, match=message) as error:
        load_timm(ours, state)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], p) for name, p in ours.named_parameters())


def test_only_a_vit_takes_them() -> None:
    unet = build_mae(
        C, kind="unet_mae", crop_px=16, patch_px=4, mask_ratio=0.75, fourier_weight=0.0, options={"levels": 2}
    )
    with pytest.raises(UsageError, match=r"they fit model\.kind=mae_vit, not UnetMae"):
        from_timm(PLAIN, unet)

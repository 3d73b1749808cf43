"""Weights of timm's vision transformers under our names.  A function from tensors to tensors; timm itself is not needed.

What fits, by timm 1.0's definitions of `VisionTransformer` and the names that its `state_dict()` has (the tests build such state
dicts; no published file was at hand):

- plain pre-norm ViTs with LayerNorm (eps 1e-6), GELU and a class token: vit_{tiny,small,base,large}_patch{8,16,32}_224 (augreg,
  dino, mae), deit_*, vit_*_patch14_dinov2, with our `block=sequential, qkv_bias=true, qk_norm=false, positions=learned`;
  with LayerScale (`ls1.gamma`: dinov2, deit3) `layer_scale` above 0, with `attn.q_norm` `qk_norm=true`, with `reg_token`
  (vit_*_reg4_dinov2) `registers=4`;
- the same with `block_fn=ParallelScalingBlock` and LayerNorm: `block=parallel`.

What does not, and is refused by the names that are left over: RMSNorm (`*_xp_*`), SwiGLU (`mlp.w12`, vit_giant_*_dinov2), norm_pre
(CLIP), relative or rotary positions, attention pooling, a distillation token, no class token.  timm models that pool by the
mean (`fc_norm`) are refused too: our last norm comes before the pooling.  CLIP's QuickGELU leaves no name: look at the model.

The weights do not say how many heads there are: `heads` must be timm's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from phenomhpc.errors import UsageError
from phenomhpc.models.kinds import VIT
from phenomhpc.models.mae import MaskedAutoencoder
from phenomhpc.models.vit import TransformerBlock
from phenomhpc.models.vit_mae import VitMae

Adapt = Literal["refuse", "mean", "repeat"]
_SHOWN = 4
_BLOCK = re.compile(r"^blocks\.(\d+)\.(.+)$")
_OUTSIDE = {
    "cls_token": "class_token",
    "reg_token": "register_tokens",
    "pos_embed": "positions",
    "patch_embed.proj.weight": "patch_embed.weight",
    "patch_embed.proj.bias": "patch_embed.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
_SEQUENTIAL = {
    "norm1": "norm_1",
    "attn.qkv": "qkv",
    "attn.q_norm": "q_norm",
    "attn.k_norm": "k_norm",
    "attn.proj": "attention_out",
    "norm2": "norm_2",
    "mlp.fc1": "mlp_in",
    "mlp.fc2": "mlp_out",
}
# Classifiers are no part of an encoder.
_LEFT_OUT = ("head.", "head_dist.")


def from_timm(
    weights: Mapping[str, Tensor], model: MaskedAutoencoder, *, adapt_channels: Adapt = "refuse"
) -> dict[str, Tensor]:
    """The encoder's parameters of `model` by our names, out of a timm ViT's state dict: new tensors, or views of its own.

    adapt_channels: what to do with a patch projection of other channels than the model's.  `mean`: every channel gets the
    mean over the old ones; `repeat`: channel c gets that of old channel c mod their number.  Both are scaled by old
    number / new number, so that the same picture in every channel gives the same tokens as before.
    Raises UsageError naming what is missing, what is not expected, and what has another shape.
    """
    if not isinstance(model, VitMae):
        raise UsageError(f"timm weights: they fit model.kind={VIT}, not {type(model).__name__}")
    parallel = any(".in_proj." in name for name in weights)
    renamed, unexpected = _rename(weights, parallel)
    if parallel:
        renamed = _fuse_parallel(renamed, model)
    expected = {
        name: parameter.shape
        for name, parameter in model.named_parameters()
        if not name.startswith(("decoder", "mask_token"))
    }
    if "positions" in renamed:
        renamed |= _positions(renamed, model)
    if "patch_embed.weight" in renamed:
        renamed["patch_embed.weight"] = _projection(renamed["patch_embed.weight"], model, adapt_channels)
    _require_fit(renamed, unexpected, expected, model)
    return renamed


def load_timm(model: MaskedAutoencoder, weights: Mapping[str, Tensor], *, adapt_channels: Adapt = "refuse") -> None:
    """Put a timm ViT's weights into the encoder of `model`, in place; the decoder stays as it is.  Raises as `from_timm`."""
    found = from_timm(weights, model, adapt_channels=adapt_channels)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in found.items():
            parameters[name].copy_(tensor)


def _rename(weights: Mapping[str, Tensor], parallel: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by our names (of parallel blocks: their own, to be fused), and the names that we have nothing for."""
    renamed: dict[str, Tensor] = {}
    unexpected = []
    for name, tensor in weights.items():
        if name.startswith(_LEFT_OUT):
            continue
        ours = _OUTSIDE.get(name) or _in_block(name, parallel)
        if ours is None:
            unexpected.append(name)
        else:
            renamed[ours] = tensor
    return renamed, unexpected


def _in_block(name: str, parallel: bool) -> str | None:
    found = _BLOCK.match(name)
    if found is None:
        return None
    number, inner = found.groups()
    if parallel:
        known = re.fullmatch(
            r"(in_norm|in_proj|q_norm|k_norm|attn_out_proj|mlp_out_proj)\.(weight|bias)|mlp_bias|ls\.gamma", inner
        )
        return name if known else None
    if inner in ("ls1.gamma", "ls2.gamma"):
        return f"blocks.{number}.layer_scale_{inner[2]}"
    part, _, kind = inner.rpartition(".")
    return f"blocks.{number}.{_SEQUENTIAL[part]}.{kind}" if part in _SEQUENTIAL and kind in ("weight", "bias") else None


def _fuse_parallel(renamed: dict[str, Tensor], model: VitMae) -> dict[str, Tensor]:
    """timm's parallel block has [mlp, q, k, v] in one projection and two output projections; ours [q, k, v, mlp] and one."""
    block_of_ours = model.blocks[0]
    assert isinstance(block_of_ours, TransformerBlock)
    D, M = model.dim, block_of_ours.hidden
    out = {name: tensor for name, tensor in renamed.items() if not name.startswith("blocks.")}
    for number, block in _by_block(renamed):
        at = f"blocks.{number}."
        for one, other in (
            ("in_norm.weight", "norm.weight"),
            ("in_norm.bias", "norm.bias"),
            ("q_norm.weight", "q_norm.weight"),
            ("q_norm.bias", "q_norm.bias"),
            ("k_norm.weight", "k_norm.weight"),
            ("k_norm.bias", "k_norm.bias"),
            ("mlp_bias", "mlp_bias"),
            ("ls.gamma", "layer_scale"),
        ):
            if one in block:
                out[at + other] = block[one]
        if "in_proj.weight" in block:
            weight = block["in_proj.weight"]  # one of another shape is left as it is, and refused for it
            out[at + "in_proj.weight"] = torch.cat([weight[M:], weight[:M]]) if len(weight) == M + 3 * D else weight
        if "in_proj.bias" in block and len(block["in_proj.bias"]) == M + 3 * D:
            out[at + "mlp_bias"], out[at + "qkv_bias"] = block["in_proj.bias"][:M], block["in_proj.bias"][M:]
        outputs = [block.get(f"{branch}_out_proj.weight") for branch in ("attn", "mlp")]
        if all(tensor is not None for tensor in outputs):
            out[at + "out_proj.weight"] = torch.cat([tensor for tensor in outputs if tensor is not None], dim=1)
        biases = [block.get(f"{branch}_out_proj.bias") for branch in ("attn", "mlp")]
        if biases[0] is not None and biases[1] is not None:
            out[at + "out_proj.bias"] = biases[0] + biases[1]
    return out


def _by_block(renamed: Mapping[str, Tensor]) -> Iterator[tuple[int, dict[str, Tensor]]]:
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, tensor in renamed.items():
        if found := _BLOCK.match(name):
            blocks.setdefault(int(found[1]), {})[found[2]] = tensor
    yield from sorted(blocks.items())


def _positions(renamed: Mapping[str, Tensor], model: VitMae) -> dict[str, Tensor]:
    """Our table [1 + L, D] has a row for the class token and one for each patch.

    timm's may lack the class token's (`no_embed_class`), which is then 0, or have rows for the registers, which are added
    to the registers themselves.
    """
    table = renamed["positions"][0]
    num_registers = model.num_prefix - 1
    extra = len(table) - model.num_patches
    if extra == 0:
        return {"positions": torch.cat([torch.zeros_like(table[:1]), table])}
    if extra == 1 + num_registers and num_registers and "register_tokens" in renamed:
        return {
            "positions": torch.cat([table[:1], table[1 + num_registers :]]),
            "register_tokens": renamed["register_tokens"] + table[1 : 1 + num_registers],
        }
    return {"positions": table}


def _projection(weight: Tensor, model: VitMae, adapt: Adapt) -> Tensor:
    """Of a convolution [D, C, p, p] the matrix [D, C * p * p]."""
    old, new = weight.shape[1], model.num_channels
    if weight.shape[2:] == (model.patch_px, model.patch_px) and old != new:
        if adapt == "mean":
            weight = weight.mean(dim=1, keepdim=True).expand(-1, new, -1, -1) * (old / new)
        elif adapt == "repeat":
            weight = weight[:, torch.arange(new) % old] * (old / new)
    return weight.flatten(1)


def _require_fit(
    renamed: Mapping[str, Tensor], unexpected: list[str], expected: Mapping[str, torch.Size], model: VitMae
) -> None:
    missing = [name for name in expected if name not in renamed]
    unexpected = unexpected + [name for name in renamed if name not in expected]
    wrong = [
        f"{name} is {tuple(renamed[name].shape)} there and {tuple(shape)} in the model"
        for name, shape in expected.items()
        if name in renamed and renamed[name].shape != shape
    ]
    faults = [
        f"{what}: {', '.join(names[:_SHOWN])}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        for what, names in (("missing", missing), ("not expected", unexpected), ("of another shape", wrong))
        if names
    ]
    if faults:
        raise UsageError(
            f"timm weights: they do not fit this model; {'; '.join(faults)}{_way_out(renamed, model, wrong)}"
        )


def _way_out(renamed: Mapping[str, Tensor], model: VitMae, wrong: list[str]) -> str:
    projection = renamed.get("patch_embed.weight")
    per_channel = model.patch_px**2
    if projection is not None and any(line.startswith("patch_embed.weight") for line in wrong):
        channels, rest = divmod(projection.shape[1], per_channel)
        if not rest:
            return f"; they were trained on {channels} channels, the model has {model.num_channels}: adapt_channels=mean or repeat"
    if any(line.startswith("positions") for line in wrong):
        side = round((len(renamed["positions"]) - 1) ** 0.5)
        return f"; their grid of positions is {side} x {side}: crop_px={side * model.patch_px}"
    return "; set block, qkv_bias, qk_norm, layer_scale, registers and positions=learned as the weights have them"

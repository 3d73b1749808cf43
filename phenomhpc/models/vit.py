"""The vision transformer: patches, fixed positions and the blocks that encoder and decoder are made of.

Shape suffixes: B crops, C channels, H W pixels, L patches, N tokens, D width, P values of a patch (C * p * p, channel
first), h heads, d width of a head, K residual branches of a block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NORM_EPS = 1e-6


def patchify(images_BCHW: Tensor, patch_px: int) -> Tensor:
    """Crops as [B, L, P]: patches row by row, values of a patch in the order (channel, row, column)."""
    B, C, H, W = images_BCHW.shape
    p = patch_px
    grid = images_BCHW.reshape(B, C, H // p, p, W // p, p)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(B, (H // p) * (W // p), C * p * p)


def unpatchify(patches_BLP: Tensor, patch_px: int, num_channels: int) -> Tensor:
    """Square crops [B, C, H, W] from their patches; the inverse of `patchify`."""
    B, L, _ = patches_BLP.shape
    p, side = patch_px, math.isqrt(L)
    grid = patches_BLP.reshape(B, side, side, num_channels, p, p)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(B, num_channels, side * p, side * p)


def sincos_positions(dim: int, grid: int) -> Tensor:
    """Fixed 2-D positions f32[1 + grid * grid, dim]: concat[sin h, cos h, sin w, cos w], base 10000; zero for the class token."""
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    along_h = torch.cat([angle.sin(), angle.cos()], dim=1)[:, None, :].expand(grid, grid, -1)
    along_w = torch.cat([angle.sin(), angle.cos()], dim=1)[None, :, :].expand(grid, grid, -1)
    table = torch.cat([along_h, along_w], dim=2).reshape(grid * grid, dim)
    return torch.cat([torch.zeros(1, dim, dtype=torch.float64), table]).to(torch.float32)


class TransformerBlock(nn.Module):
    """What encoders and decoders are stacks of; `make_block` chooses one by name."""

    num_branches: ClassVar[int]
    """Residual branches, each of which stochastic depth may drop by itself."""
    hidden: int
    """Width inside the MLP."""
    recompute: bool = False
    """Activation checkpointing: keep a block's input alone, and compute it again in the backward pass."""

    def __call__(self, *args: Any) -> Any:
        if self.recompute and torch.is_grad_enabled():  # nothing in a block is drawn at random
            return checkpoint(super().__call__, *args, use_reentrant=False, preserve_rng_state=False)
        return super().__call__(*args)

    def initialise(self, generator: torch.Generator) -> None:
        """Xavier-uniform for each matrix (each part of a fused one by itself); biases zero, norms one."""
        raise NotImplementedError

    def forward(self, x_BND: Tensor, drop_factors_KB: Tensor | None = None) -> Tensor:
        """Tokens of the same shape.  drop_factors_KB: what each of the K branches is multiplied by, per crop."""
        raise NotImplementedError


class ParallelBlock(TransformerBlock):
    """Pre-norm transformer block whose attention and MLP read the same normalised input and are added together.

    y = LN(x);  x + drop_path(layer_scale * (attention(y) + mlp(y)))

    This is our reading of the notes' "parallel-scaling blocks": the block of ViT-22B (Dehghani et al. 2023, section
    2.1), with its qk-norm (LayerNorm over each head's queries and keys, before the scaled dot product) and, unless
    qkv_bias is asked for, without a bias on q, k, v.  Both branches' input projections are one weight and so are both
    output projections, which on a CPU are one matmul each; on a GPU, where matmuls of these sizes run at full speed by
    themselves, they are two each, which spares the joining of what the branches give: a seventh of an L/8 step on an H200.
    It has as many weights as the sequential block: 4 D^2 + 2 r D^2 for an MLP of ratio r.
    """

    num_branches = 1

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, qk_norm: bool, layer_scale: float, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        self.dim, self.heads, self.hidden = dim, heads, round(dim * mlp_ratio)
        self.layer_scale_init = layer_scale
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.in_proj = nn.Linear(dim, 3 * dim + self.hidden, bias=False)
        self.qkv_bias = nn.Parameter(torch.zeros(3 * dim)) if qkv_bias else None
        self.mlp_bias = nn.Parameter(torch.zeros(self.hidden))
        self.q_norm = _head_norm(dim, heads, qk_norm)
        self.k_norm = _head_norm(dim, heads, qk_norm)
        self.out_proj = nn.Linear(dim + self.hidden, dim)
        self.layer_scale = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale else None

    def initialise(self, generator: torch.Generator) -> None:
        D, M = self.dim, self.hidden
        for part in torch.split(self.in_proj.weight, [D, D, D, M]):
            xavier_uniform(part, generator)
        for part in torch.split(self.out_proj.weight, [D, M], dim=1):
            xavier_uniform(part, generator)
        for bias in (self.out_proj.bias, self.mlp_bias, self.qkv_bias):
            if bias is not None:
                nn.init.zeros_(bias)
        reset_norms(self.norm, self.q_norm, self.k_norm)
        if self.layer_scale is not None:
            nn.init.constant_(self.layer_scale, self.layer_scale_init)

    def forward(self, x_BND: Tensor, drop_factors_KB: Tensor | None = None) -> Tensor:
        normed = self.norm(x_BND)
        branch = self.apart(normed) if x_BND.is_cuda else self.together(normed)
        return _add_branch(x_BND, _scaled(branch, self.layer_scale), drop_factors_KB, 0)

    def together(self, y_BND: Tensor) -> Tensor:
        """attention(y) + mlp(y), the projections of both in one matmul."""
        qkv, mlp = self.in_proj(y_BND).split([3 * self.dim, self.hidden], dim=2)
        if self.qkv_bias is not None:
            qkv = qkv + self.qkv_bias.to(qkv.dtype)
        attended = attention(qkv, self.heads, self.q_norm, self.k_norm)
        # Under autocast a bias in fp32 would carry the MLP's widest tensors to fp32.
        mlp = F.gelu(mlp + self.mlp_bias.to(mlp.dtype))
        return self.out_proj(torch.cat([attended, mlp], dim=2))  # type: ignore[no-any-return]

    def apart(self, y_BND: Tensor) -> Tensor:
        """The same, each branch with its own part of the weights."""
        in_qkv, in_mlp = torch.split(self.in_proj.weight, [3 * self.dim, self.hidden])
        out_attended, out_mlp = torch.split(self.out_proj.weight, [self.dim, self.hidden], dim=1)
        attended = attention(F.linear(y_BND, in_qkv, self.qkv_bias), self.heads, self.q_norm, self.k_norm)
        mlp = F.gelu(F.linear(y_BND, in_mlp, self.mlp_bias))
        return F.linear(attended, out_attended, self.out_proj.bias) + F.linear(mlp, out_mlp)


class SequentialBlock(TransformerBlock):
    """The usual pre-norm block (Dosovitskiy et al. 2021), attention first: what most published ViT weights are of.

    x = x + drop_path(layer_scale_1 * attention(LN(x)));  x + drop_path(layer_scale_2 * mlp(LN(x)))
    """

    num_branches = 2

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, qk_norm: bool, layer_scale: float, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        self.dim, self.heads, self.hidden = dim, heads, round(dim * mlp_ratio)
        self.layer_scale_init = layer_scale
        self.norm_1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = _head_norm(dim, heads, qk_norm)
        self.k_norm = _head_norm(dim, heads, qk_norm)
        self.attention_out = nn.Linear(dim, dim)
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale else None
        self.norm_2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp_in = nn.Linear(dim, self.hidden)
        self.mlp_out = nn.Linear(self.hidden, dim)
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale else None

    def initialise(self, generator: torch.Generator) -> None:
        for part in torch.split(self.qkv.weight, [self.dim] * 3):
            xavier_uniform(part, generator)
        for linear in (self.attention_out, self.mlp_in, self.mlp_out):
            xavier_uniform(linear.weight, generator)
        for bias in (self.qkv.bias, self.attention_out.bias, self.mlp_in.bias, self.mlp_out.bias):
            if bias is not None:
                nn.init.zeros_(bias)
        reset_norms(self.norm_1, self.norm_2, self.q_norm, self.k_norm)
        for scale in (self.layer_scale_1, self.layer_scale_2):
            if scale is not None:
                nn.init.constant_(scale, self.layer_scale_init)

    def forward(self, x_BND: Tensor, drop_factors_KB: Tensor | None = None) -> Tensor:
        qkv = self.qkv(self.norm_1(x_BND))
        branch: Tensor = self.attention_out(attention(qkv, self.heads, self.q_norm, self.k_norm))
        x_BND = _add_branch(x_BND, _scaled(branch, self.layer_scale_1), drop_factors_KB, 0)
        branch = self.mlp_out(F.gelu(self.mlp_in(self.norm_2(x_BND))))
        return _add_branch(x_BND, _scaled(branch, self.layer_scale_2), drop_factors_KB, 1)


BLOCKS: Mapping[str, type[ParallelBlock] | type[SequentialBlock]] = {
    "parallel": ParallelBlock,
    "sequential": SequentialBlock,
}


def attention(qkv_BNE: Tensor, heads: int, q_norm: nn.Module, k_norm: nn.Module) -> Tensor:
    """Self-attention of the packed projections [B, N, 3 D], in the order q, k, v and head by head; [B, N, D]."""
    B, N, E = qkv_BNE.shape
    q, k, v = qkv_BNE.reshape(B, N, 3, heads, E // (3 * heads)).permute(2, 0, 3, 1, 4)
    attended_BhNd = F.scaled_dot_product_attention(q_norm(q), k_norm(k), v)
    return attended_BhNd.transpose(1, 2).reshape(B, N, E // 3)


def reset_norms(*norms: nn.Module) -> None:
    """Every LayerNorm of these to weights one and biases zero."""
    for norm in norms:
        if isinstance(norm, nn.LayerNorm):
            norm.reset_parameters()


def _head_norm(dim: int, heads: int, qk_norm: bool) -> nn.Module:
    return nn.LayerNorm(dim // heads, eps=NORM_EPS) if qk_norm else nn.Identity()


def _scaled(branch: Tensor, scale: Tensor | None) -> Tensor:
    return branch if scale is None else branch * scale


def _add_branch(x_BND: Tensor, branch_BND: Tensor, drop_factors_KB: Tensor | None, number: int) -> Tensor:
    if drop_factors_KB is not None:
        branch_BND = branch_BND * drop_factors_KB[number][:, None, None]
    return x_BND + branch_BND


def xavier_uniform(weight: Tensor, generator: torch.Generator) -> None:
    """Fill [out, in] (a view is fine) uniformly in +-sqrt(6 / (in + out)) from the generator, in place."""
    bound = math.sqrt(6 / (weight.shape[0] + weight.shape[1]))
    with torch.no_grad():
        weight.uniform_(-bound, bound, generator=generator)

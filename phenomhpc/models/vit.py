"""The vision transformer: patches, fixed positions and the block that encoder and decoder are made of.

Shape suffixes: B crops, C channels, H W pixels, L patches, N tokens, D width, P values of a patch (C * p * p, channel
first), h heads, d width of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class ParallelBlock(nn.Module):
    """Pre-norm transformer block whose attention and MLP read the same normalised input and are added together.

    y = LN(x);  x + drop_path(layer_scale * (attention(y) + mlp(y)))

    This is our reading of the notes' "parallel-scaling blocks": the block of ViT-22B (Dehghani et al. 2023, section
    2.1), with its qk-norm (LayerNorm over each head's queries and keys, before the scaled dot product) and without a
    bias on q, k, v.  Both branches' input projections are one matmul and so are both output projections, which is the
    point of the form.  It has as many weights as the sequential block: 4 D^2 + 2 r D^2 for an MLP of ratio r.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float, qk_norm: bool, layer_scale: float) -> None:
        super().__init__()
        self.dim, self.heads, self.hidden = dim, heads, round(dim * mlp_ratio)
        self.layer_scale_init = layer_scale
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.in_proj = nn.Linear(dim, 3 * dim + self.hidden, bias=False)
        self.mlp_bias = nn.Parameter(torch.zeros(self.hidden))
        self.q_norm = nn.LayerNorm(dim // heads, eps=NORM_EPS) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads, eps=NORM_EPS) if qk_norm else nn.Identity()
        self.out_proj = nn.Linear(dim + self.hidden, dim)
        self.layer_scale = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale else None

    def initialise(self, generator: torch.Generator) -> None:
        """Xavier-uniform for each of the matrices that the two fused projections hold; biases zero, norms one."""
        D, M = self.dim, self.hidden
        for part in torch.split(self.in_proj.weight, [D, D, D, M]):
            xavier_uniform(part, generator)
        for part in torch.split(self.out_proj.weight, [D, M], dim=1):
            xavier_uniform(part, generator)
        nn.init.zeros_(self.out_proj.bias)
        nn.init.zeros_(self.mlp_bias)
        for norm in (self.norm, self.q_norm, self.k_norm):
            if isinstance(norm, nn.LayerNorm):
                norm.reset_parameters()
        if self.layer_scale is not None:
            nn.init.constant_(self.layer_scale, self.layer_scale_init)

    def forward(self, x_BND: Tensor, drop_factor_B: Tensor | None = None) -> Tensor:
        B, N, D = x_BND.shape
        qkv, mlp = self.in_proj(self.norm(x_BND)).split([3 * D, self.hidden], dim=2)
        q, k, v = qkv.reshape(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        attended_BhNd = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        attended = attended_BhNd.transpose(1, 2).reshape(B, N, D)
        branch: Tensor = self.out_proj(torch.cat([attended, F.gelu(mlp + self.mlp_bias)], dim=2))
        if self.layer_scale is not None:
            branch = branch * self.layer_scale
        if drop_factor_B is not None:
            branch = branch * drop_factor_B[:, None, None]
        return x_BND + branch


def xavier_uniform(weight: Tensor, generator: torch.Generator) -> None:
    """Fill [out, in] (a view is fine) uniformly in +-sqrt(6 / (in + out)) from the generator, in place."""
    bound = math.sqrt(6 / (weight.shape[0] + weight.shape[1]))
    with torch.no_grad():
        weight.uniform_(-bound, bound, generator=generator)

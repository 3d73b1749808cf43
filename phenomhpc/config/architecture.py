"""Settings of a model: its size and kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from phenomhpc.config.base import Fraction, Model, PositiveInt


class ModelConfig(Model):
    """A masked autoencoder: by default a vision transformer encoder and a light decoder."""

    name: str = Field("mae_vit_s16", description="name of the recipe in jobs/model/")
    kind: str = Field(
        "mae_vit",
        description="architecture: mae_vit, ca_mae_vit (channel-agnostic), unet_mae, or PACKAGE.MODULE:CLASS of one's own",
    )
    crop_px: PositiveInt = Field(256, description="edge of a crop, pixels")
    patch_px: PositiveInt = Field(16, description="edge of a patch, pixels; patches are what is hidden")
    dim: PositiveInt = 384
    depth: PositiveInt = 12
    heads: PositiveInt = 6
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    block: Literal["parallel", "sequential"] = Field(
        "parallel",
        description="attention and MLP side by side (ViT-22B), or one after the other (most published weights)",
    )
    qkv_bias: bool = Field(False, description="a bias on queries, keys and values")
    qk_norm: bool = True
    positions: Literal["sincos", "learned"] = Field(
        "sincos", description="of the encoder; learned ones start as sincos"
    )
    registers: Annotated[int, Field(ge=0)] = Field(0, description="learned tokens beside the class token")
    layer_scale: Annotated[float, Field(ge=0)] = Field(1e-4, description="initial LayerScale; 0 for none")
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    decoder_dim: PositiveInt = 512
    decoder_depth: PositiveInt = 8
    decoder_heads: PositiveInt = 16
    fourier_weight: Fraction = Field(0.01, description="weight of the Fourier loss; the MSE has the rest")
    options: dict[str, bool | int | float | str] = Field(
        {}, description="settings of an architecture that is no transformer, by the names of its class"
    )

    @property
    def is_transformer(self) -> bool:
        return self.kind in ("mae_vit", "ca_mae_vit")

    @model_validator(mode="after")
    def _shapes(self) -> ModelConfig:
        if self.crop_px % self.patch_px:
            raise ValueError(f"crop_px={self.crop_px} is no multiple of patch_px={self.patch_px}")
        if not self.is_transformer:
            return self
        for dim, heads, names in (
            (self.dim, self.heads, "dim, heads"),
            (self.decoder_dim, self.decoder_heads, "decoder_dim, decoder_heads"),
        ):
            if dim % heads:
                raise ValueError(f"{names}: {dim} is no multiple of {heads}")
            if dim % 4:
                raise ValueError(f"{names}: {dim} is no multiple of 4, which 2-D sin-cos positions need")
        return self

    @model_validator(mode="after")
    def _settings_of_the_kind(self) -> ModelConfig:
        if self.is_transformer:
            if self.options:
                raise ValueError(f"options.{next(iter(self.options))}: kind={self.kind} has its settings beside `kind`")
            return self
        for name in _OF_TRANSFORMERS:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}={getattr(self, name)}: kind={self.kind} has no such setting; its own are in options"
                )
        return self


_OF_TRANSFORMERS = (
    "dim",
    "depth",
    "heads",
    "mlp_ratio",
    "block",
    "qkv_bias",
    "qk_norm",
    "positions",
    "registers",
    "layer_scale",
    "drop_path",
    "decoder_dim",
    "decoder_depth",
    "decoder_heads",
)

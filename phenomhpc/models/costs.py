"""What a model costs before it is built: parameters, FLOP and activation memory of a crop.  Arithmetic alone for transformers.

FLOP are those of matrix products and attention, two for each multiplication with its addition, as torch's FlopCounterMode counts
them; what is done value by value (norms, GELU, the Fourier loss) is left out.

Letters: N tokens, L patches, G patches of one channel, V visible patches, D width, M width inside the MLP, P values of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from phenomhpc.models.kinds import CHANNEL_AGNOSTIC, TRANSFORMERS, complete_fields

_DECODER_RATIO = 4.0
_F32 = 4


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Parameters; FLOP of one crop; bytes that the backward pass of one crop needs of the forward pass.

    forward_flop: of pretraining, with hidden patches left out of the encoder.  training_flop: forward and backward, three
    times that.  inference_flop: `encode`, nothing hidden.
    activation_bytes: what autograd keeps in eager mode with a fused attention; not the weights, their copies in bf16, nor
    what exists only for a moment.  A compiled model keeps less.  In bf16: by a GPU's rules of what stays fp32.
    recomputed_bytes: the same with activation checkpointing: the blocks' inputs, and what one block keeps while its turn is.
    """

    encoder_parameters: int
    decoder_parameters: int
    forward_flop: int
    inference_flop: int
    activation_bytes: int
    recomputed_bytes: int

    @property
    def parameters(self) -> int:
        return self.encoder_parameters + self.decoder_parameters

    @property
    def training_flop(self) -> int:
        return 3 * self.forward_flop


def model_cost(
    fields: Mapping[str, Any], num_channels: int, *, precision: Literal["fp32", "bf16"] = "fp32"
) -> ModelCost:
    """The cost of a recipe's model (`fields`: ModelConfig's).

    A transformer's comes from formulas; any other architecture's from a forward pass over tensors without storage, which
    needs torch.  Raises UsageError for an architecture that cannot be.
    """
    fields = complete_fields(fields)
    if fields["kind"] not in TRANSFORMERS:
        from phenomhpc.models.counted import counted_cost

        return counted_cost(fields, num_channels, precision=precision)
    return _Transformer.of(fields, num_channels, 2 if precision == "bf16" else _F32).cost()


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """Blocks of one width."""

    sequential: bool
    qkv_bias: bool
    qk_norm: bool
    layer_scale: bool
    dim: int
    heads: int
    hidden: int

    def parameters(self) -> int:
        D, M = self.dim, self.hidden
        # Matrices; biases of both outputs (one in the parallel block) and of the MLP's middle; norms.
        branches = 2 if self.sequential else 1
        count = 4 * D * D + 2 * D * M + M + branches * (D + 2 * D)
        count += 3 * D if self.qkv_bias else 0
        count += 4 * (D // self.heads) if self.qk_norm else 0
        return count + (branches * D if self.layer_scale else 0)

    def flop(self, tokens: int) -> int:
        D, M = self.dim, self.hidden
        return 2 * tokens * (4 * D * D + 2 * D * M) + attention_flop(tokens, tokens, D)

    def activation_bytes(self, tokens: int, size: int) -> int:
        """size: bytes of a value in matrix products; the residual stream and statistics are fp32."""
        N, D, M, h = tokens, self.dim, self.hidden, self.heads
        normed = 0
        if self.qk_norm:  # in bf16 their input too, which autocast gives them in fp32
            normed = 2 * N * D * (size if size == _F32 else size + _F32) + 4 * N * h * _F32
        attention = N * D * size + N * h * _F32
        scaled = N * D * size if self.layer_scale else 0
        into_norm = N * D * _F32 + 2 * N * _F32 + N * D * size
        if self.sequential:
            # Normalised queries lie head by head, and so does what attention gives: it is copied for the projection.
            copied = N * D * size if self.qk_norm else 0
            first = into_norm + 3 * N * D * size + normed + attention + copied + scaled
            return first + into_norm + 2 * N * M * size + scaled
        projected = N * (3 * D + M) * size
        if self.qkv_bias:  # sums with biases are kept, and not what they were made of
            projected = 3 * N * D * size
        return into_norm + projected + normed + attention + N * M * size + N * (D + M) * size + scaled


def attention_flop(queries: int, keys: int, dim: int) -> int:
    """Scores and their sums of values."""
    return 4 * queries * keys * dim


@dataclass(frozen=True, kw_only=True)
class _Transformer:
    """A recipe's numbers."""

    encoder: _Stack
    decoder: _Stack
    depth: int
    decoder_depth: int
    by_channel: bool
    num_channels: int
    in_group: int  # G
    num_patches: int  # L
    num_visible: int  # V
    values: int  # P
    registers: int
    learned_positions: bool
    size: int

    @classmethod
    def of(cls, fields: Mapping[str, Any], num_channels: int, size: int) -> _Transformer:
        by_channel = fields["kind"] == CHANNEL_AGNOSTIC
        groups = num_channels if by_channel else 1
        in_group = (fields["crop_px"] // fields["patch_px"]) ** 2
        form = {
            "sequential": fields["block"] == "sequential",
            "qkv_bias": fields["qkv_bias"],
            "qk_norm": fields["qk_norm"],
        }
        dim, decoder_dim = fields["dim"], fields["decoder_dim"]
        return cls(
            encoder=_Stack(
                **form,
                layer_scale=bool(fields["layer_scale"]),
                dim=dim,
                heads=fields["heads"],
                hidden=round(dim * fields["mlp_ratio"]),
            ),
            decoder=_Stack(
                **form,
                layer_scale=False,
                dim=decoder_dim,
                heads=fields["decoder_heads"],
                hidden=round(decoder_dim * _DECODER_RATIO),
            ),
            depth=fields["depth"],
            decoder_depth=fields["decoder_depth"],
            by_channel=by_channel,
            num_channels=num_channels,
            in_group=in_group,
            num_patches=groups * in_group,
            num_visible=groups * int(in_group * (1 - fields["mask_ratio"])),
            values=num_channels // groups * fields["patch_px"] ** 2,
            registers=fields["registers"],
            learned_positions=fields["positions"] == "learned",
            size=size,
        )

    def cost(self) -> ModelCost:
        return ModelCost(
            encoder_parameters=self._encoder_parameters(),
            decoder_parameters=self._decoder_parameters(),
            forward_flop=self._encoder_flop(self.num_visible) + self._decoder_flop(),
            inference_flop=self._encoder_flop(self.num_patches),
            activation_bytes=self._encoder_bytes() + self._decoder_bytes() + self._loss_bytes(),
            recomputed_bytes=self._recomputed_bytes(),
        )

    def _encoder_parameters(self) -> int:
        D = self.encoder.dim
        outside = self.values * D + D + D + self.registers * D + 2 * D
        positions = (1 + self.in_group) * D if self.learned_positions else 0
        return outside + positions + self.depth * self.encoder.parameters()

    def _decoder_parameters(self) -> int:
        D, M = self.decoder.dim, self.decoder.hidden
        outside = self.encoder.dim * D + D + D + 2 * D + D * self.values + self.values
        stack = self.decoder_depth * self.decoder.parameters()
        if not self.by_channel:
            return outside + stack
        looking = 3 * 2 * D + 4 * D * D + D + 2 * D * M + M + D
        return outside + self.num_channels * (D + looking + stack)

    def _encoder_flop(self, patches: int) -> int:
        tokens = 1 + self.registers + patches
        return 2 * patches * self.values * self.encoder.dim + self.depth * self.encoder.flop(tokens)

    def _decoder_flop(self) -> int:
        D, M, L, G = self.decoder.dim, self.decoder.hidden, self.num_patches, self.in_group
        if not self.by_channel:
            ends = 2 * (1 + self.num_visible) * self.encoder.dim * D + 2 * (1 + L) * D * self.values
            return ends + self.decoder_depth * self.decoder.flop(1 + L)
        ends = 2 * self.num_visible * self.encoder.dim * D + 2 * L * D * self.values
        looking = 2 * (2 * G * D * D + 2 * L * D * D + 2 * G * D * M) + attention_flop(G, L, D)
        return ends + self.num_channels * (looking + self.decoder_depth * self.decoder.flop(G))

    def _encoder_bytes(self) -> int:
        N, D = 1 + self.registers + self.num_visible, self.encoder.dim
        ends = self.num_visible * self.values * self.size + N * D * (_F32 + self.size)
        return ends + self.depth * self.encoder.activation_bytes(N, self.size)

    def _decoder_bytes(self) -> int:
        D, M, L, G, size = self.decoder.dim, self.decoder.hidden, self.num_patches, self.in_group, self.size
        if not self.by_channel:
            return (1 + L) * D * (_F32 + size) + self.decoder_depth * self.decoder.activation_bytes(1 + L, size)
        shared = L * D * _F32 + L * D * (_F32 + size)
        looking = size * (G * D + L * D + G * D + 2 * L * D + G * D) + G * D * (_F32 + size) + 2 * G * M * size
        stack = self.decoder_depth * self.decoder.activation_bytes(G, size)
        return shared + self.num_channels * (looking + stack)

    def _recomputed_bytes(self) -> int:
        inside = 1 + self.registers + self.num_visible
        outside = self.in_group if self.by_channel else 1 + self.num_patches
        stacks = self.decoder_depth * (self.num_channels if self.by_channel else 1)
        kept = self.encoder.activation_bytes(inside, self.size), self.decoder.activation_bytes(outside, self.size)
        inputs = _F32 * (self.depth * inside * self.encoder.dim + stacks * outside * self.decoder.dim)
        everything = self._encoder_bytes() + self._decoder_bytes() + self._loss_bytes()
        return everything - self.depth * kept[0] - stacks * kept[1] + inputs + max(kept)

    def _loss_bytes(self) -> int:
        """Differences, pixels and the half spectrum (its complex values and the sign of what they differ by), fp32."""
        pixels = self.num_patches * self.values
        edge = round((pixels / self.num_channels) ** 0.5)
        half = self.num_channels * edge * (edge // 2 + 1)
        total: int = _F32 * (2 * pixels + 3 * half)
        return total

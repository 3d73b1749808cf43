"""Which architectures there are, what each is told of a recipe, what its vectors are like.  Without torch.

An architecture is one subclass of `phenomhpc.models.mae.MaskedAutoencoder`, chosen by the recipe's `kind`: a name in KINDS,
or PACKAGE.MODULE:CLASS of a class that any installed package brings.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phenomhpc.errors import UsageError

if TYPE_CHECKING:
    from phenomhpc.models.mae import MaskedAutoencoder

VIT, CHANNEL_AGNOSTIC, UNET = "mae_vit", "ca_mae_vit", "unet_mae"
KINDS: Mapping[str, str] = {
    VIT: "phenomhpc.models.vit_mae:VitMae",
    CHANNEL_AGNOSTIC: "phenomhpc.models.ca_mae:ChannelAgnosticMae",
    UNET: "phenomhpc.models.unet_mae:UnetMae",
}
TRANSFORMERS = (VIT, CHANNEL_AGNOSTIC)
# What every architecture is told; the rest of a recipe is the transformers', other architectures have `options`.
SHARED = ("crop_px", "patch_px", "mask_ratio", "fourier_weight")
_NOT_TOLD = ("name", "kind", "options")

# Fields of a recipe that came later, with the values that mean what was before them: checkpoints without them are read so.
LATER_FIELDS: Mapping[str, Any] = {
    "kind": VIT,
    "block": "parallel",
    "qkv_bias": False,
    "positions": "sincos",
    "registers": 0,
    "options": {},
}


def complete_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe as this version has them; those that it lacks mean what they did before they existed."""
    return {**LATER_FIELDS, **fields}


def identifying_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without those that mean what was before they existed: what digests of embeddings are made of."""
    return {name: value for name, value in fields.items() if name not in LATER_FIELDS or value != LATER_FIELDS[name]}


def find_class(kind: str) -> type[MaskedAutoencoder]:
    """The class of a kind.  Raises UsageError for a kind that there is not, or a class of something else."""
    from phenomhpc.models.mae import MaskedAutoencoder

    module, _, name = KINDS.get(kind, kind).partition(":")
    if not name:
        raise UsageError(
            f"model.kind={kind}: no such architecture; there are {', '.join(KINDS)}, or give PACKAGE.MODULE:CLASS of your own"
        )
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise UsageError(
            f"model.kind={kind}: {module} cannot be imported here ({error}); install its package"
        ) from error
    if not (isinstance(found, type) and issubclass(found, MaskedAutoencoder)):
        raise UsageError(f"model.kind={kind}: {module} has no class {name} that is a MaskedAutoencoder")
    return found


def arguments(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the class of `kind` out of the fields of a recipe.

    Raises UsageError for an option that the class does not take, or lacks one that it must have.
    """
    if kind in TRANSFORMERS:
        return {name: value for name, value in fields.items() if name not in _NOT_TOLD}
    options = fields.get("options", {})
    parameters = inspect.signature(find_class(kind)).parameters
    own = [
        name
        for name, parameter in parameters.items()
        if name not in ("num_channels", "seed", *SHARED) and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    for name in options:
        if name not in own:
            raise UsageError(f"model.options.{name}: {kind} has the options {', '.join(own) or 'none'}")
    for name in own:
        if name not in options and parameters[name].default is inspect.Parameter.empty:
            raise UsageError(f"model.options: {kind} needs a value of {name}; give model.options.{name}=...")
    return {**{name: fields[name] for name in SHARED}, **options}


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """How many blocks an encoder has, and how many features a vector of it."""

    num_blocks: int
    num_features: int


def encoder_shape(fields: Mapping[str, Any], num_channels: int, *, pooling: str, block: int | None) -> EncoderShape:
    """What vectors of `num_channels` channels are like; without torch for transformers.

    fields: of a recipe.  Raises UsageError for a pooling or a block that the architecture does not have.
    """
    fields = complete_fields(fields)
    kind = fields["kind"]
    if kind in TRANSFORMERS:
        num_blocks = int(fields["depth"])
        require_block(block, num_blocks)
        poolings = ("mean", "class", "channelwise") if kind == CHANNEL_AGNOSTIC else ("mean", "class")
        require_pooling(pooling, poolings)
        return EncoderShape(
            num_blocks=num_blocks, num_features=int(fields["dim"]) * (num_channels if pooling == "channelwise" else 1)
        )
    from phenomhpc.models.mae import outline_mae

    model = outline_mae(num_channels, **fields)
    return EncoderShape(
        num_blocks=model.num_blocks,
        num_features=model.num_features(block=block, pooling=pooling, num_channels=num_channels),
    )


def takes_any_channels(fields: Mapping[str, Any]) -> bool:
    """May the encoder be given other channels, or fewer, than it was trained on?  Without torch for transformers."""
    kind = complete_fields(fields)["kind"]
    return kind == CHANNEL_AGNOSTIC if kind in TRANSFORMERS else find_class(kind).any_channels


def require_block(block: int | None, num_blocks: int) -> int:
    """The block that is meant, 1-based (None: the last).  Raises UsageError where the encoder has none such."""
    chosen = num_blocks if block is None else block
    if not 1 <= chosen <= num_blocks:
        raise UsageError(f"block={block}: the encoder has blocks 1 to {num_blocks}")
    return chosen


def require_pooling(pooling: str, poolings: tuple[str, ...]) -> None:
    """Raise UsageError where the encoder does not pool so."""
    if pooling not in poolings:
        raise UsageError(f"pooling={pooling}: this encoder has {', '.join(poolings)}")

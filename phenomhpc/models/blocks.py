"""How the blocks of a model are computed: compiled, and recomputed in the backward pass; names and weights stay as they are.

Blocks are compiled one by one rather than the whole model: those of one shape share their code, so that it takes seconds instead of
minutes for a ViT-L, and nearly all that compiling wins is inside them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from phenomhpc.errors import UsageError
from phenomhpc.models.vit import TransformerBlock

_SHAPES = 32
_COMPILERS = ("cc", "gcc", "clang", "g++", "c++")


def blocks_of(model: nn.Module) -> Iterator[TransformerBlock]:
    """Of encoder and decoder; an architecture without transformer blocks has none."""
    return (module for module in model.modules() if isinstance(module, TransformerBlock))


def compile_blocks(model: nn.Module) -> None:
    """From now on compiled, for each shape and mode at the first call; the model's parameters keep their names."""
    # Training, validation, probe and their last batches, each for the blocks of encoder and decoder: more than torch's 8.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _SHAPES)
    for block in blocks_of(model):
        block.compile(dynamic=False)


def recompute_blocks(model: nn.Module) -> None:
    """Activation checkpointing: of each block only the input is kept for the backward pass."""
    for block in blocks_of(model):
        block.recompute = True


def is_compiled(wanted: bool | Literal["auto"], device: torch.device, *, deterministic: bool = False) -> bool:
    """auto: on GPUs whose node can compile, and not where every bit is to come out alike, since compiled sums are arranged by
    what was fastest just then.  Raises UsageError where it is wanted and cannot be."""
    missing = _missing(device)
    if wanted == "auto":
        return device.type == "cuda" and missing is None and not deterministic
    if wanted and deterministic:
        raise UsageError(
            "compile=true with deterministic=true: compiled sums may differ from start to start; leave compile out"
        )
    if wanted and missing is not None:
        raise UsageError(f"compile=true: {missing}; install it on the nodes, or give compile=false")
    return wanted


def _missing(device: torch.device) -> str | None:
    """What compiling needs and is not here."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed here"
    named = os.environ.get("CC") or os.environ.get("CXX")
    if named or any(shutil.which(name) for name in _COMPILERS):
        return None
    return f"there is no C compiler here ({', '.join(_COMPILERS)})"

"""A checkpoint's weights as one safetensors file: what embedding and --init-from take as they take a step folder.

The tensors are the model's parameters by name, as they were trained or their moving average; the file's own metadata holds
meta.json, as text under the key `phenomhpc`.  Nothing in it is a pickle, so it may come from somebody else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phenomhpc.commit import commit
from phenomhpc.errors import UsageError, WorkError
from phenomhpc.models.weights import AUTO

if TYPE_CHECKING:
    from torch import Tensor

    from phenomhpc.models.checkpoint import CheckpointMeta

SUFFIX = ".safetensors"
_KEY = "phenomhpc"


def is_export(path: Path) -> bool:
    """Is it a file, and so no step folder?"""
    return path.is_file()


def export_weights(folder: Path, out: Path, weights: str = AUTO) -> CheckpointMeta:
    """Write the chosen weights of a step folder (or of another export) as `out`, whole or not at all; what is known of them.

    Raises as `load_encoder` does, and UsageError for a name that is not *.safetensors.
    """
    from safetensors.torch import save

    from phenomhpc.models.checkpoint import load_encoder

    if out.suffix != SUFFIX:
        raise UsageError(f"--out {out}: weights are exported as {SUFFIX}; give a name that ends so")
    model, meta = load_encoder(folder, weights=weights)
    tensors = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    commit(out, save(tensors, {_KEY: json.dumps(asdict(meta), sort_keys=True)}))
    return meta


def export_onnx(
    folder: Path,
    out: Path,
    weights: str = AUTO,
    *,
    precision: str = "fp32",
    block: int | None = None,
    pooling: str = "mean",
    pixels: str | None = None,
) -> CheckpointMeta:
    """Write the encoder of a step folder or an export as `out`, an ONNX file (models/onnx_export.py), whole or not at all.

    precision: fp32 or fp16; block: 1-based, default the last; pixels: uint8 or uint16, default what it was trained on
    Raises as `load_encoder` does, and UsageError for a name that is not *.onnx, or without the extra `onnx`.
    """
    from phenomhpc.models import onnx_export
    from phenomhpc.models.checkpoint import checkpoint_digest, load_encoder
    from phenomhpc.models.kinds import encoder_shape

    if out.suffix != onnx_export.SUFFIX:
        raise UsageError(f"--out {out}: an encoder is exported as {onnx_export.SUFFIX}; give a name that ends so")
    onnx_export.require_onnx()
    model, meta = load_encoder(folder, weights=weights)
    shape = encoder_shape(meta.model, len(meta.channels), pooling=pooling, block=block)
    facts = onnx_export.facts_of(
        meta,
        checkpoint_digest(folder, weights),
        blocks=(block or shape.num_blocks,),
        pooling=pooling,
        dtype=precision,
        pixels=pixels or meta.dtype,
    )
    commit(out, onnx_export.export_encoder(model, facts))
    return meta


def read_export_meta(path: Path) -> dict[str, Any]:
    """meta.json of an exported file.  Raises ValueError or OSError where it has none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            held = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"no whole {SUFFIX} file: {error}") from error
    if _KEY not in held:
        raise ValueError(f"its metadata has no {_KEY}")
    value: dict[str, Any] = json.loads(held[_KEY])
    return value


def load_export(path: Path, state: Mapping[str, Tensor]) -> None:
    """Fill the CPU tensors of `state`, by parameter name.

    Raises UsageError where names or shapes are others, WorkError where the file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WorkError(f"checkpoint {path}: unreadable ({error})") from error
    for name in sorted({*stored, *state}):
        there, here = (tuple(held[name].shape) if name in held else "absent" for held in (stored, state))
        if there != here:
            raise UsageError(
                f"checkpoint {path}: tensor {name} is {there} there and {here} in the architecture of its metadata"
            )
        state[name].copy_(stored[name])

"""A checkpoint's encoder as one ONNX file: grey levels in, vectors out, any number of crops at a time.

    pixels    u8|u16 [batch, C, crop_px, crop_px], channels in the order of the file's metadata; standardised inside, in f32
    features  f32 [batch, D]; of several blocks, side by side

The file's metadata holds, as text under the key `phenomhpc`, what the encoder is (`OnnxFacts`).  In fp16 weights and blocks are
float16, standardisation and output float32.  Protocol buffers end at 2 GiB, and with them what one file can hold: a ViT-L fits,
a ViT-G does not.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phenomhpc.errors import UsageError
from phenomhpc.models.checkpoint import CheckpointMeta
from phenomhpc.models.kinds import encoder_shape
from phenomhpc.models.mae import MaskedAutoencoder, count_parameters
from phenomhpc.models.standardise import STANDARDISE_EPS

SUFFIX = ".onnx"
INPUT, OUTPUT = "pixels", "features"
_KEY = "phenomhpc"
_LIMIT = 2**31
_EXTRA = "install the extra: pip install 'phenomhpc[onnx]'"
EXPORT_ANEW = "make it with phenomhpc export CKPT --to onnx"
_DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16}


@dataclass(frozen=True, kw_only=True)
class OnnxFacts:
    """What an exported encoder is.

    checkpoint_digest: of the weights it was made of; blocks: 1-based; dtype: fp32 or fp16; pixels: uint8 or uint16
    channels, scale: in the order of the input; widths: features of each block
    """

    checkpoint_digest: str
    blocks: tuple[int, ...]
    pooling: str
    dtype: str
    pixels: str
    channels: tuple[str, ...]
    scale: tuple[float, ...]
    crop_px: int
    widths: tuple[int, ...]


def facts_of(
    meta: CheckpointMeta,
    digest: str,
    *,
    blocks: Sequence[int],
    pooling: str,
    dtype: str,
    pixels: str,
    channels: Sequence[str] = (),
) -> OnnxFacts:
    """Of a checkpoint with this digest.  channels: default all of them.  Raises UsageError for a block or pooling there is not."""
    channels = tuple(channels) or meta.channels
    shapes = [encoder_shape(meta.model, len(channels), pooling=pooling, block=block) for block in blocks]
    return OnnxFacts(
        checkpoint_digest=digest,
        blocks=tuple(blocks),
        pooling=pooling,
        dtype=dtype,
        pixels=pixels,
        channels=channels,
        scale=tuple(meta.scale[meta.channels.index(name)] for name in channels),
        crop_px=int(meta.model["crop_px"]),
        widths=tuple(shape.num_features for shape in shapes),
    )


class _Encoder(nn.Module):
    """From grey levels to vectors."""

    scale: Tensor

    def __init__(self, model: MaskedAutoencoder, scale: Sequence[float], blocks: Sequence[int], pooling: str) -> None:
        super().__init__()
        self.model, self.blocks, self.pooling = model, tuple(blocks), pooling
        self.dtype = next(model.parameters()).dtype
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        scaled = pixels.to(torch.float32) / self.scale
        standardised = nn.functional.group_norm(scaled, scaled.shape[1], eps=STANDARDISE_EPS)
        return self.model.encode_blocks(standardised.to(self.dtype), self.blocks, self.pooling)


def require_onnx() -> None:
    """Raise UsageError where the packages of the extra are missing."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"ONNX: the package {name} is not installed here; {_EXTRA}")


def export_encoder(model: MaskedAutoencoder, facts: OnnxFacts) -> bytes:
    """The file's content, of a model on the CPU, which stays as it is.

    Raises UsageError without the extra `onnx`, where the weights are more than one file can hold, and for an encoder that torch
    cannot export.
    """
    require_onnx()
    half = facts.dtype == "fp16"
    num_bytes = count_parameters(model)["encoder"] * (2 if half else 4)
    if num_bytes >= _LIMIT:
        raise UsageError(
            f"ONNX: the encoder has {num_bytes:,} bytes of weights, more than the 2 GiB that one file can hold; use backend=torch"
        )
    own = _Encoder(
        (copy.deepcopy(model).half() if half else model).eval(), facts.scale, facts.blocks, facts.pooling
    ).eval()
    crops = torch.zeros((2, len(facts.channels), facts.crop_px, facts.crop_px), dtype=torch.uint8)
    proto = _traced(own, crops.to(_DTYPES[facts.pixels])).model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = _KEY, json.dumps(asdict(facts), sort_keys=True)
    content: bytes = proto.SerializeToString()
    return content


def _traced(model: nn.Module, pixels: Tensor) -> torch.onnx.ONNXProgram:
    """Raises UsageError for a model that has no ONNX form: what it does depends on values, or ONNX lacks an operator."""
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                (pixels,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                # The example has two crops, since a dimension of one would be taken for a constant.
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        first = str(error.__cause__ or error).strip().splitlines()[0]
        raise UsageError(f"ONNX: torch cannot export this encoder ({first}); use backend=torch") from error
    assert program is not None
    return program


def read_facts(content: bytes, name: str) -> OnnxFacts:
    """What the file's metadata says.  Raises UsageError for a file that is none of ours."""
    require_onnx()
    import onnx

    try:
        held = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
        value: dict[str, Any] = json.loads(held[_KEY])
        several: dict[str, Any] = {key: tuple(entry) for key, entry in value.items() if isinstance(entry, list)}
        return OnnxFacts(**{**value, **several})
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{name}: its metadata has no {_KEY}; {EXPORT_ANEW}") from error
    except Exception as error:  # protobuf's errors are of no common kind
        raise UsageError(f"{name}: no readable ONNX file ({type(error).__name__}); {EXPORT_ANEW}") from error


def read_content(path: Path) -> bytes:
    """The bytes of an exported file.  Raises UsageError where there is none."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"onnx={path}: {os.strerror(error.errno or 0)}; {EXPORT_ANEW}, or leave onnx out") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own use of torch, and logs that torchvision is missing."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)

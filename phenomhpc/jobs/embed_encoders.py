"""The encoders of an embedding task: the checkpoint's by the backend that was asked for, and the baselines.

Whatever is not fp32 torch passes the parity gate (embed/gate.py) on the machine that it will embed on, or is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from phenomhpc.config import EmbedConfig
from phenomhpc.embed import gate
from phenomhpc.embed.encode import CropEncoder, ModelEncoder, Precision, require_precision
from phenomhpc.embed.feeding import Pixels
from phenomhpc.embed.onnx import OnnxEncoder
from phenomhpc.embed.unit import CHECKPOINT, encode_wells
from phenomhpc.errors import UsageError
from phenomhpc.jobs.embed_source import INTENSITY, UNTRAINED, Source
from phenomhpc.models.blocks import is_compiled
from phenomhpc.models.checkpoint import load_encoder
from phenomhpc.models.intensity import IntensityStatistics
from phenomhpc.models.mae import MaskedAutoencoder, build_mae
from phenomhpc.models.onnx_export import OnnxFacts, export_encoder, facts_of, read_content
from phenomhpc.progress import silent
from phenomhpc.runs import TaskContext

EVENT = "parity"


def make_encoders(config: EmbedConfig, source: Source, pixels: Pixels, ctx: TaskContext) -> dict[str, CropEncoder]:
    """The checkpoint's encoder and the baselines, by source.  Raises UsageError where the backend does not pass the gate."""
    device, meta = choose_device(config), source.meta
    encoder = checkpoint_encoder(config, source, device)
    if not is_reference(config):
        what = f"backend={config.backend} precision={config.precision}{' compile=true' * config.compile}"
        found = parity(config, source, pixels, device, encoder)
        for each in found:
            ctx.events.emit(EVENT, **asdict(each), backend=source.binding.backend, dtype=config.precision)
        least = gate.require(found, what, min_cosine=config.min_cosine, max_recall_change=config.max_recall_change)
        ctx.progress.say(f"{what} passed {'its gate' if least.relation else 'half of its gate'}: {least.words()}")

    def untrained() -> CropEncoder:
        model = build_mae(len(meta.channels), seed=config.seed, **meta.model)
        return torch_encoder(model, source, device, config.precision, (source.binding.block,))

    makers: Mapping[str, Callable[[], CropEncoder]] = {
        UNTRAINED: untrained,
        INTENSITY: lambda: IntensityStatistics(source.scale, threads=pixels.threads),
    }
    return {CHECKPOINT: encoder, **{name: makers[name]() for name in config.baselines}}


def is_reference(config: EmbedConfig) -> bool:
    """Is it what the others are held against?"""
    return config.backend == "torch" and config.precision == "fp32" and not config.compile


def choose_device(config: EmbedConfig) -> torch.device:
    """Where torch computes.  Raises UsageError for a GPU that is not there, or has not the precision that was asked for."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("embed: device=cuda: torch sees no GPU here; use device=cpu or auto")
    use_gpu = config.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if use_gpu else "cpu")
    require_precision(config.precision, device)
    return device


def torch_encoder(
    model: MaskedAutoencoder,
    source: Source,
    device: torch.device,
    precision: Precision,
    blocks: tuple[int, ...],
    *,
    compiled: bool = False,
) -> ModelEncoder:
    return ModelEncoder(
        model,
        source.scale,
        device=device,
        precision=precision,
        blocks=blocks,
        pooling=source.binding.pooling,
        compiled=compiled,
    )


def checkpoint_encoder(config: EmbedConfig, source: Source, device: torch.device) -> CropEncoder:
    """The checkpoint's encoder as the settings say, not yet held against anything."""
    if config.backend == "onnx":
        return _onnx_encoder(config, source)
    compiled = config.compile and is_compiled(True, device)
    model, _ = load_encoder(source.checkpoint, device, config.weights)
    return torch_encoder(model, source, device, config.precision, source.blocks, compiled=compiled)


def _onnx_encoder(config: EmbedConfig, source: Source) -> CropEncoder:
    expected = onnx_facts(source, config.precision)
    if config.onnx is None:
        return OnnxEncoder(onnx_content(config, source), "the export of this task", device=config.device)
    encoder = OnnxEncoder(read_content(Path(config.onnx)), f"onnx={config.onnx}", device=config.device)
    for name, wanted in asdict(expected).items():
        there = asdict(encoder.facts)[name]
        if there != wanted:
            raise UsageError(
                f"onnx={config.onnx}: has {name}={there}, this run needs {wanted}; export it anew with the same settings, "
                "or leave onnx out"
            )
    return encoder


def onnx_facts(source: Source, dtype: str) -> OnnxFacts:
    """What an export for this run must be."""
    bound = source.binding
    return facts_of(
        source.meta,
        bound.checkpoint_digest,
        blocks=source.blocks,
        pooling=bound.pooling,
        dtype=dtype,
        pixels=source.snapshot.dtype,
        channels=bound.channels,
    )


def onnx_content(config: EmbedConfig, source: Source) -> bytes:
    """The checkpoint's encoder, exported for this run."""
    model, _ = load_encoder(source.checkpoint, "cpu", config.weights)
    return export_encoder(model, onnx_facts(source, config.precision))


def parity(
    config: EmbedConfig, source: Source, pixels: Pixels, device: torch.device, encoder: CropEncoder
) -> list[gate.Parity]:
    """An encoder against fp32 torch on wells of the snapshot, for each of the blocks."""
    plates = {plate: source.wells(plate) for plate in gate.some_plates(source.snapshot.plates, config.gate_wells)}
    wells = gate.sample_wells(plates, config.gate_wells, config.gate_crops)
    if not wells.num_wells:
        raise UsageError(
            f"store {config.store}: has no well with pixels, so that no backend can be held against fp32 torch"
        )
    model, _ = load_encoder(source.checkpoint, device, config.weights)
    reference = torch_encoder(model, source, device, "fp32", source.blocks)
    with silent().stage("gate", None, "crops") as stage:
        found = encode_wells(wells, pixels, {"fp32 torch": reference, "other": encoder}, config.batch, stage)
    return gate.compare(wells, found["fp32 torch"].sums, found["other"].sums, encoder.widths)

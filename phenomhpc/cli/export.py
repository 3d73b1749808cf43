"""phenomhpc export: a checkpoint as one file for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from phenomhpc.cli.complete import complete_run
from phenomhpc.cli.output import print_json
from phenomhpc.cli.runs import runs_folder

if TYPE_CHECKING:
    from phenomhpc.models.checkpoint import CheckpointMeta

CheckpointName = Annotated[
    str,
    typer.Argument(
        help="A step folder, an exported *.safetensors, or a run (its newest committed checkpoint).",
        show_default=False,
        autocompletion=complete_run,
    ),
]
Format = Annotated[
    str,
    typer.Option(
        "--to",
        help="safetensors: encoder and decoder, which --checkpoint takes; onnx: the encoder, pixels to vectors.",
        click_type=click.Choice(["safetensors", "onnx"]),
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option(help="File to write: *.safetensors or *.onnx.", show_default=False)]
Weights = Annotated[
    str,
    typer.Option(
        help="The model's own weights, or their moving average; auto: that where there is one.",
        click_type=click.Choice(["model", "ema", "auto"]),
    ),
]
OnnxPrecision = Annotated[str, typer.Option(help="Of an ONNX file.", click_type=click.Choice(["fp32", "fp16"]))]
OnnxBlock = Annotated[
    int | None,
    typer.Option(min=1, help="Of an ONNX file: the encoder's block; default the last.", show_default=False),
]
OnnxPooling = Annotated[
    str,
    typer.Option(help="Of an ONNX file: over the patches.", click_type=click.Choice(["mean", "class", "channelwise"])),
]
OnnxPixels = Annotated[
    str | None,
    typer.Option(
        help="Of an ONNX file: what it takes; default what the model was trained on.",
        click_type=click.Choice(["uint8", "uint16"]),
        show_default=False,
    ),
]
RunsFolder = Annotated[str | None, typer.Option("--runs", help="Folder of the run directories.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def export(
    checkpoint: CheckpointName,
    to: Format,
    out: Out,
    weights: Weights = "auto",
    precision: OnnxPrecision = "fp32",
    block: OnnxBlock = None,
    pooling: OnnxPooling = "mean",
    pixels: OnnxPixels = None,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as one file that nothing is run of: weights for training and embedding, or an encoder for others."""
    from phenomhpc.models.export import export_onnx, export_weights
    from phenomhpc.train.named import named_checkpoint

    folder = named_checkpoint(checkpoint, runs_folder(runs))
    if to == "onnx":
        meta = export_onnx(folder, out, weights, precision=precision, block=block, pooling=pooling, pixels=pixels)
    else:
        meta = export_weights(folder, out, weights)
    facts = _facts(folder, out, weights, meta)
    if as_json:
        print_json(facts)
        return
    print(
        f"wrote {out}: step {meta.step} of {folder}, weights={facts['weights']}, {facts['bytes']:,} bytes, "
        f"digest {facts['digest']}"
    )


def _facts(folder: Path, out: Path, weights: str, meta: CheckpointMeta) -> dict[str, Any]:
    """What was written, for --json."""
    from phenomhpc.models.checkpoint import checkpoint_digest
    from phenomhpc.models.weights import EMA, MODEL, is_average

    return {
        "checkpoint": str(folder),
        "out": str(out),
        "step": meta.step,
        "bytes": out.stat().st_size,
        "weights": EMA if is_average(meta) else MODEL,
        "digest": checkpoint_digest(folder, weights),
    }

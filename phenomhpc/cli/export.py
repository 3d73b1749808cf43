"""phenomhpc export: a checkpoint as one file for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import click
import typer

from phenomhpc.cli.complete import complete_run
from phenomhpc.cli.output import print_json
from phenomhpc.cli.runs import runs_folder


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A step folder, an exported *.safetensors, or a run (its newest committed checkpoint).",
            show_default=False,
            autocompletion=complete_run,
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="safetensors: encoder and decoder, which --checkpoint takes; onnx: the encoder, pixels to vectors.",
            click_type=click.Choice(["safetensors", "onnx"]),
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write: *.safetensors or *.onnx.", show_default=False)],
    weights: Annotated[
        str,
        typer.Option(
            help="The model's own weights, or their moving average; auto: that where there is one.",
            click_type=click.Choice(["model", "ema", "auto"]),
        ),
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="Of an ONNX file.", click_type=click.Choice(["fp32", "fp16"]))
    ] = "fp32",
    block: Annotated[
        int | None,
        typer.Option(min=1, help="Of an ONNX file: the encoder's block; default the last.", show_default=False),
    ] = None,
    pooling: Annotated[
        str,
        typer.Option(
            help="Of an ONNX file: over the patches.", click_type=click.Choice(["mean", "class", "channelwise"])
        ),
    ] = "mean",
    pixels: Annotated[
        str | None,
        typer.Option(
            help="Of an ONNX file: what it takes; default what the model was trained on.",
            click_type=click.Choice(["uint8", "uint16"]),
            show_default=False,
        ),
    ] = None,
    runs: Annotated[
        str | None, typer.Option("--runs", help="Folder of the run directories.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a checkpoint as one file that nothing is run of: weights for training and embedding, or an encoder for others."""
    from phenomhpc.models.checkpoint import checkpoint_digest
    from phenomhpc.models.export import export_onnx, export_weights
    from phenomhpc.models.weights import EMA, MODEL, is_average
    from phenomhpc.train.named import named_checkpoint

    folder = named_checkpoint(checkpoint, runs_folder(runs))
    if to == "onnx":
        meta = export_onnx(folder, out, weights, precision=precision, block=block, pooling=pooling, pixels=pixels)
    else:
        meta = export_weights(folder, out, weights)
    kind = EMA if is_average(meta) else MODEL
    facts: dict[str, Any] = {
        "checkpoint": str(folder), "out": str(out), "step": meta.step, "bytes": out.stat().st_size,
        "weights": kind, "digest": checkpoint_digest(folder, weights),
    }  # fmt: skip
    if as_json:
        print_json(facts)
    else:
        print(
            f"wrote {out}: step {meta.step} of {folder}, weights={kind}, {facts['bytes']:,} bytes, digest {facts['digest']}"
        )

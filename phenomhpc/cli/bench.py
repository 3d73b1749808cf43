"""phenomhpc bench loader | train | embed: measurements that anybody can run on their own cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phenomhpc.cli.complete import complete_run
from phenomhpc.cli.output import print_json, print_table

if TYPE_CHECKING:
    from phenomhpc.jobs.base import Table
    from phenomhpc.jobs.embed_bench import EmbedBench
    from phenomhpc.jobs.train_bench import TrainBench

app = typer.Typer(
    help="Measure: how fast crops come off a store, how fast a model trains, how fast it embeds.", no_args_is_help=True
)

KIBIBYTE = 1024
GPU_BATCH, CPU_BATCH = 64, 8


@app.command()
def loader(
    store: Annotated[Path, typer.Option(help="Folder of the store.", show_default=False)],
    snapshot: Annotated[
        str | None, typer.Option(help="Digest of a snapshot; default the newest.", show_default=False)
    ] = None,
    crop_px: Annotated[int, typer.Option(min=1, help="Edge of a crop, pixels.")] = 256,
    crops: Annotated[int, typer.Option(min=1, help="Crops read in each pass.")] = 96,
    passes: Annotated[int, typer.Option(min=1, help="Passes; their median counts.")] = 5,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Say what so many GPUs would ask of the file system.", show_default=False)
    ] = None,
    gpu_crops_per_s: Annotated[float, typer.Option(min=0, help="Crops per second that one of them trains.")] = 500.0,
    block_kib: Annotated[
        int | None,
        typer.Option(min=1, help="Block of the file system, KiB; default what it says itself.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Random crops of a store by our reader and loader, beside the limit that decoding sets and other libraries."""
    from dataclasses import asdict

    from phenomhpc.jobs.base import Table
    from phenomhpc.jobs.loader_bench import measure
    from phenomhpc.store import Snapshot, open_store

    opened = Snapshot.open(open_store(store), snapshot)
    found = measure(opened, crop_px=crop_px, crops=crops, passes=passes, block_bytes=block_kib and block_kib * KIBIBYTE)
    if as_json:
        print_json(asdict(found))
        return
    rows = tuple(
        (rate.name, f"{rate.crops_per_s:,.0f}", f"{rate.mb_per_s:,.0f}", f"{rate.of_limit:.0%}") for rate in found.rates
    )
    title = f"{crop_px} x {crop_px} x {len(opened.channels)} {opened.dtype}, warm, of one CPU"
    print_table(Table(title=title, columns=("what", "crops/s", "MB/s", "of the limit"), rows=rows))
    disk = found.disk
    print(f"first batch after {found.start_s:.2f} s; the store is {found.ratio:.2f} times smaller than its pixels")
    print(f"cold, per crop: {disk.reads:.1f} reads of {disk.asked_bytes / disk.reads / KIBIBYTE:.0f} KiB", end="")
    if disk.amplification is not None:
        print(f", {disk.amplification:.2f} times the crop's own compressed bytes from the disk", end="")
    print(f", {disk.opens:.2f} files opened, {disk.blocks:.1f} blocks of {disk.block_bytes / KIBIBYTE:,.0f} KiB")
    if gpus is not None:
        rate = gpus * gpu_crops_per_s
        print(
            f"{gpus} GPUs at {gpu_crops_per_s:,.0f} crops/s: {rate * disk.asked_bytes / 1e9:,.1f} GB/s in {rate * disk.reads:,.0f} "
            f"reads/s, at most {rate:,.0f} opens/s; per GPU {gpu_crops_per_s * disk.reads:,.0f} reads/s"
        )


@app.command()
def train(
    model: Annotated[str, typer.Option(help="Recipe of the model: a name in jobs/model/.")] = "mae_vit_s16",
    store: Annotated[
        list[Path] | None,
        typer.Option(help="Also crops of this store, and what our loop adds to a bare step.", show_default=False),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Crops of a step; default 64 on a GPU, 8 on a CPU.", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each case; their medians count.")] = 5,
    channels: Annotated[int, typer.Option(min=1, help="Channels of random crops; a store has its own.")] = 6,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="fp32 or bf16; default bf16 on a GPU, else fp32.", show_default=False)
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Also the step with compiled blocks.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """A training step of a recipe on this machine, part by part, on random crops and on a store's.

    Under torchrun (`torchrun --nproc-per-node 8 --module phenomhpc.cli.main bench train ...`) of several GPUs.
    """
    import os

    from phenomhpc.progress import console, silent

    first = os.environ.get("RANK", "0") == "0"
    import torch

    from phenomhpc.config import PretrainConfig, resolve
    from phenomhpc.jobs.train_bench import bench_train

    on_gpu = device != "cpu" and torch.cuda.is_available()
    settings = {
        "store": [str(path.absolute()) for path in store or ()] or None,
        "device": device,
        "precision": precision or ("bf16" if on_gpu else "fp32"),
        "optim.micro_batch": batch or (GPU_BATCH if on_gpu else CPU_BATCH),
    }
    config = resolve("pretrain", settings, [f"model={model}"]).config
    assert isinstance(config, PretrainConfig)
    progress = console() if first else silent()
    found = bench_train(config, channels=channels, steps=steps, compiled=compiled, progress=progress)
    if first:
        _print_train(found, as_json=as_json)


@app.command()
def embed(
    store: Annotated[Path, typer.Option(help="Folder of the store.", show_default=False)],
    checkpoint: Annotated[
        str,
        typer.Option(
            help="A step folder, an exported file, or a run.", show_default=False, autocompletion=complete_run
        ),
    ],
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Crops of a forward pass; default 64 on a GPU, 8 on a CPU.", show_default=False),
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="Forward passes of each pass over the crops.")] = 8,
    passes: Annotated[int, typer.Option(min=1, help="Passes; their median counts.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Only these, as the table names them: torch, 'torch compiled', onnx.", show_default=False),
    ] = None,
    runs: Annotated[
        str | None, typer.Option("--runs", help="Folder of the run directories.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Every backend on a store's crops: its rate, that of its bare encoder, and how near it comes to fp32 torch."""
    from dataclasses import asdict

    import torch

    from phenomhpc.config import EmbedConfig, resolve
    from phenomhpc.errors import UsageError
    from phenomhpc.jobs.embed_bench import ON_CPU, ON_GPU, bench_embed
    from phenomhpc.jobs.references import resolve_references
    from phenomhpc.progress import console

    on_gpu = device != "cpu" and torch.cuda.is_available()
    every = ON_GPU if on_gpu else ON_CPU
    cases = [case for case in every if not backend or case.name in backend]
    unknown = sorted(set(backend or ()) - {case.name for case in every})
    if unknown:
        raise UsageError(f"--backend {unknown[0]}: there are {', '.join(dict.fromkeys(case.name for case in every))}")
    settings = {
        "store": str(store), "checkpoint": checkpoint, "device": device, "runs": runs,
        "batch": batch or (GPU_BATCH if on_gpu else CPU_BATCH),
    }  # fmt: skip
    config = resolve_references(resolve("embed", settings, []).config)
    assert isinstance(config, EmbedConfig)
    found = bench_embed(config, cases, num_batches=batches, passes=passes, progress=console())
    if as_json:
        print_json(asdict(found))
        return
    print_table(embed_table(found))
    for name, why in found.left_out:
        print(f"{name} is left out: {why}")


def embed_table(found: EmbedBench) -> Table:
    """One row per backend."""
    from phenomhpc.jobs.base import Table

    rows = tuple(
        (
            rate.backend, rate.precision, rate.device, f"{rate.crops_per_s:,.4g}", f"{rate.bare_crops_per_s:,.4g}",
            f"{rate.share:.1%}", f"{rate.min_cosine:.7f}",
            "no pairs" if rate.recall_change is None else f"{100 * rate.recall_change:.2f}",
        )
        for rate in found.rates
    )  # fmt: skip
    return Table(
        title=f"{found.model}, {found.batch} crops a forward pass, torch {found.torch}, median of {found.passes} passes",
        columns=("backend", "dtype", "on", "crops/s", "bare", "of bare", "least cosine", "recall moves, points"),
        rows=rows,
    )


def _print_train(found: TrainBench, *, as_json: bool) -> None:
    from dataclasses import asdict

    from phenomhpc.jobs.base import Table
    from phenomhpc.train.bench import COLUMNS, cells

    if as_json:
        print_json(asdict(found))
        return
    title = (
        f"{found.model}, {found.cases[0].batch} crops a step and rank, {found.world} rank(s), {found.precision}, "
        f"{found.device}, torch {found.torch}; matrix product {found.matmul_tflops:.3g} TFLOP/s"
    )
    print_table(Table(title=title, columns=COLUMNS, rows=tuple(cells(case) for case in found.cases)))
    if found.overhead is not None and found.loop_s is not None and found.bare_s is not None:
        print(
            f"our loop: {found.loop_s * 1000:,.4g} ms a step, a bare step on ready crops beside it {found.bare_s * 1000:,.4g} ms: "
            f"{found.overhead:+.1%}"
        )

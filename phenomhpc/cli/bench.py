"""phenomhpc bench loader: measurements that anybody can run on their own cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phenomhpc.cli.output import print_json, print_table

app = typer.Typer(help="Measure: how fast crops come off a store.", no_args_is_help=True)

KIBIBYTE = 1024


@app.callback()
def _verbs() -> None:
    """Makes `loader` a verb also while it is the only one."""


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

"""phenomhpc demo: everything, small, on this machine, ending in a report with pictures."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def demo(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings over jobs/demo.yaml's.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the demo; run again to go on in it.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Another seed makes other plates and another model.", min=0)] = 0,
) -> None:
    """Synthetic plates, converted, learnt, embedded and mapped, ending in a report with pictures."""
    # Before torch is imported.  Threads that spin at OpenMP's barriers starve each other where other programs use the cores
    # too: on two cores shared with several builds, training ran at 13 crops/s spinning and at 90 sleeping.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from phenomhpc.jobs.demo import run_demo
    from phenomhpc.progress import console

    print(run_demo(out, seed, overrides or [], command=sys.argv, progress=console()))

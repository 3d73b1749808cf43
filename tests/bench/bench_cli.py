"""What the command costs before it does anything: `make bench-cli`.

Medians of interleaved runs, beside a bare interpreter and one that imports torch, since only ratios on one machine
count.  The aims are 0.3 s for --help and 2 s for a submission's dry run, which needs no Slurm.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PASSES = 7
PHENOMHPC = [sys.executable, "-m", "phenomhpc"]


def cases(raw: Path) -> dict[str, list[str]]:
    """Name -> command."""
    store = str(raw.parent / "store")
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import torch": [sys.executable, "-c", "import torch"],
        "phenomhpc --help": [*PHENOMHPC, "--help"],
        "phenomhpc submit pretrain --help": [*PHENOMHPC, "submit", "pretrain", "--help"],
        "phenomhpc config show pretrain": [*PHENOMHPC, "config", "show", "pretrain"],
        "submit pretrain --nodes 16 --dry-run": [
            *PHENOMHPC,
            "submit",
            "pretrain",
            "--store",
            store,
            "--nodes",
            "16",
            "--dry-run",
        ],
        "submit convert --dry-run": [
            *PHENOMHPC,
            "submit",
            "convert",
            "--plates",
            str(raw),
            "--store",
            store,
            "--dry-run",
        ],
    }


def main() -> None:
    """Print a table of medians in seconds."""
    from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
    from phenomhpc.progress import silent

    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        write_plates(raw, SyntheticSpec(field_px=256, plate_rows=2, plate_columns=4, num_genes=4), silent(), workers=1)
        convert = [*PHENOMHPC, "convert", "--plates", str(raw), "--store", str(raw.parent / "store")]
        subprocess.run(convert, check=True, capture_output=True, cwd=folder)
        times: dict[str, list[float]] = {name: [] for name in cases(raw)}
        for _ in range(PASSES):
            for name, command in cases(raw).items():
                began = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, cwd=folder)
                times[name].append(time.perf_counter() - began)
    for name, values in times.items():
        print(f"{name:40s} {statistics.median(values):6.3f} s  (of {PASSES}: {min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()

"""How soon the first batch is there, how a run resumes far out, and what memory a reading process takes: `make bench-loader`.

Each figure is of a process of its own, without torch, whose import is the model's.  The stores are synthetic: their tables and
shard indices are as large as those of so many fields, their shards links to a real one, so that every crop is really read.
Memory is private (anonymous) memory, and beside it the pages of files that the process has mapped, which are the kernel's
to take back at any time (Pss of /proc/self/smaps_rollup).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

CROP, BATCH = 256, 32
FAR = 10**10
# seconds to the first batch; seconds to resume, without reading; private bytes
AIM_START_S, AIM_RESUME_S, AIM_BYTES = 2.0, 0.010, 150e6


@dataclass(frozen=True, kw_only=True)
class Started:
    """import_s, open_s, batch_s: of the modules, of the store, of the first batch after that; resume_s: the crops of the step at
    index 10^10 without reading; bytes after `crops` crops: private, and of mapped files."""

    import_s: float
    open_s: float
    batch_s: float
    resume_s: float
    crops: int
    private_bytes: int
    mapped_bytes: int


def measure(root: str, crops: int, access: str | None) -> Started:
    """In this process, which has done nothing else yet."""
    began = time.perf_counter()
    import numpy as np

    from phenomhpc.crops import Loader, Sampler
    from phenomhpc.crops.corpus import Corpus
    from phenomhpc.store import ShardReader

    imported = time.perf_counter()
    corpus = Corpus.open([root])
    (snapshot,) = corpus.snapshots
    sampler = Sampler(corpus.tables, seed=0, crop_px=CROP)
    opened = time.perf_counter()
    with ShardReader(snapshot.store, snapshot, access) as reader:  # type: ignore[arg-type]
        settings = {"num_channels": len(corpus.channels), "dtype": corpus.dtype, "num_patches": 256}
        with Loader(reader, sampler, **settings, global_batch=BATCH, micro_batch=BATCH) as loader:  # type: ignore[arg-type]
            next(loader)
            first = time.perf_counter()
            for _ in range(crops // BATCH - 1):
                next(loader)
        memory = _memory()
    resumed = time.perf_counter()
    Sampler(corpus.tables, seed=0, crop_px=CROP).visits(np.arange(FAR, FAR + BATCH))
    return Started(
        import_s=imported - began,
        open_s=opened - imported,
        batch_s=first - opened,
        resume_s=time.perf_counter() - resumed,
        crops=crops,
        private_bytes=memory["Pss_Anon"],
        mapped_bytes=memory["Pss_File"],
    )


def _memory() -> dict[str, int]:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}


def in_a_process(root: Path, crops: int, access: str | None = None) -> tuple[Started, float]:
    """Also the seconds from the start of the process to its first batch, Python's own start among them."""
    words = [sys.executable, "-m", "tests.bench.bench_start", "--child", str(root), "--crops", str(crops)]
    began = time.perf_counter()
    done = subprocess.run(words + (["--access", access] if access else []), capture_output=True, text=True, check=True)
    all_s = time.perf_counter() - began
    answer = json.loads(done.stdout)
    inside = answer.pop("all_s")
    found = Started(**answer)
    return found, all_s - inside + found.import_s + found.open_s + found.batch_s


def main() -> int:
    """Print a row per store; exit code 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, nargs="*", default=[100_000, 10_000_000])
    parser.add_argument("--crops", type=int, default=3200, help="read before memory is looked at")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--access", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        began = time.perf_counter()
        found = measure(given.child, given.crops, given.access)
        print(json.dumps({**asdict(found), "all_s": time.perf_counter() - began}))
        return 0
    from tests.bench.large_store import large_store  # here: the processes that are measured know nothing of it

    print(
        "| fields | files are | start to first batch, s | of it imports | resume at 10^10, ms | private MB | mapped MB |"
    )
    print("|---" * 7 + "|")
    missed = []
    for fields in given.fields:
        with tempfile.TemporaryDirectory() as folder:
            large_store(Path(folder), fields)
            for access in ("mapped", "positioned"):
                found, start_s = in_a_process(Path(folder), given.crops, access)
                print(
                    f"| {fields:,} | {access} | {start_s:.2f} | {found.import_s:.2f} | {1000 * found.resume_s:.2f} | "
                    f"{found.private_bytes / 1e6:.0f} | {found.mapped_bytes / 1e6:.0f} |",
                    flush=True,
                )
                for what, value, aim in (
                    ("start, s", start_s, AIM_START_S),
                    ("resume, s", found.resume_s, AIM_RESUME_S),
                    ("private bytes", found.private_bytes, AIM_BYTES),
                ):
                    if value > aim:
                        missed.append(f"{fields:,} fields, {access}: {what} {value:.3g}, aim {aim:g}")
    for words in missed:
        print(f"missed: {words}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())

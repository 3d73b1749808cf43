"""Disks that are full, read-only or gone: one clear line, a store that is whole as far as it goes, and a second run that finishes.

Real ones: small file systems in memory, mounted in a mount namespace of the test's own.  A quota, which needs another file
system, is what the kernel answers to the process's own fsync, told by strace.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.store import open_store
from phenomhpc.store.verify import verify
from tests.unit.test_convert_job import arrays
from tests.unit.test_plates_layouts import convert

SPEC = SyntheticSpec(
    experiments=1, plates_per_experiment=1, plate_rows=2, plate_columns=4, field_px=256, num_genes=2, num_unexpressed=0,
    dtype="uint16", image_format="tif",
)  # fmt: skip
MOUNTS = ["unshare", "--mount", "--propagation", "private", "true"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.geteuid() or subprocess.run(MOUNTS, capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here (root is needed)")
    folder = tmp_path_factory.mktemp("disk")
    write_plates(folder / "raw", SPEC, silent(), workers=1)
    convert(folder / "calm", folder / "raw", shard_mb=1)
    return folder / "raw"


def on_a_disk(folder: Path, raw: Path, script: str) -> str:
    """Run a script where $disk is to be mounted on, and `again` converts into it; the store is copied out at the end."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    program = "from phenomhpc.cli.main import main; main()"
    command = (
        f"again() {{ {sys.executable} -c '{program}' convert --plates $raw --store $disk/store --runs {folder}/runs shard_mb=1 "
        'workers=1 2>&1 && echo "exit code 0" || echo "exit code $?"; }\n'
    )
    text = f"set -e\ndisk={disk}\nraw={raw}\n{command}{script}\nmkdir -p {folder}/out; cp -a $disk/store {folder}/out/ || true\n"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "bash", "-c", text],
        capture_output=True, text=True, timeout=120, check=False, cwd=folder, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def said(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(("phenomhpc:", "exit code"))]


def is_whole(folder: Path, raw: Path) -> None:
    assert arrays(folder / "out" / "store") == arrays(raw.parent / "calm" / "store")
    assert not verify(open_store(folder / "out" / "store"), silent()).damage


def test_a_full_disk_is_one_line_and_with_more_room_the_same_command_finishes(raw: Path, tmp_path: Path) -> None:
    output = on_a_disk(
        tmp_path, raw, "mount -t tmpfs -o size=2m none $disk\nagain\nfind $disk/store -name '*.tmp-*'\n"
        "mount -o remount,size=64m $disk\nagain",
    )  # fmt: skip
    first, code, last = said(output)
    assert "cannot be written (No space left on device)" in first and "make room and run again to go on" in first
    assert (code, last) == ("exit code 1", "exit code 0") and ".tmp-" not in output and "Traceback" not in output
    assert "were complete already" in output
    is_whole(tmp_path, raw)


def test_a_read_only_disk_is_one_line(raw: Path, tmp_path: Path) -> None:
    output = on_a_disk(
        tmp_path, raw, "mount -t tmpfs -o size=64m none $disk\nmount -o remount,ro $disk\nagain\n"
        "mount -o remount,rw $disk\nagain",
    )  # fmt: skip
    first, code, last = said(output)
    assert (
        "Read-only file system" in first and (code, last) == ("exit code 1", "exit code 0")
    ) or "exit code 2" in code
    assert "Traceback" not in output
    is_whole(tmp_path, raw)


def test_a_store_whose_disk_vanishes_is_not_gone_on_with_in_the_empty_folder(raw: Path, tmp_path: Path) -> None:
    # The disk is unmounted as soon as the first shard is there; what holds files open keeps it alive.
    output = on_a_disk(
        tmp_path, raw, "mount -t tmpfs -o size=64m none $disk\nmkdir $disk/../kept\nmount --bind $disk $disk/../kept\n"
        "(while ! ls $disk/store/plates/*.zarr/images/c/0/0/0/0 >/dev/null 2>&1; do :; done; umount -l $disk) &\n"
        "again\nwait\nls -A $disk\nmount --bind $disk/../kept $disk\nagain",
    )  # fmt: skip
    first, code, last = said(output)
    assert "is the file system still mounted?" in first and (code, last) == ("exit code 1", "exit code 0")
    assert "Traceback" not in output
    is_whole(tmp_path, raw)


def test_raw_plates_that_vanish_are_not_set_aside_image_by_image(raw: Path, tmp_path: Path) -> None:
    output = on_a_disk(
        tmp_path, raw, "mount -t tmpfs -o size=64m none $disk\nmkdir $disk/seen\nmount --bind $raw $disk/seen\nraw=$disk/seen\n"
        "(while ! ls $disk/store/plates/*.zarr/images/c/0/0/0/0 >/dev/null 2>&1; do :; done; umount -l $disk/seen) &\n"
        "again\nwait\nmount --bind " + str(raw) + " $disk/seen\nagain",
    )  # fmt: skip
    first, code, last = said(output)
    assert "its folder is gone; is the file system still mounted?" in first
    assert (code, last) == ("exit code 1", "exit code 0") and "Traceback" not in output
    is_whole(tmp_path, raw)


QUOTA_POINTS = 1000 if os.environ.get("PHENOMHPC_SOAK") else 3


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace absent: make test installs it where it can")
@pytest.mark.timeout(3600 if QUOTA_POINTS > 3 else 300)
def test_a_quota_that_is_reached_anywhere_is_one_line_and_later_the_same_command_finishes(tmp_path: Path) -> None:
    """From one fsync of the conversion on, whichever, all of them fail as NFS does over quota."""
    write_plates(tmp_path / "raw", replace(SPEC, field_px=48), silent(), workers=1)
    convert(tmp_path / "calm", tmp_path / "raw", shard_mb=1)

    def again(name: str, *before: str) -> subprocess.CompletedProcess[str]:
        words = [
            "convert",
            "--plates",
            "raw",
            "--store",
            f"{name}/store",
            "--runs",
            f"{name}/runs",
            "shard_mb=1",
            "workers=1",
        ]
        command = [*before, sys.executable, "-m", "phenomhpc", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)

    traced = ["strace", "-f", "-qq", "-e", "trace=fsync"]
    done = again("counted", *traced, "-o", str(tmp_path / "trace"))
    calls = len((tmp_path / "trace").read_text().splitlines())
    assert done.returncode == 0 and calls > 30
    points = random.Random(4).sample(range(1, calls + 1), min(QUOTA_POINTS, calls))
    for point in points:
        name = f"from-{point}"
        failed = again(name, *traced, "-o", os.devnull, "-e", f"inject=fsync:error=EDQUOT:when={point}+")
        lines = [line for line in failed.stderr.splitlines() if line.startswith("phenomhpc:")]
        assert failed.returncode == 1 and len(lines) == 1 and "Traceback" not in failed.stderr, failed.stderr
        assert "Disk quota exceeded" in lines[0] and str(tmp_path / name) in lines[0], lines
        assert not list((tmp_path / name).rglob("store/**/*.tmp-*"))
        assert again(name).returncode == 0
        assert arrays(tmp_path / name / "store") == arrays(tmp_path / "calm" / "store")

"""convert: real pixels, killed and resumed, damaged input, wrong use."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import tifffile
import zarr

from phenomhpc.config import ConvertConfig
from phenomhpc.errors import SET_ASIDE, UsageError, WorkError
from phenomhpc.jobs.base import Summary
from phenomhpc.jobs.here import run_here
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, list_runs, read_outcome
from phenomhpc.store import Snapshot, open_store
from phenomhpc.store.verify import verify

SPEC = SyntheticSpec(experiments=1, plates_per_experiment=2, plate_rows=3, plate_columns=4, field_px=80, num_genes=4)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plates") / "raw"
    write_plates(folder, SPEC, silent(), workers=1)
    return folder


def convert(folder: Path, raw: Path, **settings: object) -> tuple[RunPaths, Summary]:
    values = {"plates": (str(raw),), "store": str(folder / "store"), "runs": str(folder / "runs"), "workers": 1}
    config = ConvertConfig.model_validate({**values, "shard_mb": 1, **settings})
    return run_here(config, command=["test"], progress=silent())


def arrays(store: Path) -> dict[str, bytes]:
    """Every byte of the store's arrays."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.glob("plates/*.zarr/**/*"))
        if path.is_file()
    }


def test_a_phenix_field_is_pixel_for_pixel_what_tifffile_reads(shared_data: Path, tmp_path: Path) -> None:
    convert(tmp_path, shared_data / "phenix")
    store = open_store(tmp_path / "store")
    array = zarr.open_array(store.paths.images("BR00121482"), mode="r")
    assert array.shape == (1, 6, 1080, 1080)
    for number in range(6):
        source = tifffile.imread(shared_data / "phenix" / "images" / f"r01c01f01p01-ch{number + 1}sk1fk1fl1.tiff")
        assert np.array_equal(array[0, number], source)
    fields = Snapshot.open(store).fields().row(0, named=True)
    assert (fields["well"], fields["status"], fields["site"]) == ("A01", "ok", 1)
    assert store.spec.channels[4] == "HOECHST 33342"


@pytest.mark.parametrize(("size", "dtype"), [(80, "uint8"), (130, "uint16"), (128, "uint8")])
def test_zarr_and_tensorstore_read_what_was_painted(size: int, dtype: str, tmp_path: Path) -> None:
    spec = SyntheticSpec(
        experiments=1, plate_rows=1, plate_columns=4, field_px=size, num_genes=2, num_unexpressed=0, dtype=dtype,  # type: ignore[arg-type]
        image_format="tif",
    )  # fmt: skip
    write_plates(tmp_path / "raw", spec, silent(), workers=1)
    convert(tmp_path, tmp_path / "raw")
    images = open_store(tmp_path / "store").paths.images("SYN-01__Plate1")
    array = zarr.open_array(images, mode="r")
    other = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(images)}}).result()
    assert array.shape == (4, 6, size, size) and array.dtype == dtype
    assert np.array_equal(array[:], other.read().result())
    for field, well in enumerate(("A01", "A02", "A03", "A04")):
        for channel in range(6):
            plane = tifffile.imread(tmp_path / "raw" / "SYN-01" / "Plate1" / f"{well}_s1_w{channel + 1}.tif")
            assert np.array_equal(array[field, channel], plane)


KILLS = 200 if os.environ.get("PHENOMHPC_SOAK") else 20


@pytest.mark.timeout(3600 if KILLS > 20 else 900)
def test_kills_at_random_moments_with_two_workers_leave_the_store_of_an_undisturbed_run(
    raw: Path, tmp_path: Path
) -> None:
    """All processes at once as in a power cut, or one of the workers; then the same command again."""
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    convert(calm, raw)
    program = (
        "import sys; from pathlib import Path; from tests.unit.test_convert_job import convert;"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)"
    )
    command = [sys.executable, "-c", program, str(killed), str(raw)]
    began = time.monotonic()
    subprocess.run([*command[:3], str(tmp_path / "timing"), str(raw)], check=True, timeout=120)
    whole = time.monotonic() - began
    moments = random.Random(20240607)
    kills = tries = 0
    while kills < KILLS:
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        # Start-up is half of it; the kill is to fall into the work.
        time.sleep(moments.uniform(0.4, 1.0) * whole)
        if process.poll() is None:
            workers = children(process.pid)
            if workers and moments.random() < 0.3:
                os.kill(moments.choice(workers), signal.SIGKILL)
            else:
                os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        else:  # it was quicker than the timed one: start over with an empty store, and earlier kills
            shutil.rmtree(killed)
            whole *= 0.9
        process.wait()
        tries += 1
        assert tries < 6 * KILLS, f"{kills} kills in {tries} tries"
    convert(killed, raw)
    assert finished(killed / "store") == finished(calm / "store")
    assert not verify(open_store(killed / "store"), silent()).damage


def finished(store: Path) -> dict[str, bytes]:
    """Every byte of a store but the records of its making, and the times of all files; what a killed process left
    half-written would be one too many."""
    names = {str(path.relative_to(store)): path for path in sorted(store.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith((".progress", "sums.json"))}


def children(pid: int) -> list[int]:
    """Worker processes of a process, without its resource tracker."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split() if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def test_only_what_changed_is_converted_again(raw: Path, tmp_path: Path) -> None:
    copy = tmp_path / "raw"
    subprocess.run(["cp", "-r", str(raw), str(copy)], check=True)
    convert(tmp_path, copy)
    store = open_store(tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in store.paths.plates.glob("*.zarr/images/c/*/0/0/0")}
    _, summary = convert(tmp_path, copy)
    assert summary.exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    changed = copy / "SYN-01" / "Plate2" / "A01_s1_w1.png"
    changed.write_bytes((copy / "SYN-01" / "Plate2" / "B02_s1_w1.png").read_bytes())
    convert(tmp_path, copy)
    redone = {
        path.relative_to(store.paths.plates).parts[0] for path in before if path.stat().st_mtime_ns != before[path]
    }
    assert redone == {"SYN-01__Plate2.zarr"}


def test_damaged_planes_are_set_aside_by_name_and_the_rest_is_converted(raw: Path, tmp_path: Path) -> None:
    copy = tmp_path / "raw"
    subprocess.run(["cp", "-r", str(raw), str(copy)], check=True)
    plate = copy / "SYN-01" / "Plate1"
    whole = (plate / "A01_s1_w1.png").read_bytes()
    (plate / "A01_s1_w1.png").write_bytes(whole[: len(whole) // 2])
    (plate / "A02_s1_w2.png").unlink()
    (plate / "A03_s1_w3.png").write_bytes(b"")
    _, summary = convert(tmp_path, copy, max_set_aside=0.5)
    assert summary.exit_code == SET_ASIDE
    reasons = dict(summary.set_aside)
    assert reasons.keys() == {f"SYN-01__Plate1 {well} site 1" for well in ("A01", "A02", "A03")}
    assert "truncated" in reasons["SYN-01__Plate1 A01 site 1"] and "DNA" in reasons["SYN-01__Plate1 A01 site 1"]
    fields = Snapshot.open(open_store(tmp_path / "store")).fields()
    assert fields["status"].to_list().count("ok") == 21
    assert fields.filter(fields["well"] == "A04")["field_index"][0] == 3  # positions did not move
    with pytest.raises(WorkError, match=r"more than max_set_aside=0\.01"):
        convert(tmp_path, copy)
    outcome = read_outcome(list_runs(tmp_path / "runs")[-1])
    assert outcome is not None and outcome["state"] == "failed"


def test_a_plate_whose_images_are_all_gone_is_set_aside_and_the_others_are_converted(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw, tmp_path / "raw")
    for plane in (tmp_path / "raw" / "SYN-01" / "Plate2").glob("*.png"):
        plane.write_bytes(b"")
    with pytest.raises(
        WorkError, match=r"1 plate\(s\) and 0 of 12 fields were set aside.*SYN-01__Plate2: plate .*no plane"
    ):
        convert(tmp_path, tmp_path / "raw")
    _, summary = convert(tmp_path, tmp_path / "raw", max_set_aside=0.5)
    assert summary.exit_code == SET_ASIDE
    assert [thing for thing, _ in summary.set_aside] == ["SYN-01__Plate2"]
    assert Snapshot.open(open_store(tmp_path / "store")).num_fields == 12
    for plane in (tmp_path / "raw" / "SYN-01" / "Plate1").glob("*.png"):
        plane.write_bytes(b"")
    with pytest.raises(UsageError, match="no plane of it can be read"):
        convert(tmp_path / "none", tmp_path / "raw")


def test_a_store_of_other_settings_or_channels_is_refused(raw: Path, tmp_path: Path) -> None:
    convert(tmp_path, raw)
    with pytest.raises(UsageError, match=r"has chunk_px=128, these settings would be 64"):
        convert(tmp_path, raw, chunk_px=64)
    for plane in (raw / "SYN-01").glob("Plate*/*_w6.png"):
        target = tmp_path / "five" / plane.parent.name
        target.mkdir(parents=True, exist_ok=True)
        for channel in range(1, 6):
            source = plane.with_name(plane.name.replace("_w6", f"_w{channel}"))
            (target / source.name).write_bytes(source.read_bytes())
    with pytest.raises(UsageError, match="has channels="):
        convert(tmp_path, tmp_path / "five")


def test_a_folder_that_is_no_plate_and_a_csv_without_a_column_leave_nothing(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is no plate"):
        convert(tmp_path, tmp_path / "empty")
    (tmp_path / "bad.csv").write_text("experiment_name,plate,gene\nSYN-01,1,X\n")
    with pytest.raises(UsageError, match=r"bad.csv: has no column for the well"):
        convert(tmp_path, raw, metadata=str(tmp_path / "bad.csv"))
    assert not (tmp_path / "store").exists()
    assert list_runs(tmp_path / "runs") == []


def test_two_workers_write_the_same_store(raw: Path, tmp_path: Path) -> None:
    convert(tmp_path / "one", raw)
    convert(tmp_path / "two", raw, workers=2)
    assert arrays(tmp_path / "one" / "store") == arrays(tmp_path / "two" / "store")

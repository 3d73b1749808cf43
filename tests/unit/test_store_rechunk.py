"""store rechunk: nothing but the bytes changes; damage is named; killed, it goes on."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from phenomhpc.config import RechunkConfig
from phenomhpc.errors import SET_ASIDE, UsageError, WorkError
from phenomhpc.jobs.base import ArrayPlan, Summary
from phenomhpc.jobs.folders import bound_folders
from phenomhpc.jobs.here import run_here
from phenomhpc.jobs.preflight import invisible, prepare
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, list_runs, read_events, read_record, write_record
from phenomhpc.store import Snapshot, Store, open_store
from phenomhpc.store.annotate import annotate
from phenomhpc.store.seal import seal
from phenomhpc.store.shards import Geometry, read_geometry
from phenomhpc.store.verify import verify
from tests.unit.crop_store import add_plate, new_store, pixels_of
from tests.unit.test_convert_job import children, convert, finished

SPEC = SyntheticSpec(
    experiments=1, plates_per_experiment=2, plate_rows=2, plate_columns=6, field_px=150, num_genes=4, dtype="uint16",
    image_format="tif",
)  # fmt: skip
ARCHIVE = {"cname": "zstd", "level": 1, "shuffle": "bitshuffle"}


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 8 bits through a look-up table, with estimated light and a field set aside, beside its raw plates."""
    folder = tmp_path_factory.mktemp("screen")
    write_plates(folder / "raw", SPEC, silent(), workers=1)
    plate = folder / "raw" / "SYN-01" / "Plate2"
    (plate / "A03_s1_w2.tif").write_bytes(b"II*\0")
    convert(folder, folder / "raw", dtype="uint8", illumination="estimate", max_set_aside=0.5)
    return folder


def copy(store: Path, to: Path, **settings: object) -> tuple[RunPaths, Summary]:
    values = {"store": str(store), "to": str(to), "runs": str(to.parent / "runs"), "workers": 1, "codec": ARCHIVE}
    return run_here(RechunkConfig.model_validate({**values, **settings}), command=["test"], progress=silent())


def images(store: Store, plate: str) -> np.ndarray:
    return np.asarray(zarr.open_array(store.paths.images(plate), mode="r")[:])


def small(folder: Path, *, fields: int = 11, fields_per_shard: int = 2, shards: list[int] | None = None) -> Store:
    """A sealed store of two plates of given pixels, of odd size."""
    store = new_store(folder, chunk_px=16, fields_per_shard=fields_per_shard)
    for number in range(2):
        add_plate(store, f"E__P{number}", pixels_of(number, fields, 2, 37, 51), shards=shards, set_aside=[1])
    seal(store, silent())
    return store


def test_everything_but_the_bytes_of_the_shards_is_carried_over(screen: Path, tmp_path: Path) -> None:
    source = open_store(screen / "store")
    _, summary = copy(screen / "store", tmp_path / "copy", chunk_px=64, shard_mb=2, verify=True)
    target = open_store(tmp_path / "copy")
    assert summary.exit_code == 0 and summary.text.endswith("the same as the source's")
    assert (target.spec.chunk_px, target.spec.codec) == (64, ("zstd", 1, "bitshuffle"))
    for plate in source.paths.converted_plates():
        assert np.array_equal(images(source, plate), images(target, plate))
        have, want = (json.loads((each.paths.images(plate) / "zarr.json").read_bytes()) for each in (source, target))
        assert have["attributes"] == want["attributes"] and {"lookup", "illumination"} <= have["attributes"].keys()
        assert (
            read_geometry(target.paths, plate).fields_per_shard != read_geometry(source.paths, plate).fields_per_shard
        )
        assert target.paths.facts(plate).read_bytes() == source.paths.facts(plate).read_bytes()
        assert target.paths.fields(plate).read_bytes() == source.paths.fields(plate).read_bytes()
    assert target.paths.set_aside.read_bytes() == source.paths.set_aside.read_bytes()
    assert Snapshot.open(target).digest == Snapshot.open(source).digest
    verdict = verify(target, silent())
    assert not verdict.damage and verdict.sources == 2 * 12 * 6 and not verdict.absent_sources


def table(path: Path, **genes: str) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("plate", "well", "gene"), *(("E__P0", well, gene) for well, gene in genes.items())]
        )
    return path


def test_annotations_travel_and_a_copy_can_be_annotated_itself(tmp_path: Path) -> None:
    source = small(tmp_path / "source")
    first = Snapshot.open(source).digest
    annotate(source, table(tmp_path / "a.csv", A01="TP53", A03="MYC"), silent())
    copy(tmp_path / "source", tmp_path / "copy")
    target = open_store(tmp_path / "copy")
    assert Snapshot.open(target).digest == Snapshot.open(source).digest != first
    assert Snapshot.open(target, first).num_fields == 20  # what a run is bound to is there too
    annotate(target, table(tmp_path / "b.csv", A02="OWN", A03="OWN"), silent())
    before = {path: path.stat().st_mtime_ns for path in target.paths.plates.glob("*.zarr/images/c/*/0/0/0")}
    annotate(source, table(tmp_path / "c.csv", A03="MYCN"), silent())
    copy(tmp_path / "source", tmp_path / "copy")
    genes = dict(Snapshot.open(target).fields().filter(plate="E__P0").select("well", "gene").rows())
    assert (genes["A01"], genes["A02"], genes["A03"]) == ("TP53", "OWN", "MYCN")
    assert before == {path: path.stat().st_mtime_ns for path in before}  # no pixel was copied for that
    assert not verify(target, silent()).damage


def test_a_store_that_was_copied_without_its_progress_is_a_source_too(screen: Path, tmp_path: Path) -> None:
    shutil.copytree(screen / "store", tmp_path / "store", ignore=shutil.ignore_patterns(".progress"))
    with (tmp_path / "store" / "set_aside.csv").open("a") as file:
        file.write("SYN-01__Plate1,,,,,stray,x.tif: no well: B99\n")
    source = open_store(tmp_path / "store")
    _, summary = copy(tmp_path / "store", tmp_path / "copy", codec={"compress": False})
    target = open_store(tmp_path / "copy")
    assert summary.text.endswith("the same as the source's")
    assert sorted(target.paths.set_aside.read_text().splitlines()) == sorted(
        source.paths.set_aside.read_text().splitlines()
    )
    verdict = verify(target, silent())
    assert not verdict.damage and (verdict.sources, verdict.absent_sources) == (0, 2 * 12 * 6)
    # What is annotated then is the same in both.
    wells = Snapshot.open(source).fields()["well"].to_list()
    (tmp_path / "late.csv").write_text("plate,well,gene,dose\nPlate1," + wells[0] + ",LATE,3\n")
    digests = {annotate(each, tmp_path / "late.csv", silent()).snapshot for each in (source, target)}
    assert len(digests) == 1


def test_a_source_that_was_measured_anew_is_followed_without_a_copy_of_its_pixels(tmp_path: Path) -> None:
    source = small(tmp_path / "source")
    copy(tmp_path / "source", tmp_path / "copy", shard_mb=1)
    target = open_store(tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in target.paths.plates.glob("*.zarr/images/c/*/0/0/0")}
    path = source.paths.record("E__P0", 2)
    record = read_record(path)
    assert record is not None
    write_record(path, replace(record, rows=tuple({**row, "qc_nuclei": 7} for row in record.rows)))
    digest = seal(source, silent()).digest
    copy(tmp_path / "source", tmp_path / "copy", shard_mb=1)
    assert Snapshot.open(target).digest == digest
    assert Snapshot.open(target).fields()["qc_nuclei"].drop_nulls().to_list() == [7, 7]
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_copy_of_a_copy_of_anything_is_the_original(screen: Path, tmp_path: Path) -> None:
    copy(screen / "store", tmp_path / "one", chunk_px=64, shard_mb=3, codec={"compress": False})
    spec = open_store(screen / "store").spec
    back = {"codec": dict(zip(("cname", "level", "shuffle"), spec.codec or (), strict=True)), "shard_mb": 1}
    copy(tmp_path / "one", tmp_path / "two", chunk_px=spec.chunk_px, **back)
    names = ("plates", "snapshots", "set_aside.csv", "dataset.json")
    first, last = (
        {name: data for name, data in finished(folder).items() if name.startswith(names)}
        for folder in (screen / "store", tmp_path / "two")
    )
    assert first == last


FLIPS = 2000 if os.environ.get("PHENOMHPC_SOAK") else 15


def test_one_flipped_bit_in_the_source_is_named_and_never_copied_as_good(tmp_path: Path) -> None:
    source = small(tmp_path / "source")
    copy(tmp_path / "source", tmp_path / "good")
    good = finished(tmp_path / "good")
    rng = random.Random(20241126)
    shards = sorted(source.paths.plates.glob("*.zarr/images/c/*/0/0/0"))
    named = 0
    for flip in range(FLIPS):
        path = rng.choice(shards)
        whole, status = path.read_bytes(), path.stat()
        data, at = bytearray(whole), rng.randrange(len(whole))
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
        target = tmp_path / f"copy-{flip}"
        plate, shard = path.parts[-7].removesuffix(".zarr"), path.parts[-4]
        try:
            copy(tmp_path / "source", target)
        except WorkError as error:
            assert f"plate {plate}, shard {shard}" in str(error) and "\n" not in str(error)
            assert len(list(target.glob("plates/*.zarr/images/c/*/0/0/0"))) == len(shards) - 1
            named += 1
        else:  # a bit that no pixel depends on
            assert finished(target) == good
        path.write_bytes(whole)
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
        copy(tmp_path / "source", target)
        assert finished(target) == good
        shutil.rmtree(target)
    assert named > FLIPS / 2


def test_a_damaged_field_is_named_the_rest_is_copied_and_a_repair_is_gone_on_with(tmp_path: Path) -> None:
    source = small(tmp_path / "source")
    path = source.paths.shard("E__P0", 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes(200) + whole[240:])
    with pytest.raises(
        WorkError, match=r"plate E__P0, shard 2, field 4 \(A05 site 1\): .*store verify .*what is sound was copied"
    ):
        copy(tmp_path / "source", tmp_path / "copy")
    failed = [event for event in read_events(list_runs(tmp_path / "runs")[-1]) if event["event"] == "failed"]
    assert [event["class"] for event in failed] == ["bad_input"]
    before = {file: file.stat().st_ino for file in (tmp_path / "copy").glob("plates/*.zarr/images/c/*/0/0/0")}
    assert len(before) == 11
    path.write_bytes(whole)
    copy(tmp_path / "source", tmp_path / "copy")
    assert before == {file: file.stat().st_ino for file in before}
    assert Snapshot.open(open_store(tmp_path / "copy")).digest == Snapshot.open(source).digest


def test_a_shard_of_the_source_that_was_written_anew_is_copied_again_and_no_other(tmp_path: Path) -> None:
    source = small(tmp_path / "source")
    copy(tmp_path / "source", tmp_path / "copy", shard_mb=1)  # all fields of a plate in one shard
    shards = {
        plate: (tmp_path / "copy" / "plates" / f"{plate}.zarr" / "images/c/0/0/0/0") for plate in ("E__P0", "E__P1")
    }
    before = {plate: path.stat().st_ino for plate, path in shards.items()}
    add_plate(source, "E__P1", pixels_of(77, 11, 2, 37, 51), shards=[3])
    seal(source, silent())
    copy(tmp_path / "source", tmp_path / "copy", shard_mb=1)
    assert {plate for plate, path in shards.items() if path.stat().st_ino != before[plate]} == {"E__P1"}
    target = open_store(tmp_path / "copy")
    assert np.array_equal(images(target, "E__P1"), images(source, "E__P1"))
    assert Snapshot.open(target).digest == Snapshot.open(source).digest


def test_of_a_source_that_is_not_whole_shards_of_whole_fields_are_copied_and_the_rest_later(tmp_path: Path) -> None:
    source = small(tmp_path / "source", shards=[0, 1, 3])
    _, summary = copy(tmp_path / "source", tmp_path / "same")
    assert summary.exit_code == 0 and "the same as the source's" in summary.text
    one_shard = {"shard_mb": 1}  # holds all 11 fields of a plate
    with pytest.raises(UsageError, match="no shard of a copy could be made of what it holds yet"):
        copy(tmp_path / "source", tmp_path / "copy", **one_shard)
    add_plate(source, "E__P0", pixels_of(0, 11, 2, 37, 51), shards=[2])
    add_plate(source, "E__P1", pixels_of(1, 11, 2, 37, 51), shards=[2, 4, 5], set_aside=[1])
    _, summary = copy(tmp_path / "source", tmp_path / "copy", **one_shard)
    assert summary.exit_code == SET_ASIDE
    assert summary.set_aside == (("E__P0", "8 field(s) wait for others of their shard to be converted"),)
    target = open_store(tmp_path / "copy")
    assert not verify(target, silent()).damage and Snapshot.open(target).num_fields == 10
    add_plate(source, "E__P0", pixels_of(0, 11, 2, 37, 51), shards=[4, 5])
    seal(source, silent())
    _, summary = copy(tmp_path / "source", tmp_path / "copy", **one_shard)
    assert summary.exit_code == 0 and "the same as the source's" in summary.text
    assert np.array_equal(images(target, "E__P0"), images(source, "E__P0"))


def test_a_place_that_cannot_be_one_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    small(tmp_path / "source")
    small(tmp_path / "other")
    (tmp_path / "link").symlink_to(tmp_path / "source")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    before = sorted(tmp_path.rglob("*"))
    for to, said in {
        "source": "is the store itself",
        "link": "is the store itself",
        "source/inside": "one of the two lies in the other",
        ".": "one of the two lies in the other|is no store and is not empty",
        "other": "is a store of its own, no copy of",
        "thesis": "is no store and is not empty",
        "thesis/thesis.tex": "is a file",
    }.items():
        with pytest.raises(UsageError, match=said):
            copy(tmp_path / "source", tmp_path / to, runs=str(tmp_path / "runs"))
    with pytest.raises(UsageError, match="does not exist"):
        copy(tmp_path / "absent", tmp_path / "copy")
    (tmp_path / "runs").rmdir()
    assert sorted(tmp_path.rglob("*")) == before
    copy(tmp_path / "source", tmp_path / "copy")
    with pytest.raises(UsageError, match=r"has codec=zstd,1,bitshuffle, this copy would be lz4,5,bitshuffle"):
        copy(tmp_path / "source", tmp_path / "copy", codec={})
    with pytest.raises(UsageError, match=r"has fields_per_shard=2, this copy would be"):
        copy(tmp_path / "source", tmp_path / "copy", shard_mb=5)
    with pytest.raises(UsageError, match=r"is a copy of .*source, not a copy of .*other; .*say so in origin.json"):
        copy(tmp_path / "other", tmp_path / "copy")


def test_a_submission_knows_its_tasks_its_space_and_what_a_node_does_not_see(tmp_path: Path) -> None:
    small(tmp_path / "source")
    values = {"store": str(tmp_path / "source"), "to": str(tmp_path / "copy"), "runs": str(tmp_path / "runs")}
    config = RechunkConfig.model_validate({**values, "codec": {"compress": False}})
    run = RunPaths(tmp_path / "runs" / "r")
    prepared = prepare(config, None, run)
    assert isinstance(prepared.plan, ArrayPlan) and len(prepared.plan.units) == 12
    assert prepared.space is not None and prepared.space.folder == tmp_path / "copy"
    assert prepared.space.output_bytes == 22 * 2 * 37 * 51 and not (tmp_path / "copy").exists()
    assert {tmp_path / "source", tmp_path / "copy"} <= set(bound_folders(config, run))
    (tmp_path / "source").rename(tmp_path / "moved")
    assert len(invisible(config, run)) == 1


def test_a_large_shard_takes_the_memory_of_a_field(tmp_path: Path) -> None:
    """48 fields of 2 MiB in one shard, in and out: 96 MiB raw."""
    store = new_store(tmp_path / "source", channels=4, chunk_px=128, fields_per_shard=48)
    add_plate(store, "P", np.broadcast_to(pixels_of(0, 1, 4, 724, 724), (48, 4, 724, 724)))
    seal(store, silent())
    program = (
        "import resource, sys; from pathlib import Path; from tests.unit.test_store_rechunk import copy, peak_growth\n"
        "copy(Path(sys.argv[1]), Path(sys.argv[2]))\n"  # imports, and what comes with them
        "print(peak_growth(Path(sys.argv[1]), Path(sys.argv[3])))"
    )
    words = [str(tmp_path / name) for name in ("source", "warm", "copy")]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) < 24 * 2**20


def peak_growth(store: Path, to: Path) -> int:
    """Bytes by which copying lifts the resident memory of this process above what it is now."""

    def high() -> int:
        return int(
            next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1]
        )

    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    before = high()
    copy(store, to)
    return (high() - before) * 1024


KILLS = 100 if os.environ.get("PHENOMHPC_SOAK") else 5


@pytest.mark.timeout(3600 if KILLS > 5 else 900)
def test_kills_at_random_moments_leave_the_copy_of_an_undisturbed_run(tmp_path: Path) -> None:
    """All processes at once as in a power cut, or one of the workers; then the same command again."""
    store = new_store(tmp_path / "source", channels=3, chunk_px=64, fields_per_shard=3)
    for number in range(2):
        add_plate(store, f"E__P{number}", pixels_of(number, 20, 3, 301, 301), set_aside=[5])
    seal(store, silent())
    settings = {"chunk_px": 32, "codec": {"cname": "zstd", "level": 9, "shuffle": "bitshuffle"}}
    copy(tmp_path / "source", tmp_path / "calm", **settings)
    program = (
        "import sys; from pathlib import Path; from tests.unit.test_store_rechunk import copy;"
        f"copy(Path(sys.argv[1]), Path(sys.argv[2]), workers=2, **{settings!r})"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "source")]
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "timing")], check=True, timeout=120)
    whole = time.monotonic() - began
    killed, moments = tmp_path / "killed", random.Random(20241126)
    kills = tries = 0
    while kills < KILLS:
        process = subprocess.Popen([*command, str(killed)], start_new_session=True, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.5, 1.0) * whole)
        if process.poll() is None:
            workers = children(process.pid)
            if workers and moments.random() < 0.3:
                os.kill(moments.choice(workers), signal.SIGKILL)
            else:
                os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        else:  # quicker than the timed one: start over with no copy, and earlier kills
            shutil.rmtree(killed, ignore_errors=True)
            whole *= 0.9
        process.wait()
        tries += 1
        assert tries < 6 * KILLS, f"{kills} kills in {tries} tries"
    copy(tmp_path / "source", killed, workers=2, **settings)
    assert finished(killed) == finished(tmp_path / "calm")
    assert not verify(open_store(killed), silent()).damage


def test_a_full_disk_is_one_line_and_with_more_room_the_same_command_finishes(tmp_path: Path) -> None:
    unshare = ["unshare", "--mount", "--propagation", "private"]
    if os.geteuid() or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here (root is needed)")
    small(tmp_path / "source", fields=40)
    copy(tmp_path / "source", tmp_path / "calm", codec={"compress": False}, chunk_px=64)
    (tmp_path / "disk").mkdir()
    again = (
        f"{sys.executable} -m phenomhpc store rechunk source --to disk/copy --runs runs codec=raw chunk_px=64 workers=1 2>&1;"
        ' echo "exit code $?"\n'
    )
    text = (
        f"mount -t tmpfs -o size=400k none disk\n{again}find disk -name '*.tmp-*'\nmount -o remount,size=64m disk\n{again}"
        "cp -a disk/copy out\n"
    )
    done = subprocess.run(
        [*unshare, "bash", "-c", text], capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if line.startswith(("phenomhpc:", "exit code"))]
    assert "cannot be written (No space left on device)" in said[0] and "make room and run again to go on" in said[0]
    assert said[1:] == ["exit code 1", "exit code 0"] and ".tmp-" not in done.stdout and "Traceback" not in done.stdout
    assert "were complete already" in done.stdout
    assert finished(tmp_path / "out") == finished(tmp_path / "calm")


def test_the_record_of_a_copy_names_the_shards_it_came_from(tmp_path: Path) -> None:
    source = small(tmp_path / "source", fields_per_shard=3)
    copy(tmp_path / "source", tmp_path / "copy", shard_mb=1)
    record = read_record(open_store(tmp_path / "copy").paths.record("E__P0", 0))
    assert record is not None
    stats = [source.paths.shard("E__P0", shard).stat() for shard in range(4)]
    assert record.pending == tuple(
        (f"plates/E__P0.zarr/images/c/{shard}/0/0/0", stat.st_size, stat.st_mtime_ns)
        for shard, stat in enumerate(stats)
    )
    assert record.set_aside == (("E__P0 A02 site 1", "w1: torn"),)


def test_a_plate_whose_conversion_has_only_begun_is_passed_over(tmp_path: Path) -> None:
    source = small(tmp_path / "source")
    source.paths.images("E__P2").mkdir(parents=True)
    _, summary = copy(tmp_path / "source", tmp_path / "copy")
    assert summary.exit_code == 0 and "2 plate(s)" in summary.text


def test_the_number_of_fields_of_a_shard_follows_the_first_plate(tmp_path: Path) -> None:
    source = new_store(tmp_path / "source", channels=1, chunk_px=128, fields_per_shard=2)
    add_plate(source, "B", pixels_of(0, 9, 1, 512, 512))
    seal(source, silent())
    copy(tmp_path / "source", tmp_path / "copy", shard_mb=1)
    add_plate(source, "A", pixels_of(1, 9, 1, 256, 256))  # another size, and now the first
    seal(source, silent())
    copy(tmp_path / "source", tmp_path / "copy", shard_mb=1)
    target = open_store(tmp_path / "copy")
    geometries: list[Geometry] = [read_geometry(target.paths, plate) for plate in ("A", "B")]
    assert [geometry.fields_per_shard for geometry in geometries] == [4, 4]
    assert Snapshot.open(target).digest == Snapshot.open(source).digest

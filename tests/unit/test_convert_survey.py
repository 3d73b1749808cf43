"""Many plates: surveyed in a stage of their own, one bad index keeping nobody back, and a second pass over a growing screen."""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from phenomhpc.config import ConvertConfig
from phenomhpc.errors import SET_ASIDE, UsageError
from phenomhpc.jobs.base import Summary
from phenomhpc.jobs.convert import plan
from phenomhpc.jobs.here import run_here
from phenomhpc.jobs.status import progress_of
from phenomhpc.jobs.survey import SURVEYED_HERE
from phenomhpc.plates import Channel, Field, Plane, Plate, Well, decode_plane, find_plates, plane_bytes, read_plate
from phenomhpc.plates.declared import dump_plate, load_plate
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.plates.synthetic.layouts import write_layout
from phenomhpc.plates.synthetic.writing import encode
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, read_manifest
from phenomhpc.store import Snapshot, open_store
from tests.unit.test_cli import phenomhpc
from tests.unit.test_convert_job import arrays

MANY = SURVEYED_HERE + 3


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    spec = SyntheticSpec(
        experiments=1, plates_per_experiment=1, plate_rows=1, plate_columns=4, field_px=48, num_genes=1, num_unexpressed=0
    )  # fmt: skip
    write_plates(folder, spec, silent(), workers=1)
    return folder / "SYN-01" / "Plate1"


def screen(folder: Path, one: Path, numbers: range) -> Path:
    for number in numbers:
        plate = folder / "EXP" / f"Plate{number}"
        plate.mkdir(parents=True)
        for image in one.iterdir():
            os.link(image, plate / image.name)
    return folder


def settings(folder: Path, raw: Path, **more: object) -> ConvertConfig:
    values = {"plates": (str(raw),), "store": str(folder / "store"), "runs": str(folder / "runs"), "workers": 1}
    return ConvertConfig.model_validate({**values, **more})


def convert(config: ConvertConfig) -> tuple[RunPaths, Summary]:
    return run_here(config, command=["test"], progress=silent())


def kinds(paths: RunPaths) -> list[tuple[str, int]]:
    """Kind and number of the units of each attempt."""
    manifests = [read_manifest(paths.attempt(number).manifest) for number in range(1, paths.last_attempt() + 1)]
    return [(manifest[0].kind, len(manifest)) if manifest else ("", 0) for manifest in manifests]


def test_many_plates_are_surveyed_in_a_stage_of_their_own_and_the_store_is_that_of_few(
    one: Path, tmp_path: Path
) -> None:
    raw = screen(tmp_path / "raw", one, range(1, MANY + 1))
    config = settings(tmp_path, raw)
    before = plan(config, RunPaths(tmp_path / "runs" / "none"))
    assert (len(before.units), before.noun, before.following) == (MANY, "plates", "their shards")
    assert before.output_bytes and not (tmp_path / "store").exists() and not (tmp_path / "runs").exists()
    paths, summary = convert(config)
    assert kinds(paths) == [("survey", MANY), ("convert", MANY)] and summary.exit_code == 0
    assert progress_of(paths) == f"{paths.id}: {MANY} of {MANY} units"
    for plate in sorted((raw / "EXP").iterdir()):
        convert(settings(tmp_path / "few", plate))
    assert arrays(tmp_path / "store") == arrays(tmp_path / "few" / "store")
    digests = {Snapshot.open(open_store(tmp_path / name / "store")).digest for name in ("", "few")}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("other", "said"), [({"chunk_px": 64}, "has chunk_px=128"), ({"dtype": "uint8"}, "holds uint16")]
)
def test_settings_that_do_not_fit_the_store_are_refused_before_any_of_many_plates_is_looked_at(
    other: dict[str, object], said: str, one: Path, tmp_path: Path
) -> None:
    folder = write_layout(deep(read_plate(find_plates([str(one)])[0]), tmp_path / "deep"), tmp_path / "first", "rxrx-1")
    convert(settings(tmp_path, folder))
    raw = screen(tmp_path / "raw", folder, range(1, MANY + 1))
    with pytest.raises(UsageError, match=said):
        plan(settings(tmp_path, raw, **other), RunPaths(tmp_path / "runs" / "none"))


def deep(plate: Plate, folder: Path) -> Plate:
    """The same plate with 16 bits."""
    folder.mkdir()
    fields = []
    for field in plate.fields:
        planes = []
        for channel, (plane,) in enumerate(field.planes):
            assert plane is not None
            path = folder / f"{field.index}-{channel}.png"
            path.write_bytes(encode(decode_plane(plane, plane_bytes(plane)).astype("uint16"), "png"))
            planes.append((Plane(path),))
        fields.append(replace(field, planes=tuple(planes)))
    return replace(plate, fields=tuple(fields))


def test_one_bad_plate_of_many_is_set_aside_by_name(one: Path, tmp_path: Path) -> None:
    raw = screen(tmp_path / "raw", one, range(1, MANY + 1))
    bad = raw / "EXP" / "Plate4"
    for image in bad.iterdir():
        image.unlink()
        image.write_bytes(b"no image")
    (raw / "EXP" / "Plate5" / "A01_s1_w6.png").unlink()
    odd = sorted(path for path in (raw / "EXP" / "Plate7").iterdir() if "_w6" in path.name)
    for image in odd:  # a plate of five channels does not fit a store of six
        image.unlink()
    paths, summary = convert(settings(tmp_path, raw, max_set_aside=0.5))
    assert summary.exit_code == SET_ASIDE
    things = dict(summary.set_aside)
    assert set(things) == {"EXP__Plate4", "EXP__Plate7", "EXP__Plate5 A01 site 1"}
    assert "no plane of it can be read" in things["EXP__Plate4"] and "channels=" in things["EXP__Plate7"]
    assert len(Snapshot.open(open_store(tmp_path / "store")).plates) == MANY - 2
    assert kinds(paths) == [("survey", MANY), ("convert", MANY - 2)]


def test_a_second_pass_takes_up_new_plates_only(one: Path, tmp_path: Path) -> None:
    raw = screen(tmp_path / "raw", one, range(1, MANY + 1))
    convert(settings(tmp_path, raw))
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "plates").rglob("c/*/0/0/0")}
    screen(raw, one, range(MANY + 1, MANY + 3))
    paths, _ = convert(settings(tmp_path, raw, new=True))
    assert kinds(paths) == [("convert", 2)]
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    changed = raw / "EXP" / "Plate2" / "A02_s1_w1.png"
    other = (raw / "EXP" / "Plate2" / "A03_s1_w1.png").read_bytes()
    changed.unlink()
    changed.write_bytes(other)
    paths, _ = convert(settings(tmp_path, raw))
    assert kinds(paths) == [("survey", MANY + 2), ("convert", 1)]
    _, summary = convert(settings(tmp_path, raw, new=True))
    assert "nothing is new" in summary.text


def test_a_plate_that_is_half_converted_is_not_passed_over_as_whole(one: Path, tmp_path: Path) -> None:
    raw = screen(tmp_path / "raw", one, range(1, 3))
    convert(settings(tmp_path, raw))
    paths = open_store(tmp_path / "store").paths
    assert paths.is_converted("EXP__Plate1")
    paths.record("EXP__Plate1", 0).unlink()
    assert not paths.is_converted("EXP__Plate1") and not paths.is_converted("EXP__Plate9")
    shutil.rmtree(paths.progress)  # a finished store is copied without it
    assert paths.is_converted("EXP__Plate1")


def test_a_declared_plate_comes_back_as_it_was() -> None:
    stack = (Plane(Path("/raw/a.tif")), None, Plane(Path("/raw/p.zarr/0"), (0, 1, 2)))
    fields = (
        Field(index=0, well=Well(row=30, column=48), site=2, z="max", planes=(stack, (None,), ()), pixel_size_um=0.65),
        Field(index=1, well=Well(row=1, column=1), site=1, planes=((None,),) * 3, problem=("hostile", "leaves it")),
    )
    plate = Plate(
        key="E__P", experiment="E", plate="P", measurement="m", rows=32, columns=48, root=Path("/raw"), layout="x",
        channels=(Channel(index=0, name="DNA", excitation_nm=405.0),), fields=fields, projection="max",
        metadata={"A01": {"gene": "TP53"}}, illumination=("{}", None, None), strays=(("b.tif", "no well"),),
    )  # fmt: skip
    assert load_plate(dump_plate(plate)) == plate


def test_what_is_not_usable_is_listed_in_the_store_and_told_by_reason(one: Path, tmp_path: Path) -> None:
    raw = screen(tmp_path / "raw", one, range(1, 8))
    for number in range(1, 8):
        for image in (raw / "EXP" / f"Plate{number}").glob("A0[1-3]_s1_w2*"):
            image.unlink()
            image.write_bytes(b"")
    write_layout(read_plate(find_plates([str(one)])[0]), tmp_path / "raw", "cellvoyager")
    index = next((tmp_path / "raw").rglob("*.mlf"))
    lines = index.read_text().splitlines()
    index.write_text("\n".join([*lines[:-1], lines[1].replace('Row="1"', 'Row="99"'), lines[-1]]))
    words = ["convert", "--plates", "raw", "--store", "store", "max_set_aside=1", "workers=1"]
    done = phenomhpc(*words, cwd=tmp_path)
    assert done.returncode == SET_ASIDE, done.stderr
    for words_said in ("Set aside, by reason", "ER: ... empty file", "22 set aside"):
        assert words_said in done.stdout, done.stdout
    assert "1 image(s) have no place" in done.stdout and "set_aside.csv lists what is not usable" in done.stdout
    with (tmp_path / "store" / "set_aside.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 22 and [row["status"] for row in rows].count("unreadable") == 21
    assert rows[0] == {
        "plate": "EXP__Plate1", "well": "A01", "site": "1", "timepoint": "0", "z": "", "status": "unreadable",
        "reason": "ER: A01_s1_w2.png: empty file",
    }  # fmt: skip
    assert rows[-1]["status"] == "stray" and "lies outside" in rows[-1]["reason"]

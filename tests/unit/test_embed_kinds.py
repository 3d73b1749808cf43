"""Embedding by blocks and by crops, and the proof that nothing is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from phenomhpc.embed.folder import EmbeddingsPaths, read_binding
from phenomhpc.embed.table import feature_columns, read_embeddings
from phenomhpc.errors import UsageError, WorkError
from phenomhpc.jobs.embed import check_embeddings
from phenomhpc.progress import silent
from tests.unit.embed_store import Screen, make_screen

LIMIT_S = 300


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    return make_screen(tmp_path_factory.mktemp("screen"), plates_per_experiment=2)


@pytest.fixture(scope="module")
def whole(screen: Screen) -> Path:
    """Every block in one pass."""
    out = screen.root / "whole"
    screen.embed(out=str(out), blocks=["all"])
    return out


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(whole, tmp_path / "copy")
    yield tmp_path / "copy"


def _features(folder: Path) -> np.ndarray:
    frame = read_embeddings(folder)
    return frame.select(feature_columns(frame)).to_numpy()


def test_blocks_of_one_pass_are_those_of_a_pass_each(screen: Screen, whole: Path, tmp_path: Path) -> None:
    blocks = EmbeddingsPaths(whole).blocks()
    assert {number: paths.root for number, paths in blocks.items()} == {1: whole / "blocks" / "01", 2: whole}
    screen.embed(out=str(tmp_path / "one"), block=1, baselines=[])
    assert EmbeddingsPaths(tmp_path / "one").blocks() == {1: EmbeddingsPaths(tmp_path / "one")}
    for table in (tmp_path / "one").glob("*.parquet"):
        assert table.read_bytes() == (whole / "blocks" / "01" / table.name).read_bytes()
    assert not np.allclose(_features(whole), _features(blocks[1].root))
    bound, below = read_binding(blocks[2]), read_binding(blocks[1])
    assert bound is not None and below is not None
    assert (bound.block, bound.blocks, below.block, below.blocks) == (2, (1,), 1, ())
    assert below.checkpoint_digest == bound.checkpoint_digest
    with pytest.raises(UsageError, match=r"holds embeddings of blocks=\(1,\), asked for \(\)"):
        screen.embed(out=str(whole))
    with pytest.raises(UsageError, match="block=3: the encoder has blocks 1 to 2"):
        screen.embed(out=str(tmp_path / "three"), blocks=[3])


def test_the_proof_tells_of_every_well_and_of_no_more(screen: Screen, whole: Path) -> None:
    proof = json.loads((whole / "complete.json").read_bytes())
    assert (proof["num_plates"], proof["num_wells"], proof["num_embedded"], proof["missing"]) == (2, 16, 16, [])
    assert proof["num_tables"] == 2 * 4  # two blocks, two baselines
    summary = check_embeddings(screen.embed_config(out=str(whole), blocks=["all"]), silent())
    # Whoever checks need not know the batch and the seed that they were made with.
    other = screen.embed_config(out=str(whole), blocks=["all"], batch=5, seed=9)
    assert check_embeddings(other, silent()) == summary
    assert summary.exit_code == 0 and "each of 16 wells of 2 plates once in 8 tables" in summary.text


def _rewrite(table: Path, folder: Path, change: pl.DataFrame) -> None:
    """Another table with a record that vouches for it: what only looking at the wells finds."""
    from google_crc32c import value as crc32c

    from phenomhpc.runs import read_record, write_record

    change.write_parquet(table)
    paths = EmbeddingsPaths(folder)
    record = read_record(paths.record(table.stem))
    assert record is not None
    content, name = table.read_bytes(), str(table.relative_to(folder))
    outputs = [(n, len(content), crc32c(content)) if n == name else (n, size, crc) for n, size, crc in record.outputs]
    write_record(paths.record(table.stem), replace(record, outputs=tuple(outputs)))


@pytest.mark.parametrize(
    "case", ["absent", "byte", "twice", "lost", "swapped", "nan", "null", "stray", "record", "block"]
)
def test_whatever_is_not_as_it_must_be_is_named(screen: Screen, copied: Path, case: str) -> None:
    table = sorted(copied.glob("*.parquet"))[0]
    frame = pl.read_parquet(table)
    if case == "absent":
        table.unlink()
    elif case == "byte":
        content = bytearray(table.read_bytes())
        content[len(content) // 2] ^= 1
        table.write_bytes(content)
    elif case == "twice":
        _rewrite(table, copied, pl.concat([frame.head(1), frame]))
    elif case == "lost":
        _rewrite(table, copied, frame.tail(-1))
    elif case == "swapped":
        _rewrite(table, copied, frame.reverse())
    elif case == "nan":
        _rewrite(table, copied, frame.with_columns(feature_0003=pl.lit(float("nan"), dtype=pl.Float32)))
    elif case == "null":
        _rewrite(table, copied, frame.with_columns(feature_0003=pl.lit(None, dtype=pl.Float32)))
    elif case == "stray":
        frame.write_parquet(copied / "SYN-09__Plate9.parquet")
    elif case == "record":
        EmbeddingsPaths(copied).record(table.stem).unlink()
    elif case == "block":
        (copied / "blocks" / "01" / table.name).write_bytes(b"")
    with pytest.raises(WorkError, match="SYN-09__Plate9" if case == "stray" else table.stem) as error:
        check_embeddings(screen.embed_config(out=str(copied), blocks=["all"]), silent())
    assert "\n" not in str(error.value)


def test_check_on_the_command_line_says_it_by_its_exit_code(screen: Screen, copied: Path) -> None:
    words = [
        "embed",
        "--store",
        screen.store,
        "--checkpoint",
        screen.checkpoint.root,
        "--out",
        copied,
        "--blocks",
        "all",
    ]

    def check(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "phenomhpc", *map(str, words), "--check", *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment)

    done = check()
    assert done.returncode == 0 and "complete: each of 16 wells" in done.stdout, done.stderr
    sorted(copied.glob("*.parquet"))[0].unlink()
    broken = check()
    assert broken.returncode == 1 and "is not done" in broken.stderr and broken.stderr.count("\n") == 1


def test_crops_by_themselves_average_to_their_wells(screen: Screen, tmp_path: Path) -> None:
    out = tmp_path / "emb"
    screen.embed(out=str(out), level="crop", baselines=[])
    wells, crops = read_embeddings(out), read_embeddings(out / "crops")
    assert set(wells["level"]) == {"well"} and set(crops["level"]) == {"crop"} and crops.height == 4 * wells.height
    assert crops.select("plate", "well", "field_index", "crop_y", "crop_x").n_unique() == crops.height
    assert {"site", "gene", "is_control", "status"} <= set(crops.columns)
    names = feature_columns(wells)
    means = crops.group_by("plate", "well", maintain_order=True).agg(pl.col(names).cast(pl.Float64).mean())
    np.testing.assert_allclose(means.select(names).to_numpy(), wells.select(names).to_numpy(), rtol=1e-5, atol=1e-6)
    assert set(crops["crop_y"]) == set(crops["crop_x"]) == {3, 35}
    config = screen.embed_config(out=str(out), level="crop", baselines=[])
    assert check_embeddings(config, silent()).exit_code == 0
    (out / "crops" / f"{wells['plate'][0]}.parquet").unlink()
    with pytest.raises(WorkError, match="is not done"):
        check_embeddings(config, silent())


def test_random_crops_are_a_function_of_seed_plate_and_field(screen: Screen, tmp_path: Path) -> None:
    def crops(name: str, **settings: object) -> pl.DataFrame:
        given = {"level": "crop", "baselines": [], "crops": "random", **settings}
        screen.embed(out=str(tmp_path / name), **given)
        return read_embeddings(tmp_path / name / "crops")

    place = ["plate", "well", "field_index", "crop_y", "crop_x"]
    six, four = crops("six", crops_per_field=6), crops("four")
    assert six.height == 6 * 16 and four.height == 4 * 16
    assert six["crop_y"].max() <= 70 - 32 and four.select(place).n_unique() > 4 * 12
    # The first four of six are the four; another seed draws others.
    first = six.group_by("plate", "well", maintain_order=True).head(4)
    assert first.select(place).equals(four.select(place))
    assert not crops("other", seed=1).select(place).equals(four.select(place))
    a, b = (four.filter(pl.col("plate") == plate).select(place[3:]) for plate in sorted(set(four["plate"])))
    assert not a.equals(b)
    with pytest.raises(UsageError, match="placing"):
        screen.embed(out=str(tmp_path / "four"), level="crop", baselines=[])
    with pytest.raises(UsageError, match="crops_per_field=6: of random crops"):
        screen.embed(out=str(tmp_path / "none"), crops_per_field=6)

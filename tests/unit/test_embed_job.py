"""The embed job on a real store and a real checkpoint: complete, bound, resumable."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from phenomhpc.embed.folder import EmbeddingsPaths, read_binding
from phenomhpc.embed.table import feature_columns, read_embeddings
from phenomhpc.errors import UsageError, WorkError
from phenomhpc.jobs.embed import plan
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths
from phenomhpc.store import Snapshot, open_store
from tests.unit import train_store
from tests.unit.embed_store import MODEL, SPEC, Screen, make_screen, pretrain, run

KILL_LIMIT_S = 60


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    return make_screen(tmp_path_factory.mktemp("screen"))


@pytest.fixture(scope="module")
def embedded(screen: Screen) -> Path:
    """An undisturbed run's embeddings."""
    return screen.embed()[0].embeddings


def _files(folder: Path) -> dict[str, bytes]:
    """Tables and bindings, but not the records, which tell the time."""
    found = (path for path in folder.rglob("*") if path.is_file() and ".progress" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_every_well_is_embedded_once_with_its_metadata(screen: Screen, embedded: Path) -> None:
    frame = read_embeddings(embedded)
    assert frame.select("plate", "well").n_unique() == frame.height == 3 * 8
    assert set(frame["status"]) == {"ok"} and set(frame["num_crops"]) == {4}
    assert len(feature_columns(frame)) == 16 and np.isfinite(frame.select(feature_columns(frame)).to_numpy()).all()
    assert frame.filter("is_control").height == 3 * 2
    assert {"experiment", "gene", "perturbation", "row", "column", "level"} <= set(frame.columns)


def test_the_folder_says_what_it_holds_and_the_baselines_stand_beside_it(screen: Screen, embedded: Path) -> None:
    paths = EmbeddingsPaths(embedded)
    binding = read_binding(paths)
    assert binding is not None and (binding.source, binding.block, binding.dtype) == ("checkpoint", 2, "fp32")
    assert Path(binding.checkpoint).parent == screen.checkpoint.checkpoints
    assert paths.baselines() == ["intensity", "untrained"]
    trained = read_embeddings(embedded)
    for name, width in (("untrained", 16), ("intensity", 6 * 11)):
        baseline = read_embeddings(paths.baseline(name).root)
        assert baseline.select("plate", "well").equals(trained.select("plate", "well"))
        assert len(feature_columns(baseline)) == width
        other = read_binding(paths.baseline(name))
        assert other is not None and other.source == name and other.checkpoint_digest != binding.checkpoint_digest
    untrained = read_embeddings(paths.baseline("untrained").root)
    assert not trained.select(feature_columns(trained)).equals(untrained.select(feature_columns(untrained)))


def test_done_plates_are_left_alone_and_lost_ones_come_back_the_same(screen: Screen, tmp_path: Path) -> None:
    out = tmp_path / "emb"
    screen.embed(out=str(out))
    whole = _files(out)
    plates = sorted(path.stem for path in out.glob("*.parquet"))
    before = (out / f"{plates[0]}.parquet").stat().st_mtime_ns
    (out / f"{plates[1]}.parquet").unlink()
    config = screen.embed_config(out=str(out))
    assert [unit.plate for unit in plan(config, RunPaths(tmp_path)).units] == [plates[1]]
    screen.embed(out=str(out))
    assert _files(out) == whole
    assert (out / f"{plates[0]}.parquet").stat().st_mtime_ns == before


def test_killed_in_the_middle_and_run_again_it_ends_with_the_same_bytes(
    screen: Screen, embedded: Path, tmp_path: Path
) -> None:
    out = tmp_path / "emb"
    words = [f"--store={screen.store}", f"--checkpoint={screen.checkpoint.root}", f"--out={out}"]
    settings = ["batch=16", "device=cpu"]
    command = [sys.executable, "-m", "phenomhpc", "embed", *words, f"--runs={tmp_path / 'runs'}", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + KILL_LIMIT_S
    while not list(out.glob(".progress/*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    records = list(out.glob(".progress/*.json"))
    assert 1 <= len(records) < 3
    done = {path.stem: path.stat().st_mtime_ns for path in records}
    screen.embed(out=str(out))
    assert _files(out) == _files(embedded)
    assert all((out / ".progress" / f"{plate}.json").stat().st_mtime_ns == since for plate, since in done.items())


def test_another_checkpoint_never_mixes_with_the_first(screen: Screen, embedded: Path, tmp_path: Path) -> None:
    other = pretrain(screen.store, tmp_path / "runs", seed=1)
    before = _files(embedded)
    with pytest.raises(UsageError, match="checkpoint_digest") as error:
        screen.embed(out=str(embedded), checkpoint=str(other.root))
    assert "\n" not in str(error.value)
    assert _files(embedded) == before


def test_a_store_without_a_channel_of_the_checkpoint_is_refused(screen: Screen, tmp_path: Path) -> None:
    train_store.write_plate(tmp_path / "raw")
    store = train_store.convert(tmp_path / "raw", tmp_path / "store", tmp_path / "runs")
    with pytest.raises(UsageError, match="has no channel"):
        screen.embed(store=str(store), out=str(tmp_path / "emb"))
    assert not (tmp_path / "emb").exists()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"store": "nowhere"}, "nowhere"),
        ({"checkpoint": "nothing"}, "nothing"),
        ({"block": 3}, "block=3"),
        ({"snapshot": "0123"}, "0123"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(
    screen: Screen, tmp_path: Path, settings: dict[str, str], named: str
) -> None:
    with pytest.raises(UsageError, match=named) as error:
        screen.embed(out=str(tmp_path / "emb"), runs=str(tmp_path / "runs"), **settings)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "emb").exists() and list((tmp_path / "runs").iterdir()) == []


def test_wells_without_pixels_are_there_with_the_reason(tmp_path: Path) -> None:
    screen = make_screen(tmp_path, plates_per_experiment=1, missing_plane_share=0.05, seed=5)
    with pytest.raises(WorkError, match="max_set_aside"):
        screen.embed(max_set_aside=0.0)
    paths, summary = screen.embed(max_set_aside=1.0)
    frame = read_embeddings(paths.embeddings, missing=True)
    lost = frame.filter(pl.col("status") != "ok")
    assert 0 < lost.height < frame.height == 8
    assert set(lost["status"]) == {"missing_plane"} and set(lost["num_crops"]) == {0}
    assert lost["feature_0000"].null_count() == lost.height
    assert summary.exit_code == 3 and len(summary.set_aside) == lost.height


def test_new_takes_only_what_is_absent_of_a_grown_store(tmp_path: Path) -> None:
    screen = make_screen(tmp_path, plates_per_experiment=1)
    out = tmp_path / "emb"
    screen.embed(out=str(out))
    first = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    write_plates(tmp_path / "more", SyntheticSpec(**{**SPEC, "plates_per_experiment": 2}), silent(), workers=1)
    shutil.rmtree(tmp_path / "more" / "SYN-01" / "Plate1")
    runs = str(tmp_path / "runs")
    run("convert", plates=[str(tmp_path / "more")], store=str(screen.store), runs=runs, workers=1)
    with pytest.raises(UsageError, match="--new"):
        screen.embed(out=str(out))
    screen.embed(out=str(out), new=True)
    assert read_embeddings(out).height == 2 * 8
    assert {path: path.stat().st_mtime_ns for path in first} == first


def test_a_dry_run_reads_store_and_checkpoint_without_torch_and_makes_nothing(screen: Screen, tmp_path: Path) -> None:
    words = ["submit", "embed", "--store", str(screen.store), "--checkpoint", str(screen.checkpoint.root), "--dry-run"]
    code = (
        f"import sys\nsys.argv = ['phenomhpc', *{words!r}, '--runs', 'runs']\nfrom phenomhpc.cli.main import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    bare = {**os.environ, "PATH": str(tmp_path)}  # no Slurm
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=KILL_LIMIT_S
    )
    assert done.stderr.strip() == "False", done.stderr
    assert "# embed: 3 plates: 3 task(s) in 1 array(s) of Slurm" in done.stdout and "of output" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def channel_agnostic(screen: Screen, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run of two steps of a channel-agnostic model on the screen."""
    optim = {"name": "adamw", "peak_lr": 1e-3, "global_batch": 4, "micro_batch": 4, "steps": 2}
    runs = tmp_path_factory.mktemp("agnostic")
    settings = {"store": [str(screen.store)], "runs": str(runs), "device": "cpu", "threads_per_rank": 1}
    return run("pretrain", **settings, model={**MODEL, "kind": "ca_mae_vit"}, optim=optim)[0]


def test_a_channel_agnostic_model_embeds_any_of_its_channels_in_any_order(
    screen: Screen, channel_agnostic: RunPaths, tmp_path: Path
) -> None:
    known = Snapshot.open(open_store(str(screen.store))).channels
    asked = [known[4], known[1]]

    def vectors(name: str, **settings: Any) -> np.ndarray:
        out = tmp_path / name
        screen.embed(checkpoint=str(channel_agnostic.root), out=str(out), baselines=[], **settings)
        binding = read_binding(EmbeddingsPaths(out))
        assert binding is not None and binding.channels == tuple(settings.get("channels", known))
        frame = read_embeddings(out)
        features = frame.select(feature_columns(frame)).to_numpy()
        assert features.shape[1] == binding.num_features
        return features

    everything = vectors("all")
    one_way = vectors("one", channels=asked, pooling="channelwise")
    other_way = vectors("other", channels=asked[::-1], pooling="channelwise")
    assert everything.shape[1] == 16 and one_way.shape[1] == 32
    np.testing.assert_allclose(one_way[:, :16], other_way[:, 16:], rtol=1e-4, atol=1e-5)
    assert not np.allclose(one_way[:, :16], one_way[:, 16:])
    assert not np.allclose(vectors("mean", channels=asked), everything)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": ["nothing"]}, r"channels: nothing is none of those that .* was trained on"),
        ({"channels": ["FIRST", "FIRST"]}, r"channels: .* is named twice"),
        ({"channels": ["FIRST"], "checkpoint": None}, r"channels: the model of .* takes exactly"),
        ({"pooling": "channelwise", "checkpoint": None}, r"pooling=channelwise: this encoder has mean, class"),
    ],
)
def test_channels_that_cannot_be_embedded_are_refused(
    screen: Screen, channel_agnostic: RunPaths, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    first = Snapshot.open(open_store(str(screen.store))).channels[0]
    given = {"checkpoint": str(channel_agnostic.root), **settings}
    if given["checkpoint"] is None:  # the usual model
        del given["checkpoint"]
    if "channels" in given:
        given["channels"] = [first if name == "FIRST" else name for name in given["channels"]]
    with pytest.raises(UsageError, match=message):
        screen.embed(out=str(tmp_path / "emb"), **given)
    assert not (tmp_path / "emb").exists()

"""The linear probe: what it finds by arithmetic, and that it moves nothing of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phenomhpc.config import PretrainConfig
from phenomhpc.crops.choice import Holdout
from phenomhpc.crops.corpus import Corpus
from phenomhpc.crops.probing import probe_wells
from phenomhpc.errors import UsageError
from phenomhpc.jobs.here import run_here
from phenomhpc.maps.probe import linear_probe
from phenomhpc.models.checkpoint import load_encoder, newest_committed
from phenomhpc.models.standardise import standardise
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths
from phenomhpc.train.data import CropSource
from phenomhpc.train.launch import launch
from phenomhpc.train.loop import train
from phenomhpc.train.probe import ENCODER, INTENSITY, UNTRAINED, read_probes, wells_of
from tests.unit.embed_store import SPEC
from tests.unit.test_train_loop import final, new_run, start
from tests.unit.train_store import convert, settings, write_plate

EVAL = {"data__holdout": {"plates": ["*Plate3"]}, "eval__probe_every_steps": 8, "eval__probe_crops": 3}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three plates of eight wells, perturbed alike."""
    folder = tmp_path_factory.mktemp("probe")
    write_plates(folder / "raw", SyntheticSpec(**SPEC), silent())
    return convert(folder / "raw", folder / "store", folder / "runs")


def probed(store: Path, runs: Path, **changes: Any) -> PretrainConfig:
    return settings(store, runs, **(EVAL | changes))


@pytest.fixture(scope="module")
def one_rank(store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    config = probed(store, tmp_path_factory.mktemp("one"))
    paths = new_run(config)
    train(config, start(paths))
    return paths


def test_a_probe_finds_what_is_linear_and_nothing_in_noise() -> None:
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b", "c"] * 40)
    centres = {"a": [4.0, 0.0], "b": [0.0, 4.0], "c": [-4.0, -4.0]}
    told = np.array([centres[label] for label in labels]) + rng.normal(size=(120, 2))
    features = np.hstack([told, rng.normal(size=(120, 30)), np.full((120, 1), 7.0)])
    found = linear_probe(features[:60], labels[:60].tolist(), features[60:], labels[60:].tolist())
    assert (found.num_classes, found.num_train, found.num_test) == (3, 60, 60)
    assert found.accuracy > 0.95 and found.ci_low <= found.accuracy <= found.ci_high
    noise = rng.normal(size=(120, 40))
    nothing = linear_probe(noise[:60], labels[:60].tolist(), noise[60:], labels[60:].tolist())
    assert nothing.ci_low < nothing.chance < nothing.ci_high < found.ci_low
    # Units of the features are nobody's choice.
    scaled = linear_probe(features[:60] * 1e6, labels[:60].tolist(), features[60:] * 1e6, labels[60:].tolist())
    assert scaled.accuracy == found.accuracy
    for labels_of, says in ((["a"] * 60, "1 class"), (["a", "b"] * 30, "no training well has the class c")):
        with pytest.raises(UsageError, match=says):
            linear_probe(features[:60], labels_of, features[60:], labels[60:].tolist())


def test_wells_are_of_both_sides_and_as_many_as_asked(store: Path) -> None:
    corpus = Corpus.open([str(store)])
    held = Holdout(plates=("*Plate3",))
    wells = probe_wells(corpus, held, where=None, wells=512, crops=3, crop_px=32)
    fields = {row["field_no"]: row for row in corpus.fields().to_dicts()}
    for label, is_test, numbers in zip(wells.label, wells.is_test, wells.field_no, strict=True):
        rows = [fields[number] for number in numbers.tolist()]
        assert {row["perturbation"] for row in rows} == {label}
        assert len({(row["plate"], row["well"]) for row in rows}) == 1
        assert rows[0]["plate"].endswith("Plate3") == is_test
    for label in set(wells.label.tolist()):
        sides = wells.is_test[wells.label == label]
        assert 2 <= (~sides).sum() <= 8 and 1 <= sides.sum() <= 8
    assert (wells.y >= 0).all() and (wells.y <= 70 - 32).all() and len(np.unique(wells.x)) > 5
    fewer = probe_wells(corpus, held, where=None, wells=18, crops=1, crop_px=32)
    assert len(fewer) <= 18 and set(fewer.label.tolist()) < set(wells.label.tolist())
    again = probe_wells(corpus, held, where=None, wells=512, crops=3, crop_px=32)
    assert np.array_equal(again.y, wells.y) and np.array_equal(again.field_no, wells.field_no)


def test_training_is_bit_for_bit_what_it_is_without(store: Path, tmp_path: Path, one_rank: RunPaths) -> None:
    plain = probed(store, tmp_path, eval__probe_every_steps=None)
    without = new_run(plain)
    train(plain, start(without))
    assert final(without) == final(one_rank)
    assert not without.probe.exists()


def test_baselines_come_once_and_the_encoder_on_its_schedule(store: Path, one_rank: RunPaths) -> None:
    rows = read_probes(one_rank.probe).to_pylist()
    expected = [(0, INTENSITY), (0, UNTRAINED), (8, ENCODER), (12, ENCODER)]
    assert [(row["step"], row["source"]) for row in rows] == expected
    assert all(0 <= row["ci_low"] <= row["accuracy"] <= row["ci_high"] <= 1 for row in rows)
    assert len({(row["num_train"], row["num_test"], row["num_classes"]) for row in rows}) == 1


def test_the_last_accuracy_is_that_of_the_checkpoint_by_hand(store: Path, one_rank: RunPaths) -> None:
    folder = newest_committed(one_rank.checkpoints, pytest.fail)
    assert folder is not None
    model, meta = load_encoder(folder)
    config = probed(store, one_rank.root.parent)
    source = CropSource.open(config)
    wells = wells_of(config, source)
    assert wells is not None
    features = np.zeros((len(wells), 32))
    with source.corpus.reader("keep") as reader, torch.no_grad():
        for well in range(len(wells)):
            pixels = np.zeros((3, source.num_channels, 32, 32), source.corpus.dtype)
            for crop in range(3):
                at = well, crop
                reader.read(int(wells.field_no[at]), int(wells.y[at]), int(wells.x[at]), pixels[crop])
            features[well] = model.encode(standardise(torch.from_numpy(pixels), torch.tensor(meta.scale))).mean(dim=0)
    test = wells.is_test
    found = linear_probe(features[~test], wells.label[~test].tolist(), features[test], wells.label[test].tolist())
    assert read_probes(one_rank.probe).to_pylist()[-1]["accuracy"] == found.accuracy


def test_ranks_share_the_wells(store: Path, tmp_path: Path, one_rank: RunPaths) -> None:
    """Untrained and of the pixels, so that all that differs is who embeds which well."""
    config = probed(store, tmp_path, ranks_per_node=3, optim__global_batch=9, optim__steps=1)
    paths = new_run(config)
    launch(config, start(paths))
    baselines = [read_probes(run.probe).to_pylist()[:2] for run in (paths, one_rank)]
    for mine, theirs in zip(*baselines, strict=True):
        assert all(mine[name] == theirs[name] for name in ("source", "accuracy", "num_train", "num_test"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data__holdout": {}}, "eval.probe_every_steps=8: nothing is held out to test on; give data.holdout"),
        ({"eval__probe_wells": 4}, "4 wells are too few for 2 perturbations; give more"),
        (
            {"data__holdout": {"wells": ["*Plate3/A*01"]}},
            r"[01] perturbation\(s\) have 2 wells to train on and 1 held out",
        ),
    ],
)
def test_too_little_to_probe_is_refused_before_anything_is_made(
    store: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        run_here(probed(store, tmp_path / "runs", **changes), command=["pretrain"], progress=silent())
    assert "\n" not in str(caught.value) and not any((tmp_path / "runs").iterdir())


def test_a_store_without_labels_is_refused(tmp_path: Path) -> None:
    write_plate(tmp_path / "raw")
    plain = convert(tmp_path / "raw", tmp_path / "store", tmp_path / "runs")
    config = probed(plain, tmp_path / "other", data__holdout={"wells": ["A01"]})
    with pytest.raises(UsageError, match="no well has a perturbation; store annotate adds labels"):
        run_here(config, command=["pretrain"], progress=silent())


def test_the_page_has_a_table_of_the_probes(store: Path, tmp_path: Path) -> None:
    paths, _ = run_here(probed(store, tmp_path), command=["pretrain"], progress=silent())
    page = paths.report.read_text()
    assert "Linear probe" in page and "untrained encoder" in page and "guessing gets" in page

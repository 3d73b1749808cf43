"""Features of many wells: mapped where they are large, the same numbers, no float64 of all of them in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from phenomhpc.config import EvaluateConfig
from phenomhpc.errors import WorkError
from phenomhpc.jobs.evaluation import benchmarks, held, rows, scores
from phenomhpc.jobs.evaluation.annotations import Annotations, read_annotations
from phenomhpc.jobs.evaluation.batches import between_batches, look
from phenomhpc.jobs.evaluation.benchmarks import Subject, measure
from phenomhpc.jobs.evaluation.held import held_array, pieces_of
from phenomhpc.jobs.evaluation.mapping import aligned_features, profiles_of
from phenomhpc.jobs.evaluation.wells import Wells, read_wells
from phenomhpc.maps import align, random_features
from tests.unit.evaluation_data import wells, write_annotations, write_embeddings


def _config(folder: Path, **settings: object) -> EvaluateConfig:
    flags = {"embeddings": str(folder / "emb"), "annotations": str(folder / "annotations"), "runs": str(folder)}
    return EvaluateConfig.model_validate({**flags, **settings})


def test_a_large_array_lies_in_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not isinstance(held_array(10, 3, np.float32, tmp_path), np.memmap)
    monkeypatch.setattr(held, "HELD_BYTES", 100)
    array = held_array(10, 3, np.float32, tmp_path)
    assert isinstance(array, np.memmap) and array.shape == (10, 3) and array.dtype == np.float32
    array[:] = np.arange(30).reshape(10, 3)
    pieces = list(pieces_of(array, np.array([1, 2, 9])))
    assert len(pieces) == 1 and pieces[0][1].dtype == np.float64
    np.testing.assert_array_equal(pieces[0][1], [[3, 4, 5], [6, 7, 8], [27, 28, 29]])
    assert not any(tmp_path.iterdir())


def test_a_disk_without_room_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"no room on the disk of .*144115.*GB.*free as much, or set runs= to"):
        held_array(1 << 34, 1 << 20, np.float64, tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("align_by", ["tvn", "none"])
def test_mapped_features_give_the_same_scores(tmp_path: Path, align_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_annotations(tmp_path / "annotations")
    write_embeddings(tmp_path / "emb")
    config = _config(tmp_path, align=align_by, bootstrap=20)
    annotations = read_annotations(Path(config.annotations))

    def found() -> scores.Evaluation:
        return scores.evaluate(config, Path(config.embeddings), annotations, lambda name: None)

    in_memory = found()
    monkeypatch.setattr(held, "HELD_BYTES", 0)
    mapped = found()
    assert isinstance(mapped.wells.features, np.memmap) and not isinstance(in_memory.wells.features, np.memmap)
    assert rows.score_rows(mapped) == rows.score_rows(in_memory)
    np.testing.assert_array_equal(mapped.encoder.profiles, in_memory.encoder.profiles)
    assert mapped.seen.explained == in_memory.seen.explained


def test_features_stay_as_wide_as_the_table_has_them(tmp_path: Path) -> None:
    frame = wells(0.9)
    names = [name for name in frame.columns if name.startswith("feature_")]
    for dtype, expected in (
        (pl.Float32, np.float32),
        (pl.Int16, np.float32),
        (pl.Float64, np.float64),
        (pl.Int64, np.float64),
    ):
        frame.with_columns(pl.col(names).cast(dtype)).write_parquet(tmp_path / "emb")
        features = read_wells(tmp_path / "emb", _config(tmp_path)).features
        assert features.dtype == expected
        np.testing.assert_array_equal(features, frame.select(pl.col(names).cast(dtype)).to_numpy())


def test_random_features_are_the_same_wherever_they_are_written() -> None:
    out = np.zeros((9000, 3))
    assert random_features(9000, 3, seed=5, out=out) is out
    np.testing.assert_array_equal(out, random_features(9000, 3, seed=5))
    np.testing.assert_array_equal(out[:100], random_features(100, 3, seed=5))


def test_no_float64_of_all_wells_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, num, dim = np.random.default_rng(0), 30_000, 320
    control = np.arange(num) % 20 == 0
    label = ["" if is_control else f"g{row % 400}" for row, is_control in enumerate(control)]
    many = Wells(
        features=generator.standard_normal((num, dim), dtype=np.float32),
        batch=[f"plate{row // 1000:02d}" for row in range(num)], is_control=control, label=label, noun="gene",
        compound=[""] * num, plate=[""] * num, experiment=[""] * num, batch_named=[""] * num,
    )  # fmt: skip
    annotations = Annotations(
        relationships={"A": [("g1", "g2"), ("g3", "g5")]}, arms={}, complexes={}, targets=[], files=(), set_aside=(),
        unexpressed=frozenset(f"g{number}" for number in range(0, 400, 7)),
    )  # fmt: skip
    config = _config(tmp_path, bootstrap=0)
    monkeypatch.setattr(held, "HELD_BYTES", 0)
    monkeypatch.setattr(benchmarks, "retrieved_rows", lambda rows, names, seed: rows[:900])
    tracemalloc.start()
    aligned = aligned_features(many, config)
    profiles, labels = profiles_of(many, aligned)
    found = measure(
        Subject(
            wells=many, aligned=aligned, profiles=profiles, labels=labels, annotations=annotations, complexes={}, config=config
        )
    )  # fmt: skip
    look(many, aligned, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.consistency is not None and found.magnitude is not None
    assert peak < 8 * num * dim
    expected = align("tvn", many.features, many.batch, control)
    np.testing.assert_array_equal(aligned, expected)
    np.testing.assert_allclose(
        profiles[labels.index("g7")], expected[[name == "g7" for name in label]].mean(axis=0), atol=1e-12
    )
    controls, codes = expected[control], np.array(many.batch)[control]
    means = np.array([controls[codes == code].mean(axis=0) for code in codes])
    share = ((means - controls.mean(axis=0)) ** 2).sum(axis=0) / ((controls - controls.mean(axis=0)) ** 2).sum(axis=0)
    explained = between_batches(aligned, many.batch, control)
    assert explained is not None and abs(explained - share.mean()) < 1e-12

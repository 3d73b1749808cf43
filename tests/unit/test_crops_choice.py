"""Which fields are dealt and how often: several stores, weights, subsets, what is held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from phenomhpc.config import resolve
from phenomhpc.crops import Sampler
from phenomhpc.crops.choice import Holdout, choose
from phenomhpc.crops.corpus import Corpus
from phenomhpc.errors import UsageError
from phenomhpc.jobs.here import run_here
from phenomhpc.models.checkpoint import newest_committed, read_meta
from phenomhpc.progress import silent
from phenomhpc.store.seal import seal
from phenomhpc.store.snapshot import TABLE_DTYPE
from tests.unit.crop_store import add_plate, new_store, pixels_of
from tests.unit.train_store import convert, settings, write_plate

SIDE = 24


def table_of(number: int) -> NDArray[np.void]:
    table = np.zeros(number, TABLE_DTYPE)
    table["field"], table["height"], table["width"] = np.arange(number), 64, 64
    return table


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[NDArray[Any]]]:
    """Two stores: plates P0 and P1 of five fields (the first set aside), and Q of four; the pixels of each plate."""
    folder = tmp_path_factory.mktemp("two")
    pixels = [pixels_of(seed, 5 if seed < 2 else 4, 2, SIDE, SIDE) for seed in range(3)]
    metadata = {"A02": {"perturbation_type": "control"}, "A03": {"perturbation_type": "gene", "perturbation": "TP53"}}
    first, second = new_store(folder / "a"), new_store(folder / "b", chunk_px=8)
    for name, content in zip(("P0", "P1"), pixels, strict=False):
        add_plate(first, name, content, set_aside=[0], metadata=metadata)
    add_plate(second, "Q", pixels[2], metadata=metadata)
    for store in (first, second):
        seal(store, silent())
    return [str(folder / "a"), str(folder / "b")], pixels


def test_several_stores_are_one_list_of_fields(two: tuple[list[str], list[NDArray[Any]]]) -> None:
    names, pixels = two
    corpus = Corpus.open(names)
    assert corpus.starts.tolist() == [0, 8, 12] and len(corpus.tables) == 12
    assert corpus.digest.count(",") == 1 and Corpus.open(names, corpus.digest).digest == corpus.digest
    expected = [*pixels[0][1:], *pixels[1][1:], *pixels[2]]
    out = np.empty((2, 9, 7), np.uint8)
    with corpus.reader("keep") as reader:
        for field_no, field in enumerate(expected):
            reader.read(field_no, 3, 5, out)
            assert np.array_equal(out, field[:, 3:12, 5:12])
    fields = corpus.fields()
    assert sorted(fields["field_no"].drop_nulls().to_list()) == list(range(12)) and fields["field_no"].null_count() == 2
    assert fields.filter(fields["plate"] == "Q")["field_no"].to_list() == [8, 9, 10, 11]


def test_stores_that_do_not_fit_are_refused(two: tuple[list[str], list[NDArray[Any]]], tmp_path: Path) -> None:
    names, _ = two
    for what, options in (("channels", {"channels": 3}), ("dtype", {"dtype": "uint16"})):
        other = new_store(tmp_path / what, **options)  # type: ignore[arg-type]
        add_plate(other, "R", pixels_of(0, 2, options.get("channels", 2), SIDE, SIDE, options.get("dtype", "uint8")))  # type: ignore[arg-type]
        seal(other, silent())
        with pytest.raises(UsageError, match=rf"{what}: has {what} .*, .*a has .*; convert them alike"):
            Corpus.open([names[0], str(tmp_path / what)])
    with pytest.raises(UsageError, match=r"1 digest.s. for 2 store.s.; give one for each"):
        Corpus.open(names, Corpus.open(names[:1]).digest)
    with pytest.raises(UsageError, match="store: none is given"):
        Corpus.open([])


@given(
    counts=st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0])), min_size=1, max_size=4),
    seed=st.integers(0, 5),
)
def test_a_field_comes_as_often_as_it_weighs(counts: list[tuple[int, float]], seed: int) -> None:
    number = sum(count for count, _ in counts)
    sampler = Sampler(table_of(number), seed=seed, crop_px=32, groups=counts)
    epochs = 8
    dealt = np.bincount(sampler.visits(np.arange(epochs * sampler.visits_per_epoch)).field_no, minlength=number)
    start = 0
    for count, weight in counts:
        mine = dealt[start : start + count]
        assert mine.max() - mine.min() <= 1 and mine.sum() == epochs * max(1, round(count * weight))
        start += count
    # Any part by itself is the same: nothing is remembered.
    some = np.arange(3, 3 + sampler.visits_per_epoch)
    assert np.array_equal(sampler.visits(some).field_no, sampler.visits(np.arange(some[-1] + 1)).field_no[some])


def test_a_smaller_subset_lies_within_a_larger_one_whatever_the_seed() -> None:
    chosen = {}
    for size in (10, 40, 100):
        for seed in (0, 7):
            sampler = Sampler(table_of(100), seed=seed, crop_px=32, subset=size)
            epoch = sampler.visits(np.arange(2 * size)).field_no
            assert sorted(epoch[:size]) == sorted(epoch[size:]) and len(set(epoch)) == size
            chosen[size, seed] = set(epoch.tolist())
        assert chosen[size, 0] == chosen[size, 7]
    assert chosen[10, 0] < chosen[40, 0] < chosen[100, 0]
    assert chosen[10, 0] != set(range(10))


def test_weights_by_store_and_by_value(two: tuple[list[str], list[NDArray[Any]]]) -> None:
    names, _ = two
    corpus = Corpus.open(names)

    def per_epoch(**asked: Any) -> dict[int, float]:
        chosen = choose(corpus, **asked)
        sampler = Sampler(
            corpus.tables, seed=0, crop_px=8, eligible=chosen.rows, groups=chosen.groups, subset=chosen.subset
        )
        visits = sampler.visits(np.arange(4 * sampler.visits_per_epoch)).field_no
        return {
            int(field): float(count) / 4 for field, count in zip(*np.unique(visits, return_counts=True), strict=True)
        }

    assert per_epoch() == dict.fromkeys(range(12), 1.0)
    assert per_epoch(store_weights=(1, 1)) == dict.fromkeys(range(12), 1.0)
    assert per_epoch(store_weights=(0.5, 2)) == dict.fromkeys(range(8), 0.5) | dict.fromkeys(range(8, 12), 2.0)
    by_type = per_epoch(weights={"perturbation_type": {"control": 3, "gene": 0}}, store_weights=(1, 2))
    # P0 and P1: A01 is set aside, A02 control, A03 gene; Q: A01, A02 control, A03 gene, A04.
    assert by_type == {0: 3, 2: 1, 3: 1, 4: 3, 6: 1, 7: 1, 8: 2, 9: 6, 11: 2}
    part = per_epoch(subset=6, weights={"plate": {"Q": 2}})
    assert set(part) == set(per_epoch(subset=6)) and all(
        times == (2 if field >= 8 else 1) for field, times in part.items()
    )


def test_what_is_held_out_is_never_dealt_and_stays_held_out(two: tuple[list[str], list[NDArray[Any]]]) -> None:
    names, _ = two
    corpus = Corpus.open(names)

    def held(holdout: Holdout, of: Corpus = corpus) -> set[int]:
        out = choose(of, holdout=holdout, held_out=True).rows
        rest = choose(of, holdout=holdout).rows
        assert out is not None and rest is not None
        assert sorted([*out, *rest]) == list(range(len(of.tables)))
        return set(out.tolist())

    assert held(Holdout(plates=("P*",))) == set(range(8))
    assert held(Holdout(wells=("A02",))) == {0, 4, 9} and held(Holdout(wells=("Q/A0[12]",))) == {8, 9}
    shares = [held(Holdout(share=share)) for share in (0.2, 0.5, 0.9)]
    assert shares[0] <= shares[1] <= shares[2] and 0 < len(shares[1]) < 12
    alone = Corpus.open(names[1:])
    assert {number + 8 for number in held(Holdout(share=0.5), alone)} == {number for number in shares[1] if number >= 8}
    by_plate = held(Holdout(share=0.5, by="plate"))
    assert all(set(plate) <= by_plate or not set(plate) & by_plate for plate in (range(4), range(4, 8), range(8, 12)))
    chosen = choose(corpus, holdout=Holdout(plates=("P0",)), where='well != "A03"').rows
    assert chosen is not None and chosen.tolist() == [4, 6, 7, 8, 9, 11]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"holdout": Holdout(plates=("X*",))}, r"data.holdout.plates: X\* fits none of the stores' plates"),
        ({"holdout": Holdout(wells=("Z01",))}, "data.holdout.wells: Z01 fits none"),
        ({"subset": 13}, "data.subset=13: only 12 field"),
        ({"store_weights": (1, 2, 3)}, "3 weight.s. for 2 store.s."),
        ({"weights": {"gne": {"a": 1}}}, "data.weights.gne: no such column"),
        ({"weights": {"perturbation_type": {"controls": 1}}}, "controls is no value of it; there are control, gene"),
    ],
)
def test_what_names_nothing_is_refused(
    two: tuple[list[str], list[NDArray[Any]]], asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        choose(Corpus.open(two[0]), **asked)


def test_the_command_line_says_weights_and_holdouts() -> None:
    holdout = ["data.holdout.share=0.02", "data.holdout.plates=[A__1]"]
    words = ["data.weights.perturbation_type.control=0.1", "data.subset=12e6", *holdout]
    data = resolve("pretrain", {"store": ["s"]}, words).config.data  # type: ignore[union-attr]
    assert data.weights == {"perturbation_type": {"control": 0.1}} and data.subset == 12e6
    assert data.holdout.share == 0.02 and data.holdout.plates == ("A__1",)


def test_training_on_two_stores_goes_on_from_its_snapshots(tmp_path: Path) -> None:
    stores = []
    for number in range(2):
        write_plate(tmp_path / f"raw{number}", seed=number, name=f"Plate{number}")
        stores.append(str(convert(tmp_path / f"raw{number}", tmp_path / f"store{number}", tmp_path / "runs")))
    config = settings(tmp_path, tmp_path / "runs", store=stores, optim__steps=4, data__store_weights=[1, 2])
    paths, summary = run_here(config, command=["pretrain"], progress=silent(), fresh=True)
    folder = newest_committed(paths.checkpoints, print)
    assert folder is not None and read_meta(folder).snapshot == Corpus.open(stores).digest
    assert "4 steps" in summary.text and paths.report.is_file()

"""Which checkpoints stay."""

from __future__ import annotations

import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from phenomhpc.train.retention import column, note_scores, read_scores, retained

STEPS = st.lists(st.integers(0, 400), unique=True)
KEEP = st.integers(1, 6)
EVERY = st.none() | st.integers(1, 60)
VALUES = st.floats(-10, 10) | st.just(math.nan)
BEST = st.none() | st.dictionaries(st.integers(0, 400), VALUES, max_size=30)


@given(STEPS, KEEP, EVERY, BEST)
def test_the_newest_the_round_ones_and_the_best_stay_and_nothing_else(
    steps: list[int], keep: int, every: int | None, best: dict[int, float] | None
) -> None:
    stay = retained(steps, keep=keep, keep_every=every, best=best)
    newest = sorted(steps, reverse=True)[:keep]
    assert set(newest) <= stay <= set(steps)
    scored = {step: value for step, value in (best or {}).items() if step in steps and not math.isnan(value)}
    for step in steps:
        is_best = step in scored and all(
            scored[step] < value or (scored[step] == value and step >= other) for other, value in scored.items()
        )
        assert (step in stay) == (step in newest or (every is not None and step % every == 0) or is_best)


@given(STEPS, KEEP, EVERY, BEST)
def test_what_was_let_go_is_not_missed_when_more_come(
    steps: list[int], keep: int, every: int | None, best: dict[int, float] | None
) -> None:
    """Deleting as they come leaves what deleting at the end does, so a kill in between changes nothing (scores known)."""
    there: set[int] = set()
    for step in sorted(steps):
        there = retained([*there, step], keep=keep, keep_every=every, best=best)
    assert there == retained(steps, keep=keep, keep_every=every, best=best)


def test_scores_are_noted_beside_the_checkpoints_and_added_to(tmp_path: Path) -> None:
    assert read_scores(tmp_path) == {}
    note_scores(tmp_path, 20, {"val_loss": 0.5}, token="t")
    note_scores(tmp_path, 10, {"val_loss": 0.75, "probe": 0.25}, token="t")
    note_scores(tmp_path, 20, {"probe": 0.5}, token="t")
    scores = read_scores(tmp_path)
    assert scores == {10: {"val_loss": 0.75, "probe": 0.25}, 20: {"val_loss": 0.5, "probe": 0.5}}
    assert column(scores, "probe", highest=True) == {10: -0.25, 20: -0.5}
    assert column(scores, "val_loss", highest=False) == {10: 0.75, 20: 0.5}
    assert column(scores, "elsewhere", highest=True) == {}

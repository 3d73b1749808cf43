"""What maps/ refuses: the thing, its value and the way out in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from phenomhpc.errors import UsageError
from phenomhpc.maps import (
    aggregate_blocks,
    arm_correction,
    compare_recalls,
    complex_coherence,
    compound_gene_retrieval,
    fit_log_linear,
    perturbation_consistency,
    perturbation_magnitude,
    proximity_bias,
    recalls_by_arm,
    relationship_recall,
    replicate_retrieval,
    unique_pairs,
)

NAMES = [f"g{number:02d}" for number in range(30)]
MAP = np.random.default_rng(0).normal(size=(30, 6))
WELLS = np.random.default_rng(1).normal(size=(60, 6))
LABELS = [f"g{number // 3:02d}" for number in range(60)]  # g00 .. g19, three wells of each
CONTROL = np.arange(60) >= 50
PAIRS = [("g00", "g01")]
ARMS = {name: "1p" if number < 15 else "2q" for number, name in enumerate(NAMES)}
SOME = np.zeros(60, np.bool_)


def with_zeros(row: int, of: np.ndarray = MAP) -> np.ndarray:
    features = of.copy()
    features[row] = 0.0
    return features


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: relationship_recall(with_zeros(4), NAMES, PAIRS),
            "the profile of g04 (row 4) is all zero, so it has no direction; leave it out",
        ),
        (
            lambda: compare_recalls(MAP, NAMES, with_zeros(5), NAMES, {"a": PAIRS}),
            "the profile of g05 (row 5) is all zero",
        ),
        (lambda: proximity_bias(with_zeros(6), NAMES, ARMS), "the profile of g06 (row 6) is all zero"),
        (lambda: complex_coherence(with_zeros(7), NAMES, {"a": NAMES[:10]}), "the profile of g07 (row 7) is all zero"),
        (lambda: replicate_retrieval(with_zeros(8, WELLS), LABELS), "the profile of g02 (row 8) is all zero"),
        (
            lambda: perturbation_consistency(with_zeros(10, WELLS), LABELS, ["g00"]),
            "the profile of g03 (row 10) is all zero",
        ),
        (
            lambda: compound_gene_retrieval(MAP, NAMES, with_zeros(9), NAMES, PAIRS),
            "the profile of g09 (row 9) is all zero",
        ),
        (
            lambda: perturbation_magnitude(WELLS, LABELS, CONTROL, ["g00"], is_left_out=SOME[1:]),
            "is_left_out: bool of shape (59,); give one true or false per row, 60",
        ),
        (
            lambda: perturbation_magnitude(WELLS, LABELS, np.arange(60), ["g00"]),
            "is_control: int64 of shape (60,); give one true or false per row, 60",
        ),
        (
            lambda: perturbation_magnitude(WELLS, LABELS, SOME, ["g00"]),
            "magnitude: 0 controls; mark at least 2 wells as such",
        ),
        (
            lambda: aggregate_blocks([(np.arange(57), WELLS[:57])], LABELS, SOME),
            "no block has a row of g19 (1 of 20 labels); give every row once",
        ),
        (lambda: aggregate_blocks([], LABELS, SOME[:1]), "is_left_out: bool of shape (1,)"),
        (
            lambda: perturbation_consistency(WELLS, LABELS, LABELS),
            "consistency: no perturbation beside the null ones has 2 replicates or more; give wells, not means of them",
        ),
        (
            lambda: replicate_retrieval(MAP, ["a"] * 30),
            "replicate retrieval: all rows are a; give those of others to tell it from",
        ),
        (
            lambda: replicate_retrieval(WELLS, LABELS, null_size=0),
            "null_size=0: random rank lists of the null, at least 1",
        ),
        (
            lambda: compound_gene_retrieval(MAP, NAMES, MAP, NAMES, PAIRS, ks=(0,)),
            "ks=0: how many genes count as the first, each at least 1, such as 10,100",
        ),
        (lambda: compound_gene_retrieval(MAP, NAMES, MAP, NAMES, PAIRS, ks=()), "ks=none"),
        (
            lambda: compound_gene_retrieval(MAP, NAMES, MAP, NAMES, [("g00", None)]),
            "targets: number 0 is ('g00', None); each is two names",
        ),
        (
            lambda: unique_pairs([("a", "b"), ("a", "")]),
            "pairs: number 1 is ('a', ''); each is two names, such as ('TP53', 'MDM2'): mend or drop it",
        ),
        (lambda: unique_pairs([("a", float("nan"))]), "pairs: number 0 is ('a', nan)"),
        (lambda: unique_pairs(["ab"]), "pairs: number 0 is 'ab'"),
        (lambda: unique_pairs([("a", "b", "c")]), "pairs: number 0 is ('a', 'b', 'c')"),
        (lambda: relationship_recall(MAP, NAMES, [("g00", None)]), "pairs: number 0 is ('g00', None)"),
        (lambda: recalls_by_arm(MAP, NAMES, {"HuMAP": [("g00", None)]}, ARMS), "HuMAP: number 0 is ('g00', None)"),
        (
            lambda: recalls_by_arm(MAP, NAMES, {"HuMAP": PAIRS}, {"TP53": "17p"}),
            "among the 0 of 30 labels on known arms; name genes in arms as the map does (g00, ...)",
        ),
        (
            lambda: proximity_bias(MAP, NAMES, {"TP53": "17p"}),
            "(0 of 30 labels are on one of 0 arms); name genes as the map does (g00, ...), or lower min_pairs",
        ),
        (
            lambda: proximity_bias(MAP, NAMES, dict.fromkeys(NAMES, "1p")),
            "all genes are on 1p; give those of another arm to compare with",
        ),
        (
            lambda: complex_coherence(MAP, NAMES, {"a": NAMES[:3]}),
            "in the map (most: a, 3); name genes as the map does (g00, ...), or lower min_genes",
        ),
        (
            lambda: complex_coherence(MAP, NAMES, {"a": NAMES}),
            "coherence: all 30 genes of the map are in a, so there are none to compare with; leave it out",
        ),
        (lambda: fit_log_linear([1e18], [0.1]), "scaling: 1 run; a line with an interval needs at least 3, name more"),
        (
            lambda: fit_log_linear([1e18] * 3, [0.1, 0.2, 0.3]),
            "scaling: all 3 runs cost 1e+18 FLOP; a line needs two sizes, name a run of another",
        ),
        (
            lambda: fit_log_linear([1e18, 1e19, 1e20], [0.1, np.nan, 0.3], ["S", "B", "L"]),
            "the value of run B is nan; leave that run out",
        ),
        (
            lambda: fit_log_linear([1e18, 1e19, 0], [0.1, 0.2, 0.3], ["S", "B", "L"]),
            "run L has 0.0 FLOP; give training FLOP",
        ),
        (
            lambda: fit_log_linear([1e18, 1e19, 1e20], [0.1, 0.2, 0.3]).predict(-1.0),
            "flop=-1.0 to foretell; give training FLOP",
        ),
        (lambda: arm_correction(MAP, NAMES, {}, []), "no gene has a chromosome arm; give loci such as 19q13.43"),
    ],
)
def test_a_refusal_names_the_thing_the_value_and_the_way_out(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)) as refused:
        call()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda **draws: relationship_recall(MAP, NAMES, PAIRS, **draws),
        lambda **draws: recalls_by_arm(MAP, NAMES, {"a": PAIRS}, ARMS, **draws),
        lambda **draws: compare_recalls(MAP, NAMES, MAP, NAMES, {"a": PAIRS}, **draws),
        lambda **draws: proximity_bias(MAP, NAMES, ARMS, **draws),
        lambda **draws: complex_coherence(MAP, NAMES, {"a": NAMES[:10]}, **draws),
        lambda **draws: perturbation_consistency(WELLS, LABELS, ["g00"], **draws),
        lambda **draws: perturbation_magnitude(WELLS, LABELS, CONTROL, ["g00"], min_replicates=2, **draws),
        lambda **draws: replicate_retrieval(WELLS, LABELS, **draws),
        lambda **draws: compound_gene_retrieval(MAP, NAMES, MAP, NAMES, PAIRS, **draws),
    ],
)
def test_draws_and_seeds_that_are_none_are_refused_before_anything_is_computed(call: Callable[..., Any]) -> None:
    call(bootstrap=5, seed=1)
    with pytest.raises(UsageError, match=r"bootstrap=-5: draws of the interval, at least 0; 1000 is usual"):
        call(bootstrap=-5)
    for seed in (-1, 1 << 64):
        with pytest.raises(
            UsageError, match=rf"seed={seed}: the key of random numbers, 0 to 2\^64 - 1; choose another"
        ):
            call(bootstrap=5, seed=seed)

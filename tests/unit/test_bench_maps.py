"""The maps benchmark compares like with like."""

from __future__ import annotations

import time

import numpy as np

from tests.bench import bench_maps


def test_the_plain_recall_is_the_one_it_is_compared_with() -> None:
    ours = bench_maps.recall(400, 0)()
    assert isinstance(ours, dict)
    flat = [recall.recall for recalls in ours.values() for recall in recalls]
    assert len(flat) == 6
    np.testing.assert_allclose(bench_maps.recall_plain(400)(), flat, rtol=0, atol=1e-12)


def test_memory_is_looked_at_while_a_case_runs() -> None:
    def case(_: object) -> object:
        def run() -> None:
            held = np.ones(20_000_000)
            time.sleep(0.2)
            del held

        return run

    result = bench_maps.measure(case)
    assert result["own"] - result["inputs"] > 150.0
    assert result["peak"] >= result["own"] - 1.0
    assert result["wall"] >= 0.2

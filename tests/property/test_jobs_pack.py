"""Packing units into tasks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phenomhpc.jobs.pack import pack
from phenomhpc.runs import Unit


def units_of(costs: list[float]) -> list[Unit]:
    return [Unit(unit_id=str(number), kind="convert", cost_s=cost) for number, cost in enumerate(costs)]


@given(st.lists(st.floats(0, 100), max_size=60), st.integers(1, 20))
def test_every_unit_has_one_task_in_order_without_gaps(costs: list[float], max_tasks: int) -> None:
    packed = pack(units_of(costs), max_tasks)
    assert [unit.unit_id for unit in packed] == [str(number) for number in range(len(costs))]
    tasks = [unit.task for unit in packed]
    assert tasks == sorted(tasks)
    assert sorted(set(tasks)) == list(range(min(max_tasks, len(costs))))


@given(st.lists(st.floats(0.5, 5), min_size=1, max_size=80), st.integers(1, 20))
def test_no_task_is_dearer_than_its_share_and_one_unit_at_either_end(costs: list[float], max_tasks: int) -> None:
    packed = pack(units_of(costs), max_tasks)
    share = sum(costs) / min(max_tasks, len(costs))
    for task in range(packed[-1].task + 1):
        total = sum(unit.cost_s for unit in packed if unit.task == task)
        assert total <= share + 2 * max(costs) + 1e-9

"""Packing units into tasks."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenomhpc.jobs import pack as packing
from phenomhpc.jobs.pack import pace_of, pack
from phenomhpc.runs import Unit, Units

COSTS = st.lists(st.floats(0, 100, width=32), max_size=80)


def units_of(costs: list[float]) -> list[Unit]:
    return [Unit(unit_id=str(number), kind="convert", cost_s=cost) for number, cost in enumerate(costs)]


def tasks_of(units: Units) -> list[int]:
    return [unit.task for unit in units]


def one_by_one(costs: list[float], num_tasks: int) -> list[int]:
    """The rule of equal shares, said plainly: what the arrays must come to as well."""
    costs = [max(cost, packing.LEAST_COST_S) for cost in costs]
    tasks: list[int] = []
    for number, before in enumerate(accumulate([0.0, *costs[:-1]])):
        task = tasks[-1] if tasks else 0
        left, behind = len(costs) - number, num_tasks - 1 - task
        if tasks and behind and (before >= sum(costs) * (task + 1) / num_tasks or left <= behind):
            task += 1
        tasks.append(task)
    return tasks


# Whole numbers: the shares' borders are then met exactly, and the sums are the same in any order.
@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(0, 5))
def test_equal_shares_are_cut_where_the_plain_rule_cuts_them(costs: list[int], power: int) -> None:
    num_tasks = min(2**power, len(costs))
    whole = [float(cost * num_tasks) for cost in costs]
    assert tasks_of(pack(units_of(whole), num_tasks)) == one_by_one(whole, num_tasks)


@given(COSTS, st.integers(1, 20))
def test_every_unit_has_one_task_in_order_without_gaps(costs: list[float], max_tasks: int) -> None:
    packed = pack(units_of(costs), max_tasks)
    assert [unit.unit_id for unit in packed] == [str(number) for number in range(len(costs))]
    tasks = tasks_of(packed)
    assert tasks == sorted(tasks)
    assert sorted(set(tasks)) == list(range(min(max_tasks, len(costs))))
    assert packed.num_tasks == len(set(tasks))


@given(st.lists(st.floats(0.5, 5, width=32), min_size=1, max_size=80), st.integers(1, 20))
def test_no_task_is_dearer_than_its_share_and_one_unit_at_either_end(costs: list[float], max_tasks: int) -> None:
    packed = list(pack(units_of(costs), max_tasks))
    share = sum(costs) / min(max_tasks, len(costs))
    for task in range(packed[-1].task + 1):
        total = sum(unit.cost_s for unit in packed if unit.task == task)
        assert total <= share + 2 * max(costs) + 1e-6


@given(COSTS, st.floats(1, 300), st.floats(0.1, 10), st.integers(1, 12), st.integers(1, 12))
def test_no_task_is_longer_than_asked_unless_it_is_one_unit_or_there_are_too_many(
    costs: list[float], target: float, pace: float, spread: int, more: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SPREAD", spread)
        patch.setattr(packing, "MOST_TASKS", spread + more)
        packed = list(pack(units_of(costs), target_s=target, pace=pace))
    tasks = [unit.task for unit in packed]
    assert [unit.unit_id for unit in packed] == [str(number) for number in range(len(costs))]
    assert tasks == sorted(tasks)
    assert sorted(set(tasks)) == list(range(len(set(tasks))))
    assert len(set(tasks)) <= spread + more
    if len(set(tasks)) < spread + more:
        for task in set(tasks):
            own = [unit.cost_s * pace for unit in packed if unit.task == task]
            assert len(own) == 1 or sum(own) <= target * (1 + 1e-6) + 1e-6


def test_a_small_run_is_spread_and_a_large_one_cut_by_time() -> None:
    assert pack(units_of([1.0] * 5000)).num_tasks == 256
    assert pack(units_of([60.0] * 10_000), target_s=600).num_tasks == 1000
    assert pack(units_of([60.0] * 10_000), target_s=600, pace=0.5).num_tasks == 500
    assert pack(units_of([60.0] * 10_000), 7, target_s=600).num_tasks == 7
    assert len(pack(())) == 0


def test_the_pace_is_that_of_units_that_took_time() -> None:
    told = {"event": "unit", "seconds": 3.0, "cost_s": 1.0}
    assert pace_of([told, {**told, "seconds": 1.0}, {"event": "unit"}, {**told, "event": "ended"}]) == 2.0
    assert pace_of([{**told, "seconds": 0.0}]) == pace_of([]) == 1.0

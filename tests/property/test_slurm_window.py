"""Arrays within Slurm's limits, whatever they are: a model of the queue is fed until nothing is left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phenomhpc.slurm.window import RESERVED, Limits, next_chunk, window_of

LIMITS = st.builds(
    Limits,
    max_array_size=st.integers(1, 120),
    max_submit_jobs=st.none() | st.integers(RESERVED + 1, 60),
    max_job_count=st.none() | st.integers(2, 200),
)


@given(num_tasks=st.integers(0, 700), limits=LIMITS, throttle=st.none() | st.integers(1, 30), others=st.integers(0, 20))
def test_every_task_is_submitted_once_and_no_limit_is_passed(
    num_tasks: int, limits: Limits, throttle: int | None, others: int
) -> None:
    window = window_of(num_tasks, limits, throttle)
    tasks: list[int] = []
    living: list[int] = []  # sizes of the arrays in the queue
    shares: list[int | None] = []
    number = 0
    foreign = others
    while len(tasks) < num_tasks or living:
        chunk = next_chunk(
            window,
            limits,
            num_tasks=num_tasks,
            fed=len(tasks),
            number=number,
            living=len(living),
            queued=sum(living) + foreign,
        )
        if chunk is None:
            # Nothing may be stuck: either something of ours is in the queue, or others hold the room and will leave.
            assert living or foreign
            if living:
                living.pop(0)
                shares.pop(0)
            else:
                foreign = 0
            continue
        assert chunk.offset == len(tasks) and chunk.number == number
        assert 1 <= chunk.size <= limits.max_array_size
        tasks += range(chunk.offset, chunk.offset + chunk.size)
        living.append(chunk.size)
        shares.append(chunk.throttle)
        number += 1
        if limits.max_submit_jobs is not None:
            assert sum(living) + foreign + RESERVED <= limits.max_submit_jobs
        if limits.max_job_count is not None:
            assert sum(living) <= max(1, limits.max_job_count // 2)
        if throttle is not None:
            assert all(share is not None and share >= 1 for share in shares)
            assert sum(share or 0 for share in shares) <= throttle
    assert tasks == list(range(num_tasks))


def test_a_run_that_fits_goes_in_at_once() -> None:
    limits = Limits(max_array_size=1001, max_submit_jobs=5000, max_job_count=10000)
    assert window_of(2500, limits).in_flight == 3
    assert window_of(2500, Limits(max_array_size=1001)).in_flight == 3
    small = window_of(2500, Limits(max_array_size=101, max_submit_jobs=50))
    assert (small.size, small.in_flight) == (12, 4)

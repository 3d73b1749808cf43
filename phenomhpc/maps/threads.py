"""Blocks computed by threads of our own, a BLAS of one thread in each.

The products of maps/ are many and small.  BLAS's own threads spin while they wait for each other, which on shared cores takes
several times the seconds that the product takes; and what is not a product (counting, scaling) would use one core.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MAX_THREADS = 8  # each holds a block

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """function(item) of every item, in their order.

    A thread per core that this process may use, at most MAX_THREADS; at most one result more than that is held.  What the
    function raises is raised here, in its turn.  Until the iterator ends, BLAS has one thread in the whole process.
    """
    from threadpoolctl import threadpool_limits

    num = min(MAX_THREADS, len(os.sched_getaffinity(0)))
    begun: deque[Future[Result]] = deque()
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(num, "phenomhpc-maps") as pool:
        try:
            for item in items:
                begun.append(pool.submit(function, item))
                if len(begun) > num:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()

"""Blocks computed by threads of our own, a BLAS of one thread in each.

The products of maps/ are many and small.  BLAS's own threads spin while they wait for each other, which on shared cores takes
several times the seconds that the product takes; and what is not a product (counting, scaling) would use one core.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

MAX_THREADS = 8  # each holds a block

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """function(item) of every item, in their order.

    A thread per core that this process may use, at most MAX_THREADS; at most one result more than that is held.  What the
    function raises is raised here, in its turn.  Until the iterator ends, BLAS has one thread in the whole process.
    """
    num = min(MAX_THREADS, len(os.sched_getaffinity(0)))
    begun: deque[Future[Result]] = deque()
    with _ONE_BLAS_THREAD, ThreadPoolExecutor(num, "phenomhpc-maps") as pool:
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


class _OneBlasThread:
    """BLAS has one thread from the first that enters until the last that leaves: iterators end in any order, or are let go of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limits: Any = None

    def __enter__(self) -> None:
        from threadpoolctl import threadpool_limits

        with self._lock:
            if not self._inside:
                self._limits = threadpool_limits(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._limits.restore_original_limits()


_ONE_BLAS_THREAD = _OneBlasThread()

"""How many steps to read ahead: no more than waiting has shown to help."""

from __future__ import annotations

# Below this nothing is told from the scheduling of processes.
NOISE_S = 0.001


def next_depth(depth: int, most: int, *, wait_s: float, idle_s: float) -> int:
    """Steps to read ahead from now on: one more when the last step was waited for although workers had had nothing to do.

    wait_s: how long the caller waited for the step.  idle_s: seconds, summed over workers, for which they had no work since the
    step before was handed over, because nothing more was to be read.  Waiting while all of them worked is no matter
    of depth: reading is too slow then, and buffers would not help.  It never shrinks: memory once taken stays in use.
    """
    if wait_s > NOISE_S and idle_s > NOISE_S:
        return min(depth + 1, most)
    return depth

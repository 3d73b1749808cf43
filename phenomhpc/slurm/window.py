"""How an attempt's tasks go into the queue: arrays within Slurm's limits, more of them as earlier ones end.  Pure.

Slurm counts every array element: against MaxArraySize by its index, against MaxSubmitJobs and MaxJobCount as a job.
"""

from __future__ import annotations

from dataclasses import dataclass

# Jobs of a run that are no task: the steward at work, and its successor.
RESERVED = 2
# A run that does not fit goes in as so many arrays at a time, so that the queue never runs dry while one ends.
IN_FLIGHT = 4
# The controller's job table is everybody's: one run takes at most this share of it.
SHARE_OF_TABLE = 0.5


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the cluster allows; None: no limit, or none that could be read.

    max_array_size: the largest index plus one; max_submit_jobs: one person's jobs in the queue; max_job_count: everybody's.
    """

    max_array_size: int
    max_submit_jobs: int | None = None
    max_job_count: int | None = None


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One sbatch: `size` array elements 0.. whose task is `offset` + index.  A gang is one chunk of one element.

    throttle: most elements of it that run at once; None: all.
    """

    number: int
    offset: int
    size: int
    throttle: int | None = None


@dataclass(frozen=True, kw_only=True)
class Window:
    """The shape of a run in the queue: at most `in_flight` arrays of at most `size` elements."""

    size: int
    in_flight: int
    throttle: int | None = None

    def share(self, number: int) -> int | None:
        """The throttle of array `number`: the run's, divided over the arrays that are in the queue at once."""
        if self.throttle is None:
            return None
        whole, rest = divmod(self.throttle, self.in_flight)
        return whole + (number % self.in_flight < rest)


def window_of(num_tasks: int, limits: Limits, throttle: int | None = None) -> Window:
    """The window of a run of `num_tasks` tasks."""
    room = num_tasks
    if limits.max_submit_jobs is not None:
        room = min(room, limits.max_submit_jobs - RESERVED)
    if limits.max_job_count is not None:
        room = min(room, int(limits.max_job_count * SHARE_OF_TABLE))
    room = max(1, room)
    if room >= num_tasks:
        size = max(1, min(limits.max_array_size, num_tasks))
        in_flight = -(-num_tasks // size) or 1
    else:
        size = max(1, min(limits.max_array_size, room // IN_FLIGHT))
        in_flight = room // size
    if throttle is not None:
        in_flight = min(in_flight, throttle)
    return Window(size=size, in_flight=max(1, in_flight), throttle=throttle)


def next_chunk(
    window: Window, limits: Limits, *, num_tasks: int, fed: int, number: int, living: int, queued: int
) -> Chunk | None:
    """The array to submit now; None when there is nothing left, or no room.

    fed: tasks that were submitted; number: arrays that were; living: of those, arrays that have not ended; queued: jobs
    (array elements) of this person in the queue, whosever run they are.
    """
    left = num_tasks - fed
    if not left or living >= window.in_flight:
        return None
    size = min(window.size, left)
    if limits.max_submit_jobs is not None:
        size = min(size, limits.max_submit_jobs - RESERVED - queued)
    if size < 1:
        return None
    return Chunk(number=number, offset=fed, size=size, throttle=window.share(number))

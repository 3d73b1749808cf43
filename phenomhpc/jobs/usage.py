"""What a run has cost: hours asked for, used, useful and lost, of GPUs and of CPU cores.

A *start* is one process of one task: an attempt has several where Slurm requeued it, a gang one per node.

    asked   sum over attempts of tasks x devices of a task x time limit; None where an attempt has no limit.
            What Slurm runs again by itself is not asked for a second time, so used may exceed asked
    used    sum over starts of its devices x its seconds: `ended` tells them; else from `started` to the last sign of life
            (event or metrics row) before the task's next start; to the present moment while Slurm says it runs
    useful  array: the seconds of every committed unit, each unit once (its latest commit), and of a task that lives those
            since its newest (or its start), which it has yet to commit, x the start's devices
            gang: the seconds of every step that is in the newest checkpoint, or that a living gang has yet to commit, each
            step once (the latest attempt's) x the devices of the starts that lived at its end.  A step lasts from the end of
            the one before it; the first after a start, whose beginning nobody wrote down, counts as the median step
            a script of somebody's: the whole of every start that ended well, left something new in the run's folders, or lives
    lost    used - useful: queues' requeues, start-up, repeated steps, work that was never committed
"""

from __future__ import annotations

import pwd
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import median

from phenomhpc.config import AnyConfig, PipelineConfig, RunConfig, load_run_config
from phenomhpc.jobs.attempts import is_gang, stage_runs_of
from phenomhpc.runs import PROGRESS, UNITS, Event, RunPaths, read_log, read_provenance

HOUR_S = 3600.0
# Events of the steward and of the guard's end do not mean that work was going on.
_LAST = frozenset({"preempted", "failed", "finished"})
_SIGNS = _LAST | {"resumed", "unit", PROGRESS, "checkpoint", "set_aside"}


@dataclass(frozen=True, kw_only=True)
class Hours:
    """Device hours; asked None where an attempt had no time limit."""

    asked: float | None = 0.0
    used: float = 0.0
    useful: float = 0.0
    lost: float = 0.0

    def __add__(self, other: Hours) -> Hours:
        return Hours(
            asked=None if self.asked is None or other.asked is None else self.asked + other.asked,
            used=self.used + other.used,
            useful=self.useful + other.useful,
            lost=self.lost + other.lost,
        )


@dataclass(frozen=True, kw_only=True)
class Usage:
    """GPU hours and core hours of a run, or of many."""

    gpu: Hours = field(default_factory=Hours)
    core: Hours = field(default_factory=Hours)

    def __add__(self, other: Usage) -> Usage:
        return Usage(gpu=self.gpu + other.gpu, core=self.core + other.core)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One attempt's request: tasks, what each of them gets, its limit (minutes; None: none)."""

    num_tasks: int
    gpus: int
    cores: int
    minutes: float | None


@dataclass(kw_only=True)
class Start:
    """One start of one task: when it began and ended (seconds since 1970), its devices, the seconds its units took.

    is_over: it said itself that it ends.  kept: it ended well, or further than it began.  open_s: seconds of work that a living
    one has yet to commit.
    """

    attempt: int
    task: int
    began: float
    ended: float
    is_over: bool = False
    gpus: int = 0
    cores: int = 1
    unit_s: dict[str, float] = field(default_factory=dict)
    kept: bool = False
    committed: float = 0.0
    open_s: float = 0.0


def seconds(time: str) -> float:
    """An event's time in seconds since 1970."""
    return datetime.fromisoformat(time).timestamp()


def starts_of(
    events: Iterable[Event], rows: Sequence[tuple[int, int, float]], live: Collection[int], now: float
) -> list[Start]:
    """Every start, from events (oldest first) and metrics rows (attempt, step, time).

    live: tasks of the newest attempt that run at the moment `now`.
    """
    starts: list[Start] = []
    newest: dict[tuple[int, int], Start] = {}
    for event in events:
        key = (event["attempt"], event["task"])
        time = seconds(event["time"])
        if event["event"] == "started":
            newest[key] = Start(
                attempt=key[0],
                task=key[1],
                began=time,
                ended=time,
                gpus=int(event.get("gpus") or 0),
                cores=int(event.get("cpus") or 1),
            )
            starts.append(newest[key])
        elif key in newest:
            _extend(newest[key], event, time)
    _live_by_metrics(starts, rows)
    last = max((start.attempt for start in starts), default=0)
    for (attempt, task), start in newest.items():
        if attempt == last and task in live and not start.is_over:
            start.ended, start.open_s = now, max(0.0, now - max(start.began, start.committed))
    return starts


def _extend(start: Start, event: Event, time: float) -> None:
    if event["event"] == "ended":
        start.ended, start.is_over = start.began + float(event["seconds"]), True
        start.kept = event["code"] == 0 or event.get("mark") != event.get("before")
    elif event["event"] == UNITS:
        lengths = event["seconds"]
        if not all(lengths):
            ends = [start.ended, *map(seconds, event["times"])]
            lengths = [
                told or max(0.0, ended - before) for told, (before, ended) in zip(lengths, pairwise(ends), strict=True)
            ]
        start.unit_s.update(zip(event["unit_ids"], lengths, strict=True))
        start.committed = time
        start.ended, start.is_over = max(start.ended, time), False
    elif event["event"] in _SIGNS:
        if event["event"] == "unit":
            start.unit_s[str(event["unit_id"])] = float(event.get("seconds") or time - start.ended)
            start.committed = time
        start.is_over = event["event"] in _LAST
        start.ended = max(start.ended, time)


def _live_by_metrics(starts: Sequence[Start], rows: Sequence[tuple[int, int, float]]) -> None:
    """A step that was written down shows that the gang lived; of the starts at that time, those nobody saw end."""
    times: dict[int, list[float]] = {}
    for attempt, _, time in rows:
        times.setdefault(attempt, []).append(time)
    for entries in times.values():
        entries.sort()
    following: dict[tuple[int, int], float] = {}
    for start in reversed(starts):
        key = (start.attempt, start.task)
        before = following.get(key, float("inf"))
        following[key] = start.began
        seen = times.get(start.attempt, [])
        position = bisect_right(seen, before)
        if not start.is_over and position:
            start.ended = max(start.ended, seen[position - 1])


def useful_of_units(starts: Iterable[Start]) -> tuple[float, float]:
    """(GPU seconds, core seconds) that led to committed units, each unit once, or may still."""
    latest: dict[str, tuple[float, Start]] = {}
    still: list[tuple[float, Start]] = []
    for start in starts:
        still.append((start.open_s, start))
        latest.update({unit: (length, start) for unit, length in start.unit_s.items()})
    return (
        sum(length * start.gpus for length, start in [*latest.values(), *still]),
        sum(length * start.cores for length, start in [*latest.values(), *still]),
    )


def useful_of_starts(starts: Iterable[Start]) -> tuple[float, float]:
    """(GPU seconds, core seconds) of starts that led somewhere, or may still."""
    lasted = [(start.ended - start.began, start) for start in starts if start.kept or not start.is_over]
    return sum(s * start.gpus for s, start in lasted), sum(s * start.cores for s, start in lasted)


def useful_of_steps(
    starts: Sequence[Start], rows: Iterable[tuple[int, int, float]], boundaries: Iterable[float], committed: int | None
) -> tuple[float, float]:
    """(GPU seconds, core seconds) of steps that count.

    rows: (attempt, step, time at its end), of a repeated step the last one counts; boundaries: when something (re)started;
    committed: steps in the newest checkpoint; None: the gang lives, and all of its steps count.
    """
    times = {step: time for _, step, time in sorted(rows, key=lambda row: (row[0], row[2]))}
    steps = sorted(step for step in times if committed is None or step < committed)
    breaks = sorted(boundaries)
    lengths: dict[int, float | None] = dict.fromkeys(steps[:1])
    for before, step in pairwise(steps):
        unbroken = bisect_right(breaks, times[before]) == bisect_right(breaks, times[step])
        lengths[step] = times[step] - times[before] if unbroken and step == before + 1 else None
    known = [length for length in lengths.values() if length is not None]
    usual = median(known) if known else 0.0
    alive = _Alive(starts)
    gpu = core = 0.0
    for step, length in lengths.items():
        gpus, cores = alive.at(times[step])
        gpu += (usual if length is None else length) * gpus
        core += (usual if length is None else length) * cores
    return gpu, core


class _Alive:
    """Devices of the starts that live at a moment, found by bisection."""

    def __init__(self, starts: Iterable[Start]) -> None:
        changes = [(start.began, start.gpus, start.cores) for start in starts]
        changes += [(start.ended, -start.gpus, -start.cores) for start in starts]
        changes.sort(key=lambda change: (change[0], -change[2]))
        self._times: list[float] = []
        self._devices: list[tuple[int, int]] = [(0, 0)]
        for time, gpus, cores in changes:
            self._times.append(time)
            self._devices.append((self._devices[-1][0] + gpus, self._devices[-1][1] + cores))

    def at(self, time: float) -> tuple[int, int]:
        """(GPUs, cores) just before `time`: what ends with this step still did it."""
        position = bisect_right(self._times, time - 1e-6)
        return self._devices[position]


def hours(asked: Sequence[Asked], starts: Sequence[Start], useful_s: tuple[float, float]) -> Usage:
    """The whole, from its parts; useful never exceeds used."""
    limited = all(attempt.minutes is not None for attempt in asked)

    def of(devices: Mapping[int, float], total_asked: float, useful: float) -> Hours:
        used = sum(devices.values()) / HOUR_S
        counted = min(useful / HOUR_S, used)
        return Hours(asked=total_asked if limited else None, used=used, useful=counted, lost=used - counted)

    lasted = [max(0.0, start.ended - start.began) for start in starts]
    gpu = {number: start.gpus * lasted[number] for number, start in enumerate(starts)}
    core = {number: start.cores * lasted[number] for number, start in enumerate(starts)}
    gpus = sum(attempt.num_tasks * attempt.gpus * (attempt.minutes or 0) / 60 for attempt in asked)
    cores = sum(attempt.num_tasks * attempt.cores * (attempt.minutes or 0) / 60 for attempt in asked)
    return Usage(gpu=of(gpu, gpus, useful_s[0]), core=of(core, cores, useful_s[1]))


# -- from a run directory ---------------------------------------------------------------------------------------------


def run_usage(
    paths: RunPaths, config: AnyConfig, events: Sequence[Event] | None = None, live: Collection[int] = ()
) -> Usage:
    """What a run has cost up to now, a pipeline with its stages.  events: of the run, where they are read already."""
    if isinstance(config, PipelineConfig):
        stages = stage_runs_of(paths, config).values()
        return sum((run_usage(run, load_run_config(run.run_yaml)) for run in stages), Usage())
    events = read_log(paths) if events is None else events
    rows = metrics_rows(paths) if is_gang(config) else []
    starts = starts_of(events, rows, live, datetime.now(UTC).timestamp())
    if isinstance(config, RunConfig):
        useful = useful_of_starts(starts)
    elif is_gang(config):
        saved = max((int(event["step"]) for event in events if event["event"] == "checkpoint"), default=0)
        breaks = [seconds(event["time"]) for event in events if event["event"] in {"started", "resumed"}]
        useful = useful_of_steps(starts, rows, breaks, None if live else saved)
    else:
        useful = useful_of_units(starts)
    return hours(_asked(events), starts, useful)


def _asked(events: Sequence[Event]) -> list[Asked]:
    """One entry per submitted attempt."""
    cores = max((int(event.get("cpus") or 1) for event in events if event["event"] == "started"), default=1)
    return [
        Asked(
            num_tasks=int(event["num_tasks"]),
            gpus=int(event["gpus"]) // int(event.get("num_nodes") or 1),
            cores=int(event["cpus"] or cores),
            minutes=event["limit_minutes"],
        )
        for event in events
        if event["event"] == "submitted"
    ]


def metrics_rows(paths: RunPaths) -> list[tuple[int, int, float]]:
    """(attempt, step, time in seconds since 1970) of every step that was written down."""
    files = sorted(paths.metrics.glob("*.parquet")) if paths.metrics.is_dir() else []
    return [row for path in files for row in _rows(path, path.stat().st_mtime_ns)]


@lru_cache(maxsize=8192)
def _rows(path: Path, changed_ns: int) -> tuple[tuple[int, int, float], ...]:
    """changed_ns: a requeued start may publish a file anew."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["step", "time"])
    attempt = int(path.name.partition("-")[0])
    times = table["time"].to_pylist()
    return tuple((attempt, step, time.timestamp()) for step, time in zip(table["step"].to_pylist(), times, strict=True))


def owner_of(paths: RunPaths) -> str:
    """Whose run it is: the owner of its directory, by name where there is one."""
    number = paths.root.stat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


@dataclass(frozen=True, kw_only=True)
class RunUsage:
    """One run's line in the accounts."""

    run: str
    user: str
    kind: str
    created: str
    state: str
    usage: Usage


def account(runs: Iterable[tuple[RunPaths, str]], since: datetime | None = None) -> list[RunUsage]:
    """What runs cost, given each with its state; those made before `since` are left out, and pipelines: their stages count."""
    found = []
    for paths, state in runs:
        config, provenance = load_run_config(paths.run_yaml), read_provenance(paths)
        created = str(provenance["created"])
        if isinstance(config, PipelineConfig) or (since is not None and datetime.fromisoformat(created) < since):
            continue
        usage = run_usage(paths, config)
        found.append(
            RunUsage(run=paths.id, user=owner_of(paths), kind=config.kind, created=created, state=state, usage=usage)
        )
    return found


def totals(accounts: Iterable[RunUsage]) -> dict[str, Usage]:
    """The sum per user, by name."""
    sums: dict[str, Usage] = {}
    for entry in accounts:
        sums[entry.user] = sums.get(entry.user, Usage()) + entry.usage
    return dict(sorted(sums.items()))

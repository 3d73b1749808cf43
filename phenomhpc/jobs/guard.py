"""The guard of a Slurm task: a small parent process that starts the work as its child and watches it from outside.

It imports no torch and does none of the work, so it can still speak when that hangs, is killed or runs out of memory.

    claim the start -> `started` -> the gate of a gang -> fork: run_task ... -> `ended`
      a node is not fit (jobs/gate.py)                     `failed node_fail` naming it, leave with 77
      fenced (a newer start or attempt has the task)       kill the child, leave with 76, write nothing
      silent (heartbeat older than the work's own pace)    dump every stack, kill, `failed hang`, leave with 78
      killed by a signal                                   `failed oom` when the kernel counted one, else `failed node_fail`
      asked to stop twice at the same step                 `failed no_progress`, leave with 1: the script must not requeue

What holds when the guard is killed: the child dies with it (PR_SET_PDEATHSIG), and whatever was committed stays.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phenomhpc import errors
from phenomhpc.config import AnyConfig
from phenomhpc.jobs.attempts import exclude_sick, is_gang
from phenomhpc.jobs.drift import keep_once
from phenomhpc.jobs.elastic import end_elastic
from phenomhpc.jobs.gate import run_gate
from phenomhpc.jobs.preflight import invisible
from phenomhpc.jobs.processes import (
    adopt_orphans,
    descendants,
    dump_stacks,
    is_alive,
    kill_below,
    oom_kills,
    reap,
    resident_bytes,
)
from phenomhpc.jobs.retried import run_config
from phenomhpc.jobs.task import run_task
from phenomhpc.parent import die_with_parent
from phenomhpc.runs import Event, EventWriter, RunPaths, check_fence, claim_start, read_task_events
from phenomhpc.runs.heartbeat import ENVIRONMENT, Watch, read_beats
from phenomhpc.slurm.decide import FailureClass
from phenomhpc.slurm.inside import Place, is_stop_due

POLL_S = 0.2
LOOK_S = 1.0
# Longer than it takes to commit what a stop interrupted: Slurm's own limit ends what is slower.
KILLED_BY_SIGNAL = 128


def guard(paths: RunPaths, attempt: int, task: int, place: Place) -> int:
    """Do a task under guard; returns the exit code of the step (0, 1, 2, 75 to 79, 128 + signal)."""
    config = run_config(paths)
    try:
        token = claim_start(paths, attempt, task, place.restarts, place.job_id)
    except errors.FencedError as error:
        print(error, flush=True)
        return error.exit_code
    with tempfile.TemporaryDirectory(prefix="phenomhpc-") as folder:
        os.environ[ENVIRONMENT] = folder
        watched = _Guard(
            paths=paths, attempt=attempt, task=task, place=place, token=token, config=config, beats=Path(folder)
        )
        try:
            return watched.to_the_end()
        except errors.FencedError as error:
            print(error, flush=True)
            return error.exit_code
        finally:
            kill_below(os.getpid())


@dataclass(kw_only=True)
class _Guard:
    paths: RunPaths
    attempt: int
    task: int
    place: Place
    token: str
    config: AnyConfig
    beats: Path
    terminated: bool = False
    peak_bytes: int = 0
    began: float = field(default_factory=time.monotonic)
    ooms: int = field(default_factory=oom_kills)

    def __post_init__(self) -> None:
        self.events = EventWriter(
            self.paths, self.attempt, self.task, self.token, self.place.job_id, check=self.check_fence
        )
        cluster = self.config.cluster
        self.watch = Watch(min_s=cluster.hang_min_s, slow_s=cluster.hang_slow_s, is_alive=is_alive)

    def check_fence(self) -> None:
        check_fence(self.paths, self.attempt, self.task, self.token)

    # -- the course of it ---------------------------------------------------------------------------------------------

    def to_the_end(self) -> int:
        history = read_task_events(self.paths, self.attempt, self.task)
        self.stop_file.unlink(missing_ok=True)  # of an earlier start
        mark = progress_mark(self.paths, history)
        self.events.emit(
            "started", start=self.place.restarts, pid=os.getpid(), gpus=self.place.gpus, cpus=self.place.cpus,
            mem_mb=self.place.mem_mb, num_nodes=len(self.place.hosts), mark=mark,
        )  # fmt: skip
        adopt_orphans()
        signal.signal(signal.SIGTERM, self._on_term)
        self._exclude_lost_node(history)
        code = self._see() or self._gate() or self._leave_as(self._watch(self._fork()))
        written = read_task_events(self.paths, self.attempt, self.task)
        after = progress_mark(self.paths, written)
        if code == errors.TASK_REQUEUE and stuck(
            [*history, {"event": "ended", "code": code, "mark": after, "before": mark}]
        ):
            code = self._fail(FailureClass.NO_PROGRESS, 1, f"the time limit came twice at the same point ({after})")
        if code == errors.TASK_FENCED:
            return code  # no more words: others have gone on without this node
        self.events.emit(
            "ended", code=code, seconds=time.monotonic() - self.began, max_rss_bytes=self.peak_bytes, before=mark, mark=after
        )  # fmt: skip
        if self.elastic:
            end_elastic(self.paths, self.config, self.place, self.attempt, code, self.events.emit)
        return code

    @property
    def elastic(self) -> bool:
        return is_gang(self.config) and self.config.cluster.elastic and len(self.place.hosts) > 1

    def _see(self) -> int:
        """0 when the folders that the work needs are visible on this node."""
        words = invisible(self.config, self.paths)
        if not words:
            return errors.DONE
        said = f"{'; '.join(words)}; is its file system mounted on this node?"
        return self._fail(FailureClass.NODE_FAIL, errors.TASK_GATE_REFUSED, said)

    def _gate(self) -> int:
        """0 when this node and its peers are fit (or it was not asked); the exit code of a refusal, which is written down."""
        if not (self.config.cluster.gate and is_gang(self.config)):
            keep_once(self.paths.attempt(self.attempt), self.place.host, self.check_fence)
            return errors.DONE
        try:
            run_gate(self.config, self.paths, self.place, attempt=self.attempt, task=self.task, emit=self.events.emit)
        except errors.GateRefused as error:
            return error.exit_code
        except errors.FencedError:
            raise
        except (errors.PhenomError, OSError, ValueError) as error:
            return self._fail(FailureClass.CODE_ERROR, 1, f"the gate itself failed: {type(error).__name__}: {error}")
        return errors.DONE

    def _exclude_lost_node(self, history: list[Event]) -> None:
        """Slurm has requeued this task: when the node of the start before fell silent, and Slurm too calls it sick, it is left
        out for a while."""
        last = next((event for event in reversed(history) if event["event"] in {"started", "ended"}), None)
        if last is None or last["event"] == "ended" or last["host"] in self.place.hosts:
            return
        with suppress(errors.PhenomError):  # neither the queue nor the ledger may keep the work from starting
            exclude_sick(
                self.paths, self.config, [last["host"]],
                lambda **fields: self.events.emit("excluded", **fields),
                {"run": self.paths.id, "attempt": self.attempt, "job": self.place.job_id, "words": "fell silent in mid-work"},
            )  # fmt: skip

    def _fork(self) -> int:
        """The child does the work; it shares what is imported here."""
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child:
            return child
        die_with_parent()
        # A handler, unlike SIG_IGN, is not inherited by the programs that the work starts and ends by SIGTERM.
        signal.signal(signal.SIGTERM, lambda *_: None)
        code = errors.WORK_FAILED
        try:
            code = run_task(
                str(self.paths.root), self.attempt, self.task,
                token=self.token, hosts=self.place.hosts, job_id=self.place.job_id, start=self.place.restarts,
            )  # fmt: skip
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _watch(self, child: int) -> int:
        """Until the child has ended: its wait status.  Raises FencedError, after killing it, when this start was replaced."""
        looked = 0.0
        while True:
            ended = reap()
            if child in ended:
                return ended[child]
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                self.check_fence()
                if self.elastic and is_stop_due():
                    self.stop_file.touch()
                pids = descendants(os.getpid())
                self.peak_bytes = max(self.peak_bytes, resident_bytes(pids))
                silent = self.watch.look(read_beats(self.beats), looked)
                if silent:
                    self._end_hang([str(entry) for entry in silent], pids)
                    return errors.TASK_WATCHDOG << 8
            time.sleep(POLL_S)

    def _leave_as(self, status: int) -> int:
        """The exit code that a child's wait status stands for; a death by signal is written down here, by who saw it."""
        self.peak_bytes = max(self.peak_bytes, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
        starved = oom_kills() > self.ooms
        code = os.waitstatus_to_exitcode(status)
        if code != errors.DONE and starved:
            return self._fail(
                FailureClass.OOM, 1, f"killed for want of memory; at its peak {self.peak_bytes / 2**20:.0f} MiB"
            )
        if code < 0:
            name = signal.Signals(-code).name
            return self._fail(
                FailureClass.NODE_FAIL, KILLED_BY_SIGNAL - code, f"the work was killed by {name}", crashed=True
            )
        if code == errors.TASK_REQUEUE and self.terminated:
            # SIGTERM is scancel's, or a preemption that Slurm requeues by itself: the script must not.
            return KILLED_BY_SIGNAL + signal.SIGTERM
        return code

    def _end_hang(self, words: list[str], pids: list[int]) -> None:
        print(f"phenomhpc: {'; '.join(words)}", flush=True)
        print(dump_stacks(pids), flush=True)
        kill_below(os.getpid())
        self._fail(FailureClass.HANG, errors.TASK_WATCHDOG, "; ".join(words))

    def _fail(self, failure: FailureClass, code: int, message: str, **fields: Any) -> int:
        log = str(self.paths.log_file(self.task, self.attempt))
        self.events.emit(
            "failed", **{"class": str(failure), "exit_code": code, "message": message, "log": log}, **fields
        )
        print(f"phenomhpc: {message}", flush=True)
        return code

    # -- being asked to stop ------------------------------------------------------------------------------------------

    @property
    def stop_file(self) -> Path:
        return self.paths.attempt(self.attempt).stop_file(self.task)

    def _on_term(self, *_: object) -> None:
        self.terminated = True
        self.stop_file.touch()


def progress_mark(paths: RunPaths, events: list[Event]) -> str:
    """Where a task stands: the newest committed step, or what lies in the checkpoint folder of a foreign script; its units."""
    step = paths.committed_step()
    if not step and (saved := paths.saved()):
        return saved
    return f"step {step}, {len({event['unit_id'] for event in events if event['event'] == 'unit'})} units"


def stuck(events: Sequence[Mapping[str, Any]]) -> bool:
    """Did the last two starts end at the time limit without having come any further?  (Preemptions are not their doing.)"""
    ends: list[bool] = []
    reason = None
    for event in events:
        if event["event"] == "preempted":
            reason = event.get("reason")
        if event["event"] == "ended":
            at_limit = event["code"] == errors.TASK_REQUEUE and reason == "timeout"
            ends.append(at_limit and event["mark"] == event["before"])
            reason = None
    return len(ends) > 1 and all(ends[-2:])

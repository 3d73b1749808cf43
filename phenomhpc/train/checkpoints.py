"""Writing and resuming from checkpoints (their layout: `phenomhpc.models.checkpoint`).

    step-00001000.tmp-TOKEN/   every rank writes its part (fsynced), rank 0 meta.json
      -> step-00001000/        renamed by rank 0, unless fenced
      -> COMMITTED             last

What holds when killed: before the rename, the checkpoints are those there were, and a folder .tmp-* is never read; between
the rename and COMMITTED the new one does not count; after it, it does.  An attempt that was replaced writes under its own
token and finds itself fenced before the rename.  Retention unmarks a folder before it deletes anything in it.

All of it happens in a thread: `begin` copies the state and returns, training goes on, `wait` gives what it came to.  A disk
without room stops the saving of this step, with an alarm, and not the training.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from torch import Tensor

from phenomhpc.commit import fsync_folder, is_full, make_folder
from phenomhpc.config.training import CheckpointConfig
from phenomhpc.crops.ledger import Ledger, merged
from phenomhpc.errors import NoCheckpointError, PhenomError, WorkError
from phenomhpc.models.checkpoint import (
    COMMITTED,
    META,
    CheckpointMeta,
    average_key,
    committed,
    list_files,
    make_mark,
    model_key,
    step_folder,
)
from phenomhpc.runs import TEMPORARY, TaskContext, commit
from phenomhpc.runs.heartbeat import beat
from phenomhpc.train.faults import note_ledger, read_ledger
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.restoring import agreed, averaged, digest_of, fill
from phenomhpc.train.retention import delete, superseded
from phenomhpc.train.saving import Flight, HostCopies, SharedPlan, Written, write_index, write_share
from phenomhpc.train.shards import is_sharded, own_part, whole
from phenomhpc.train.state import TrainState

T = TypeVar("T")


class DiskFullError(WorkError):
    """There was no room for a checkpoint: the disk is full, or a quota used up."""


@dataclass(frozen=True, kw_only=True)
class _Held:
    """What the thread needs of a state, while the state changes."""

    meta: CheckpointMeta  # without the digests of weights and average
    tensors: dict[str, Tensor]
    weights: dict[str, Tensor]  # of the first rank
    average: dict[str, Tensor]  # of the first rank
    began: float
    blocked: float  # seconds


@dataclass(kw_only=True)
class Checkpoints:
    """The checkpoints of one run as one attempt writes them; every method is called by all ranks together.

    As a context manager: what is under way is brought to its end, also when an error leaves the block.
    """

    ctx: TaskContext
    ranks: Ranks
    config: CheckpointConfig
    describe: Callable[[TrainState, str], CheckpointMeta]
    """The meta of a state, given the digest of its weights."""
    newest: Path | None = None
    """The one that was last committed or resumed from."""
    _beside: Ranks = field(init=False)
    _plan: SharedPlan | None = None
    _copies: HostCopies = field(default_factory=HostCopies)
    _whole_copies: HostCopies = field(default_factory=HostCopies)
    _flight: Flight | None = None
    _full: DiskFullError | None = None

    def __post_init__(self) -> None:
        self._beside = self.ranks.beside()

    @property
    def folder(self) -> Path:
        return self.ctx.paths.checkpoints

    def save(self, state: TrainState) -> Path:
        """Commit the state as step-STEP/ on return; raises FencedError, or WorkError when it cannot be written."""
        self.begin(state)
        return self.finish()

    def begin(self, state: TrainState) -> None:
        """Take what is to be saved and return while it is being written; one that is still under way is waited for.

        Raises what that one failed with, as `wait` does.
        """
        if self._flight is not None and not self._flight.landed and self.ranks.is_first:
            self.ctx.progress.say(
                f"checkpoint of step {state.step}: waits for that of step {self._flight.step}, which is still being "
                "written; a larger checkpoint.every_steps leaves more time"
            )
        self.wait()
        began = time.monotonic()
        tensors = state.tensors()
        if self._plan is None:
            self._plan = SharedPlan.of(tensors, self.ranks)
        weights = {model_key(name): name for name in state.weights()}
        average = {average_key(name): name for name in averaged(state)}
        digested = {key: tensors[key] for key in (*weights, *average)}
        sharded = any(is_sharded(tensor) for tensor in digested.values())
        needed = {name: own_part(tensors[name]) for name in self._plan.names(self.ranks.rank)}
        if self.ranks.is_first and not sharded:
            needed |= digested
        held = self._copies.take(needed) if self.config.background else needed
        wholes = self._take_whole(digested) if sharded else held
        if not self.ranks.is_first:
            weights, average = {}, {}
        taken = _Held(
            meta=self.describe(state, ""),
            tensors=held,
            weights={name: wholes[key] for key, name in weights.items()},
            average={name: wholes[key] for key, name in average.items()},
            began=began,
            blocked=time.monotonic() - began,
        )
        self._full = None
        self._flight = Flight(step=state.step, work=lambda: self._save(taken))
        if not self.config.background:
            self.wait()

    def _take_whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of sharded tensors as whole ones in the first rank's host memory, gathered one by one; none elsewhere."""
        copies: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            gathered = whole(tensor)
            if self.ranks.is_first:
                copies |= self._whole_copies.take({name: gathered})
        return copies

    @property
    def failed(self) -> bool:
        """Is there a failure to be raised by `wait`, which then does not wait?"""
        return self._flight is not None and self._flight.landed and self._flight.failure is not None

    def wait(self) -> Path | None:
        """Return when nothing is under way; the newest.  Raises what the last save failed with, but for a full disk."""
        flight, self._flight = self._flight, None
        if flight is None:
            return self.newest
        if not flight.landed:
            beat("checkpoint", flight.step)  # however long that takes, it is no step that hangs
        flight.join()
        if isinstance(flight.failure, DiskFullError):
            self._full = flight.failure
        elif flight.failure is not None:
            raise flight.failure
        else:
            self.newest = flight.folder
        return self.newest

    def finish(self) -> Path:
        """Return when the save last begun is committed; raises what kept it from that, a full disk too."""
        newest = self.wait()
        if self._full is not None:
            raise self._full
        assert newest is not None
        return newest

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.nullcontext() if error is None else contextlib.suppress(Exception):
            self.wait()

    def _save(self, held: _Held) -> Path:
        """In the thread: write, publish.  Every rank returns the same, or raises the same."""
        final = step_folder(self.folder, held.meta.step)
        temporary = final.with_name(f"{final.name}{TEMPORARY}{self.ctx.token}")
        assert self._plan is not None
        plan, rank = self._plan, self.ranks.rank
        try:
            self._agreed_on(final, lambda: self._begin(temporary), first=True)
            shares = self._agreed_on(final, lambda: write_share(temporary, held.tensors, plan, rank))
            self._agreed_on(final, lambda: self._publish(held, temporary, final, shares), first=True)
        except PhenomError as error:
            if self.ranks.is_first:
                self._clear(temporary, final)
                if isinstance(error, DiskFullError):
                    self._alarm(held.meta.step, error)
            raise
        self._agreed_on(final, lambda: self._tell(held, final), first=True)
        self._agreed_on(final, self._retain, first=True)
        return final

    def _agreed_on(self, final: Path, work: Callable[[], T], *, first: bool = False) -> list[T]:
        """Do `work` on every rank, or on the first; its small results, or on every rank the failure of one."""
        result: T | None = None
        failure: PhenomError | None = None
        try:
            if self.ranks.is_first or not first:
                result = work()
        except PhenomError as error:
            failure = error
        except Exception as error:
            where = "" if self.ranks.world == 1 else f"rank {self.ranks.rank}: "
            text = f"checkpoint {final}: cannot be written ({where}{_reason(error)}); free space, then retry"
            failure = DiskFullError(text) if is_full(error) else WorkError(text)
        answers = self._beside.gather((result, failure))
        for _, problem in answers:
            if problem is not None:
                raise problem
        return [answer for answer, _ in answers]  # type: ignore[misc]

    def _begin(self, temporary: Path) -> None:
        self.ctx.check_fence()
        make_folder(self.folder)
        for leftover in self.folder.glob(f"step-*{TEMPORARY}*"):  # of attempts that died or are fenced
            shutil.rmtree(leftover)
        temporary.mkdir()

    def _publish(self, held: _Held, temporary: Path, final: Path, shares: list[Written]) -> None:
        assert self._plan is not None
        write_index(temporary, self._plan, shares)
        meta = replace(held.meta, weights=digest_of(held.weights))
        if held.average:
            meta = replace(meta, ema_weights=digest_of(held.average))
        commit(temporary / META, meta.to_json(), token=self.ctx.token)
        known = {name: crc for share in shares for name, crc in share.checksums.items()}
        mark = make_mark(temporary, known)
        fsync_folder(temporary)
        self.ctx.check_fence()
        if final.exists():  # torn, or found unreadable: a usable one would have been resumed from
            delete(final)
        temporary.rename(final)
        fsync_folder(self.folder)
        commit(final / COMMITTED, mark, token=self.ctx.token)

    def _clear(self, temporary: Path, final: Path) -> None:
        """Leave nothing half-written: nobody reads it, and it may be what fills the disk."""
        shutil.rmtree(temporary, ignore_errors=True)
        if final.exists() and not (final / COMMITTED).exists():
            shutil.rmtree(final, ignore_errors=True)

    def _alarm(self, step: int, error: DiskFullError) -> None:
        """Say that there is no room; even that may fail for want of it."""
        since = "none is committed" if self.newest is None else f"the newest is {self.newest.name}"
        text = f"{error}: step {step} is not saved, {since}; training goes on, the next checkpoint is tried again"
        with contextlib.suppress(OSError):
            self.ctx.progress.say(f"ALARM: {text}")
        with contextlib.suppress(OSError):
            self.ctx.events.emit("alarm", step=step, what="disk_full", message=text)

    def _tell(self, held: _Held, final: Path) -> None:
        size = sum(size for _, size in list_files(final))
        seconds = time.monotonic() - held.began
        with contextlib.suppress(OSError):  # it is committed, whether there is room for a line or not
            self.ctx.events.emit("checkpoint", step=held.meta.step, bytes=size, seconds=seconds, blocked_s=held.blocked)

    def _retain(self) -> None:
        for entry in superseded(self.folder, self.config):
            delete(entry)

    def resume(self, state: TrainState, say: Callable[[str], None]) -> Path | None:
        """Put the newest usable checkpoint into `state` and return its folder; None where no step was ever committed.

        Torn and unreadable ones are passed over, each with a line.  Raises UsageError when the checkpoint is of another
        architecture, snapshot or order of the data, NoCheckpointError when some were committed and none can be read.
        """
        candidates = self.ranks.on_first(lambda: list(committed(self.folder, say)))
        for folder in candidates:
            meta = self.ranks.on_first(lambda folder=folder: agreed(folder, self.describe(state, "")))  # type: ignore[misc]
            failure = fill(state, folder, meta, self.ranks)
            if not self.ranks.any(failure is not None):
                state.step, state.init_from = meta.step, meta.init_from
                noted = self.ranks.on_first(lambda: read_ledger(self.folder))
                state.skip_ledger = merged((*meta.skip_ledger, *noted))
                self.newest = folder
                return folder
            if self.ranks.is_first:
                say(f"checkpoint {folder}: passed over, {failure or 'another rank cannot read it'}")
        marked = self.ranks.on_first(lambda: [path.parent.name for path in self.folder.glob(f"step-*/{COMMITTED}")])
        if marked:
            raise NoCheckpointError(
                f"run {self.ctx.paths.id}: none of the checkpoints {', '.join(sorted(marked))} can be read; "
                f"restore one, or remove {self.folder} to begin again"
            )
        return None

    def roll_back(self, state: TrainState, ledger: Ledger, say: Callable[[str], None]) -> Path | None:
        """Go back to the newest usable checkpoint, from where these samples are left out as well; None where there is none.

        All of them must lie behind what any checkpoint has seen.  Killed here, the run goes on from that checkpoint, with
        or without the ledger.
        """
        if self.wait() is None:
            return None

        def note() -> None:
            self.ctx.check_fence()
            note_ledger(self.folder, merged((*state.skip_ledger, *ledger)), token=self.ctx.token)

        self.ranks.on_first(note)
        return self.resume(state, say)


def _reason(error: BaseException) -> str:
    """One line of an error, of the operating system's where it is behind another's words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

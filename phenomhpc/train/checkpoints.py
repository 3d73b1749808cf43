"""Writing and resuming from checkpoints (their layout: `phenomhpc.models.checkpoint`).

    step-00001000.tmp-TOKEN/   every rank writes its part (fsynced), rank 0 meta.json
      -> step-00001000/        renamed by rank 0, unless fenced
      -> COMMITTED             last

What holds when killed: before the rename, the checkpoints are those there were, and a folder .tmp-* is never read; between
the rename and COMMITTED the new one does not count; after it, it does.  An attempt that was replaced writes under its own
token and finds itself fenced before the rename.  Retention unmarks a folder before it deletes anything in it.
"""

from __future__ import annotations

import json
import re
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from phenomhpc.commit import fsync_folder, make_folder
from phenomhpc.errors import NoCheckpointError, WorkError
from phenomhpc.models.checkpoint import (
    COMMITTED,
    META,
    CheckpointMeta,
    committed,
    damage,
    files_digest,
    list_files,
    load_tensors,
    read_meta,
    require_same,
    step_folder,
    weights_digest,
)
from phenomhpc.models.kinds import complete_fields
from phenomhpc.runs import TEMPORARY, TaskContext, commit
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.state import TrainState

_STEP = re.compile(r"^step-(\d{8,})$")


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one run as one attempt writes them; every method is called by all ranks together."""

    ctx: TaskContext
    ranks: Ranks
    keep: int
    describe: Callable[[TrainState, str], CheckpointMeta]
    """The meta of a state, given the digest of its weights."""

    @property
    def folder(self) -> Path:
        return self.ctx.paths.checkpoints

    def save(self, state: TrainState) -> Path:
        """Commit the state as step-STEP/ on return; raises FencedError, or WorkError when it cannot be written."""
        began = time.monotonic()
        final = step_folder(self.folder, state.step)
        temporary = final.with_name(f"{final.name}{TEMPORARY}{self.ctx.token}")
        self.ranks.on_first(lambda: self._begin(temporary))
        try:
            with warnings.catch_warnings():
                # One rank without a process group is meant, and says so.
                warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
                save(state.tensors(), storage_writer=FileSystemWriter(temporary, sync_files=True))
        except (OSError, CheckpointException) as error:
            raise WorkError(
                f"checkpoint {final}: cannot be written ({_reason(error)}); free space, then retry"
            ) from error
        self.ranks.on_first(lambda: self._publish(state, temporary, final, began))
        return final

    def _begin(self, temporary: Path) -> None:
        self.ctx.check_fence()
        make_folder(self.folder)
        for leftover in self.folder.glob(f"step-*{TEMPORARY}*"):  # of attempts that died or are fenced
            shutil.rmtree(leftover)
        temporary.mkdir()

    def _publish(self, state: TrainState, temporary: Path, final: Path, began: float) -> None:
        weights = {name: tensor.cpu() for name, tensor in state.weights().items()}
        commit(temporary / META, self.describe(state, weights_digest(weights)).to_json(), token=self.ctx.token)
        files = list_files(temporary)
        fsync_folder(temporary)
        self.ctx.check_fence()
        if final.exists():  # torn, or found unreadable: a usable one would have been resumed from
            _delete(final)
        temporary.rename(final)
        fsync_folder(self.folder)
        mark = {"files": [list(file) for file in files], "sha256": files_digest(files)}
        commit(final / COMMITTED, json.dumps(mark), token=self.ctx.token)
        self.ctx.events.emit(
            "checkpoint", step=state.step, bytes=sum(size for _, size in files), seconds=time.monotonic() - began
        )
        self._retain()

    def _retain(self) -> None:
        """Delete all but the newest `keep` committed step folders and whatever is newer than those."""
        steps = sorted(entry for entry in self.folder.iterdir() if _STEP.match(entry.name))
        usable = [entry for entry in steps if damage(entry) is None]
        for entry in steps[: steps.index(usable[-self.keep :][0])]:
            _delete(entry)

    def resume(self, state: TrainState, say: Callable[[str], None]) -> Path | None:
        """Put the newest usable checkpoint into `state` and return its folder; None where no step was ever committed.

        Torn and unreadable ones are passed over, each with a line.  Raises UsageError when the checkpoint is of another
        architecture, snapshot or order of the data, NoCheckpointError when some were committed and none can be read.
        """
        candidates = self.ranks.on_first(lambda: list(committed(self.folder, say)))
        for folder in candidates:
            meta = self.ranks.on_first(lambda folder=folder: self._agreed(folder, state))  # type: ignore[misc]
            failure = self._load(folder, meta, state)
            if not self.ranks.any(failure is not None):
                state.step, state.init_from = meta.step, meta.init_from
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

    def _agreed(self, folder: Path, state: TrainState) -> CheckpointMeta:
        there, here = read_meta(folder), self.describe(state, "")
        way_out = "resume with the run's own settings, or begin a new run with --new-run"
        require_same(folder, there.model, complete_fields(here.model), "model.", way_out=way_out)
        for name in (
            "channels",
            "scale",
            "dtype",
            "illumination",
            "snapshot",
            "seed",
            "global_batch",
            "optimiser",
            "random_scheme",
        ):
            require_same(folder, {name: getattr(there, name)}, {name: getattr(here, name)}, "", way_out=way_out)
        return there

    def _load(self, folder: Path, meta: CheckpointMeta, state: TrainState) -> str | None:
        """Fill the state; why it could not be done, or None."""
        tensors = state.tensors()
        on_cpu = {
            name: tensor if tensor.device.type == "cpu" else torch.empty_like(tensor, device="cpu")
            for name, tensor in tensors.items()
        }
        try:
            load_tensors(folder, on_cpu)
        except WorkError as error:
            return str(error)
        for name, tensor in tensors.items():
            if tensor is not on_cpu[name]:
                tensor.copy_(on_cpu[name])
        if weights_digest({name: tensor.cpu() for name, tensor in state.weights().items()}) != meta.weights:
            return "its weights are not those that were saved"
        return None


def _delete(folder: Path) -> None:
    """Remove a step folder; a kill in between leaves one without its mark, which is never read."""
    (folder / COMMITTED).unlink(missing_ok=True)
    fsync_folder(folder)
    shutil.rmtree(folder)


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {cause}"
    return str(error)

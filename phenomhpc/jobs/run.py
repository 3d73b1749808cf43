"""run: anybody's script as one gang, under the same gate, requeue, logs, fence, events and provenance as our own jobs.

    node 0:  ranks of the script -> how they ended -> parting-START/0.json \\
    node 1:  ranks of the script -> how they ended -> parting-START/1.json  > all done: tally;  one failed: the others leave
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phenomhpc.config.models import RunConfig
from phenomhpc.errors import (
    TASK_REQUEUE,
    HungError,
    KilledError,
    ScriptFailedError,
    StopRequested,
    UsageError,
    WorkError,
)
from phenomhpc.jobs.base import GangPlan, Summary, TaskOutcome
from phenomhpc.jobs.script import Ending, last_traceback, patience, run_script
from phenomhpc.jobs.script_code import script_folder
from phenomhpc.jobs.script_environment import Meeting, node_environment, rank_environment
from phenomhpc.nodes.interface import interface_of
from phenomhpc.runs import canonical_json, commit, make_folder
from phenomhpc.slurm.inside import signal_lead_s

if TYPE_CHECKING:
    from phenomhpc.progress import Progress
    from phenomhpc.runs import RunPaths, TaskContext, Unit

_LOOPBACK = "127.0.0.1"
# Below the ports that Linux hands out by itself (32768 and up): nobody else's connection sits there by chance.
_PORTS = (20000, 12000)  # first, how many
_PEERS_POLL_S = 0.2


def plan(config: RunConfig, paths: RunPaths) -> GangPlan:
    """One task per node.  Raises UsageError for a folder, a program or a script that is not there."""
    folder = script_folder(config, paths, paths.last_attempt() + 1)
    if not folder.is_dir():
        raise UsageError(f"run: workdir={folder}: no such folder; the command is run there")
    program = config.command[0]
    found = shutil.which(program) if os.sep not in program else shutil.which(folder / program)
    if found is None:
        raise UsageError(f"run: {program}: no such program here; is its environment activated, or its path right?")
    script = next((word for word in config.command[1:] if not word.startswith("-")), "")
    before = config.command[1 : config.command.index(script)] if script else ()
    if script.endswith((".py", ".sh")) and not {"-m", "-c"} & set(before) and not (folder / script).is_file():
        raise UsageError(f"run: {script}: no such file in {folder}; give its path, or the folder with --workdir")
    return GangPlan(num_nodes=config.cluster.nodes, noun="commands")


def workers(config: RunConfig, units: Sequence[Unit]) -> int:
    """One process, which starts this node's part of the script."""
    return 1


def run(config: RunConfig, ctx: TaskContext) -> TaskOutcome:
    """This node's ranks, to their end and that of the others.

    Raises StopRequested when the script has left to be requeued, ScriptFailedError with its exit code and last traceback,
    KilledError when it was killed, HungError when it was silent for too long.
    What holds when killed here: the script's processes die too; what it has saved stays, and is what it goes on from.
    """
    parting = _Parting(ctx=ctx, start=start_of(ctx.token))
    if parting.was_done():
        return TaskOutcome(units_done=1)
    for folder in (ctx.paths.output, ctx.paths.checkpoints):
        make_folder(folder)
    before = ctx.paths.saved()
    stop_file = ctx.paths.attempt(ctx.attempt).stop_file(ctx.task)
    environments = _environments(config, ctx)
    folder = script_folder(config, ctx.paths, ctx.attempt)
    ctx.progress.say(f"{shlex.join(config.command)}: {len(environments)} process(es) in {folder}")
    how = patience(signal_lead_s(), config.stop_signal, config.stop_wait_s, config.grace_s)
    try:
        ending = run_script(
            config.command,
            folder,
            environments,
            stop_file=stop_file,
            patience=how,
            look=parting.look,
            silent_limit_s=config.silent_limit_s,
        )
    except HungError as error:
        parting.leave("failed", str(error))
        raise
    except OSError as error:
        parting.leave("failed", f"{config.command[0]}: {error.strerror}")
        raise UsageError(f"run: {config.command[0]}: cannot be started in {folder}: {error.strerror}") from error
    failure = _error_of(ending, progressed=ctx.paths.saved() != before)
    told = ending.state if failure is None or isinstance(failure, StopRequested) else "failed"
    parting.leave(told, "" if failure is None else str(failure))
    if failure is not None:
        raise failure
    parting.wait()
    return TaskOutcome(units_done=1)


def finish(config: RunConfig, paths: RunPaths, progress: Progress) -> Summary:
    """Nothing is left to do: a gang's tally is written when the script has ended well on all nodes."""
    return Summary(text=f"{shlex.join(config.command)}: ended well on {config.cluster.nodes} node(s); {paths.root}")


# -- the environment --------------------------------------------------------------------------------------------------


def start_of(token: str) -> int:
    """How often Slurm had restarted the job when a start claimed its token."""
    number = token.rpartition(".")[2].partition("-")[0]
    return int(number) if number.isdigit() else 0


def contract(ctx: TaskContext) -> dict[str, str]:
    """What a script is told about its run; PHENOMHPC_HEARTBEAT is set by the guard, where there is one."""
    paths = ctx.paths
    return {
        "PHENOMHPC_RUN_DIR": str(paths.root),
        "PHENOMHPC_OUTPUT": str(paths.output),
        "PHENOMHPC_CHECKPOINTS": str(paths.checkpoints),
        "PHENOMHPC_ATTEMPT": str(ctx.attempt),
        "PHENOMHPC_RESTARTS": str(start_of(ctx.token)),
        "PHENOMHPC_STOP_FILE": str(paths.attempt(ctx.attempt).stop_file(ctx.task)),
    }


def _environments(config: RunConfig, ctx: TaskContext) -> list[dict[str, str]]:
    meeting = meeting_of(config, ctx, os.environ)
    if config.launcher == "plain":
        return [node_environment(os.environ, meeting, contract(ctx))]
    return [rank_environment(os.environ, meeting, contract(ctx), rank) for rank in range(meeting.ranks_per_node)]


def meeting_of(config: RunConfig, ctx: TaskContext, environment: Mapping[str, str]) -> Meeting:
    """Where the ranks of this start meet: at the first node, on a port that follows from the job."""
    several = ctx.num_nodes > 1
    ranks = 1 if config.launcher == "plain" else config.ranks_per_node or _gpus_here(config, environment) or 1
    address = socket.gethostbyname(ctx.hosts[ctx.node_rank]) if several else _LOOPBACK
    return Meeting(
        id=f"{ctx.paths.id}.{ctx.attempt}.{start_of(ctx.token)}",
        num_nodes=ctx.num_nodes,
        node_rank=ctx.node_rank,
        ranks_per_node=ranks,
        address=ctx.hosts[0] if several else _LOOPBACK,
        port=port_of(ctx.job_id or "", ctx.paths.id) if several else _free_port(),
        interface=interface_of(address),
        threads=max(1, len(os.sched_getaffinity(0)) // ranks),
    )


def port_of(job_id: str, run_id: str) -> int:
    """The same on every node of a job, another for another job."""
    first, count = _PORTS
    digits = "".join(filter(str.isdigit, job_id))
    return first + (int(digits) if digits else zlib.crc32(run_id.encode())) % count


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _gpus_here(config: RunConfig, environment: Mapping[str, str]) -> int:
    """GPUs that this node's part may use: as asked of Slurm, as made visible, else those of the machine."""
    if config.cluster.gpus_per_node is not None:
        return config.cluster.gpus_per_node
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([word for word in visible.split(",") if word.strip()])
    cards = Path("/proc/driver/nvidia/gpus")
    return len(list(cards.iterdir())) if cards.is_dir() else 0


# -- how it ended -----------------------------------------------------------------------------------------------------


def _error_of(ending: Ending, *, progressed: bool) -> Exception | None:
    """What a script's end means; None: it has done its work."""
    if ending.state == "done":
        return None
    if ending.state == "stopped":
        if ending.asked or progressed:
            return StopRequested(ending.words)
        return ScriptFailedError(
            f"the script asked to go on ({TASK_REQUEUE}), but saved nothing new in the folder PHENOMHPC_CHECKPOINTS",
            code=TASK_REQUEUE,
            kind="no_progress",
        )
    if ending.code < 0:
        name = signal.Signals(-ending.code).name
        return KilledError(
            f"rank {ending.rank}: killed by {name}{f'; last words: {ending.words}' * bool(ending.words)}"
        )
    traceback, words = last_traceback(ending.tail)
    message = f"rank {ending.rank}: exit code {ending.code}{f': {words}' * bool(words)}"
    return ScriptFailedError(message, code=ending.code, traceback=traceback)


@dataclass(frozen=True, kw_only=True)
class _Parting:
    """What the nodes of one start tell each other of their end, so that none waits for one that is gone."""

    ctx: TaskContext
    start: int

    def leave(self, state: str, words: str) -> None:
        if self.ctx.num_nodes == 1:
            return
        self.ctx.check_fence()
        file = self._folder(self.start) / f"{self.ctx.task}.json"
        make_folder(file.parent)
        commit(file, canonical_json({"state": state, "words": words}))

    def look(self) -> bool:
        """Has another node's part left to be requeued?  Raises WorkError when another's has failed."""
        left_early = False
        for task, left in self._read(self.start).items():
            if left["state"] == "failed":
                host = self.ctx.hosts[task] if task < len(self.ctx.hosts) else f"node {task}"
                raise WorkError(f"connection closed: the script has ended on {host}: {left['words']}")
            left_early = left_early or left["state"] == "stopped"
        return left_early

    def wait(self) -> None:
        """Until the script has ended on every node; raises StopRequested when it is to go on from elsewhere."""
        while True:
            left = self._read(self.start)
            if len(left) == self.ctx.num_nodes - 1 and all(each["state"] == "done" for each in left.values()):
                return
            if any(each["state"] == "stopped" for each in left.values()):
                raise StopRequested("the script has ended here, and was asked to stop on another node")
            self.look()
            time.sleep(_PEERS_POLL_S)

    def was_done(self) -> bool:
        """Has an earlier start of this attempt ended well on all nodes?"""
        return self.ctx.num_nodes > 1 and any(
            {left["state"] for left in self._read(start, own=True).values()} == {"done"}
            and len(self._read(start, own=True)) == self.ctx.num_nodes
            for start in range(self.start)
        )

    def _folder(self, start: int) -> Path:
        return self.ctx.paths.attempt(self.ctx.attempt).parting(start)

    def _read(self, start: int, *, own: bool = False) -> dict[int, dict[str, Any]]:
        """How the others have ended, by task."""
        folder = self._folder(start)
        if self.ctx.num_nodes == 1 or not folder.is_dir():
            return {}
        files = {int(file.stem): file for file in folder.glob("*.json")}
        return {task: json.loads(file.read_bytes()) for task, file in files.items() if own or task != self.ctx.task}

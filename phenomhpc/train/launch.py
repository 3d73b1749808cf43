"""One node's part of a gang: its ranks under torch's elastic agent, in this process.

One rank on one node runs right here, without an agent.  Several ranks, on one node or on many, meet by the rounds of this start
(train/rounds.py).  The agent never restarts ranks that failed of themselves: what comes after a failure is decided outside, from
the run directory, so a rank's exit code has to come through as it is.  In an elastic gang it begins a new round without a node
that was lost.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing.forkserver
import os
import signal
import socket
import time
import traceback
from pathlib import Path
from typing import NoReturn

import torch
from torch.distributed.elastic.agent.server.api import RunResult
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from phenomhpc import progress as progress_module
from phenomhpc.config.training import PretrainConfig
from phenomhpc.errors import (
    FencedError,
    KilledError,
    NoCheckpointError,
    PhenomError,
    StopRequested,
    UsageError,
    WorkError,
    is_lost_peer,
)
from phenomhpc.nodes.interface import interface_of
from phenomhpc.runs import TaskContext
from phenomhpc.runs.heartbeat import rest
from phenomhpc.train.agent import Agent
from phenomhpc.train.loop import TrainResult, train
from phenomhpc.train.peers import Peers
from phenomhpc.train.rounds import Rounds, Standing, always_standing
from phenomhpc.train.validation import Draw

_LOOPBACK = "127.0.0.1"
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
# The agent takes these over and does not give them back.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_KINDS = {kind.exit_code: kind for kind in (WorkError, UsageError, StopRequested, FencedError, NoCheckpointError)}
# What multiprocessing says of a rank whose end it was not told, since the fork server, whose child it is, has gone.
_UNTOLD = 255
# Loaded once per node, so that the ranks of this round and of the next begin in a moment.
_PRELOADED = ["phenomhpc.train.launch", "torch.distributed.checkpoint.state_dict_saver", "torch._dynamo"]


def launch(
    config: PretrainConfig, ctx: TaskContext, standing: Standing = always_standing, draw: Draw | None = None
) -> TrainResult:
    """Run this node's ranks to their end; the result of its first rank.

    standing: does Slurm still count this node among the job's?  Asked before a node takes part in a further round.
    draw: as of `train`; a function of a module, since ranks are other processes.
    Raises what the ranks raised: StopRequested, FencedError, NoCheckpointError, UsageError, or WorkError with the last
    line of the failed rank's traceback (the whole of it is in the log); NodesLost when too few nodes are left.
    """
    local = ranks_here(config)
    threads = config.threads_per_rank or max(1, cores_here() // local)
    config = config.model_copy(update={"threads_per_rank": threads})
    if local == 1 and ctx.num_nodes == 1:
        return train(config, ctx, draw)
    rest()  # from here on the ranks are watched
    address = socket.gethostbyname(ctx.hosts[ctx.node_rank]) if ctx.num_nodes > 1 else _LOOPBACK
    before = dict(os.environ)
    try:
        _prepare_environment(address, threads)
        _preload(guarded=ctx.job_id is not None)
        return _under_agent(config, ctx, standing, local, address, draw)
    finally:  # the caller's next job may be another: its network, its cores
        os.environ.clear()
        os.environ.update(before)


def _under_agent(
    config: PretrainConfig, ctx: TaskContext, standing: Standing, local: int, address: str, draw: Draw | None
) -> TrainResult:
    shows = type(ctx.progress) is not type(progress_module.silent())
    task = dataclasses.replace(ctx, progress=progress_module.silent())
    elastic = config.cluster.elastic and ctx.num_nodes > 1
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    caught: signal.Signals | None = None
    try:
        key = f"{ctx.paths.id}.{ctx.attempt}.{ctx.start}"
        with Peers(key=key, rank=ctx.node_rank, address=address, lost_after_s=config.cluster.lost_after_s) as peers:
            rounds = Rounds(
                files=ctx.paths.attempt(ctx.attempt).rounds(ctx.start), run_id=key, rank=ctx.node_rank, hosts=ctx.hosts,
                least=(config.cluster.min_nodes or 1) if elastic else ctx.num_nodes, peers=peers, standing=standing,
            )  # fmt: skip
            return _result(
                Agent(_rank_main, config, task, shows, draw, rounds=rounds, local=local, elastic=elastic).run()
            )
    except SignalException as error:  # the agent has ended its ranks; the signal takes its usual course below
        caught = error.sigval
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    signal.raise_signal(caught)
    raise WorkError(f"run {ctx.paths.id}: ended by {caught.name}")


def ranks_here(config: PretrainConfig) -> int:
    """Training processes of this node: as configured, else one per GPU, else one."""
    if config.ranks_per_node is not None:
        return config.ranks_per_node
    if config.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.device_count()
    return 1


def cores_here() -> int:
    """Cores that are this task's: those it may run on, or fewer where Slurm gave it fewer and does not bind it."""
    granted = os.environ.get("SLURM_CPUS_ON_NODE", "")
    usable = len(os.sched_getaffinity(0))
    return min(usable, int(granted)) if granted.isdigit() and int(granted) else usable


def _prepare_environment(address: str, threads: int) -> None:
    """What ranks inherit.  A person's own settings stay.

    gloo binds to the interface on which this node is known to the others; left alone it takes what the hostname resolves to.
    All nodes have as many ranks, so the agents need no store to number them.
    """
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    interface = interface_of(address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def _preload(*, guarded: bool) -> None:
    """Start the process that ranks are forked from; it loads torch while the nodes still look for each other."""
    multiprocessing.set_forkserver_preload(["phenomhpc.train.deaf", *_PRELOADED] if guarded else _PRELOADED)
    if guarded:  # the agent is deaf to it, too
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGINT,SIGHUP,SIGQUIT"
    before = os.environ.get("PYTHONWARNINGS")
    # Ranks that are killed leave a semaphore behind; the tracker, which starts here, cleans up and need not say so.
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        del os.environ["PYTHONWARNINGS"]
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


def _result(result: RunResult) -> TrainResult:
    if result.is_failed():
        rank, failure = min(result.failures.items(), key=lambda item: item[1].timestamp)
        raise _failure_of(rank, failure)
    return min(result.return_values.items())[1]  # type: ignore[no-any-return]


def _rank_main(config: PretrainConfig, ctx: TaskContext, shows: bool, draw: Draw | None) -> TrainResult:
    """One rank, in its own process.  A failure leaves as the exit code that stands for it."""
    first_here = os.environ.get("RANK") == "0"
    if shows and first_here:
        ctx = dataclasses.replace(ctx, progress=progress_module.console())
    try:
        return train(config, ctx, draw)
    except PhenomError as error:
        _leave(error.exit_code, str(error))
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        if config.cluster.elastic and is_lost_peer(message):
            _leave(1, f"rank {os.environ.get('RANK')} lost another: {message.splitlines()[0]}")
        traceback.print_exc()
        _leave(1, message)


def _leave(code: int, message: str) -> NoReturn:
    """End this rank at once.

    Not by an exception: torch's process wrapper turns any into exit code 1; and not by SystemExit: threads of the
    process group may still wait for a peer that is gone.
    """
    record = {"message": message, "timestamp": int(time.time())}
    Path(os.environ[_ERROR_FILE]).write_text(json.dumps(record))
    os._exit(code)


def _failure_of(rank: int, failure: ProcessFailure) -> PhenomError:
    """The error that a rank's exit code and message stand for."""
    unknown = failure.exitcode == _UNTOLD
    kind = KilledError if failure.exitcode < 0 or unknown else _KINDS.get(failure.exitcode, WorkError)
    message = "the process that starts this node's ranks was killed" if unknown else str(failure.message)
    if kind in (WorkError, KilledError):
        message = f"rank {rank}: {message}"
    return kind(message)

"""One node's part of a gang: its ranks under torch's elastic agent, in this process.

One rank on one node runs right here, without an agent.  Several ranks on one node meet over loopback; several nodes meet
at the first host, on a port derived from the Slurm job.  The agent never restarts ranks: what comes after a failure is
decided outside, from the run directory, so a rank's exit code has to come through as it is.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import socket
import time
import traceback
import zlib
from pathlib import Path
from typing import NoReturn

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from phenomhpc import progress as progress_module
from phenomhpc.config.models import PretrainConfig
from phenomhpc.errors import (
    FencedError,
    KilledError,
    NoCheckpointError,
    PhenomError,
    StopRequested,
    UsageError,
    WorkError,
)
from phenomhpc.runs import TaskContext
from phenomhpc.runs.heartbeat import rest
from phenomhpc.train.loop import TrainResult, train
from phenomhpc.train.ranks import interface_of

_LOOPBACK = "127.0.0.1"
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_JOIN_TIMEOUT_S = 600
# The agent takes these over and does not give them back.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_PORTS = (20000, 20000)  # first, how many
_KINDS = {kind.exit_code: kind for kind in (WorkError, UsageError, StopRequested, FencedError, NoCheckpointError)}


def launch(config: PretrainConfig, ctx: TaskContext) -> TrainResult:
    """Run this node's ranks to their end; the result of its first rank.

    Raises what the ranks raised: StopRequested, FencedError, NoCheckpointError, UsageError, or WorkError with the last
    line of the failed rank's traceback (the whole of it is in the log).
    """
    local = ranks_here(config)
    threads = config.threads_per_rank or max(1, len(os.sched_getaffinity(0)) // local)
    config = config.model_copy(update={"threads_per_rank": threads})
    if local == 1 and ctx.num_nodes == 1:
        return train(config, ctx)
    rest()  # from here on the ranks are watched
    _prepare_environment(ctx, threads)
    draws = type(ctx.progress) is not type(progress_module.silent())
    task = dataclasses.replace(ctx, progress=progress_module.silent())
    # It logs a rank's exit as a failure, with its own traceback; ours is in the log already, and a stop is no failure.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    caught: signal.Signals | None = None
    try:
        results = elastic_launch(_launch_config(ctx, local), _rank_main)(config, task, draws)
        return min(results.items())[1]  # type: ignore[no-any-return]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise _failure_of(rank, failure) from error
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


def _launch_config(ctx: TaskContext, local: int) -> LaunchConfig:
    several = ctx.num_nodes > 1
    return LaunchConfig(
        min_nodes=ctx.num_nodes,
        max_nodes=ctx.num_nodes,
        nproc_per_node=local,
        run_id=f"{ctx.paths.id}.{ctx.attempt}.{ctx.token.rpartition('.')[2]}",
        rdzv_backend="c10d",
        rdzv_endpoint=f"{ctx.hosts[0]}:{rendezvous_port(ctx)}" if several else f"{_LOOPBACK}:0",
        rdzv_configs={
            "join_timeout": _JOIN_TIMEOUT_S,
            "last_call_timeout": 2,
            "keep_alive_interval": 1,
            "keep_alive_max_attempt": 3,
            # Which node serves the rendezvous must not depend on how its name resolves (Debian: 127.0.1.1).
            "is_host": str(ctx.node_rank == 0),
        },
        local_addr=ctx.hosts[ctx.node_rank] if several else _LOOPBACK,
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
    )


def rendezvous_port(ctx: TaskContext) -> int:
    """The same on every node of a job, another for another job."""
    first, count = _PORTS
    digits = "".join(filter(str.isdigit, ctx.job_id or ""))
    return first + (int(digits) if digits else zlib.crc32(ctx.paths.id.encode())) % count


def _prepare_environment(ctx: TaskContext, threads: int) -> None:
    """What ranks inherit.  A person's own settings stay.

    torch 2.13 would share the agents' store between rounds, with stale addresses after a restart.  gloo binds to the
    interface on which this node is known to the others; left alone it takes what the hostname resolves to.
    """
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    address = socket.gethostbyname(ctx.hosts[ctx.node_rank]) if ctx.num_nodes > 1 else _LOOPBACK
    interface = interface_of(address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def _rank_main(config: PretrainConfig, ctx: TaskContext, draws: bool) -> TrainResult:
    """One rank, in its own process.  A failure leaves as the exit code that stands for it."""
    first_here = os.environ.get("RANK") == "0"
    if draws and first_here:
        ctx = dataclasses.replace(ctx, progress=progress_module.console())
    try:
        return train(config, ctx)
    except PhenomError as error:
        _leave(error.exit_code, str(error))
    except Exception as error:
        traceback.print_exc()
        _leave(1, f"{type(error).__name__}: {error}")


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
    kind = KilledError if failure.exitcode < 0 else _KINDS.get(failure.exitcode, WorkError)
    message = str(failure.message)
    if kind in (WorkError, KilledError):
        message = f"rank {rank}: {message}"
    return kind(message)

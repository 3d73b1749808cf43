"""The errors that reach a person, and the exit codes they stand for.

Every refusal is one line that names the thing, the value and the way out.  Code raises these; only `cli/main.py` turns
them into an exit code and a line on stderr.
"""

from __future__ import annotations

import re
from collections.abc import Callable

DONE = 0
WORK_FAILED = 1
WRONG_USE = 2
SET_ASIDE = 3
UNREACHABLE = 4

# Exit codes of one task inside a Slurm job: the batch script and the steward act on them.
TASK_REQUEUE = 75
TASK_FENCED = 76
TASK_GATE_REFUSED = 77
TASK_WATCHDOG = 78
TASK_NO_CHECKPOINT = 79


class PhenomError(Exception):
    """A failure with one clear line for a person and an exit code for a script."""

    exit_code = WORK_FAILED


class WorkError(PhenomError):
    """The work itself failed (exit code 1)."""


class DamagedInputError(WorkError):
    """Stored input is not what was recorded: trying again helps only after it was repaired."""


class ScriptFailedError(WorkError):
    """Somebody's script has ended with an exit code of its own, where there is one with its traceback.

    code: the script's; kind: the class of the failure where it is none of the code's.
    """

    def __init__(self, message: str, *, code: int, traceback: str | None = None, kind: str | None = None) -> None:
        super().__init__(message)
        self.code, self.traceback, self.kind = code, traceback, kind
        # A script's 75 to 79 do not mean what ours do.
        self.exit_code = WORK_FAILED if TASK_REQUEUE <= code <= TASK_NO_CHECKPOINT else code


class DamagedError(WorkError):
    """Pixels of a store that cannot be read.  forget(): let go of what was opened, so that the next try opens it anew."""

    def __init__(self, message: str, forget: Callable[[], None] = lambda: None) -> None:
        super().__init__(message)
        self.forget = forget


class HungError(WorkError):
    """The work shows no sign of life (the task leaves with 78)."""

    exit_code = TASK_WATCHDOG


class KilledError(WorkError):
    """A process of the work was killed by a signal that nobody here sent: the node's doing, or memory's."""


class UsageError(PhenomError):
    """Wrong use, configuration or input; nothing was started (exit code 2)."""

    exit_code = WRONG_USE


class UnreachableError(PhenomError):
    """Slurm or another needed service cannot be reached (exit code 4)."""

    exit_code = UNREACHABLE


class StopRequested(PhenomError):
    """A stop file or signal was seen and the work was committed: this task is to be requeued (exit code 75)."""

    exit_code = TASK_REQUEUE


class FencedError(PhenomError):
    """A newer attempt owns the run: this process must leave without writing (exit code 76)."""

    exit_code = TASK_FENCED


class GateRefused(PhenomError):
    """A node is not fit for the work, and nothing was started (exit code 77); node: its name, None where none is known."""

    exit_code = TASK_GATE_REFUSED

    def __init__(self, message: str, node: str | None = None) -> None:
        super().__init__(message)
        self.node = node


class NoCheckpointError(PhenomError):
    """No committed, readable checkpoint where one is needed (exit code 79)."""

    exit_code = TASK_NO_CHECKPOINT


class NodesLost(PhenomError):
    """Fewer nodes are left than the work needs, and what was committed can be gone on with: it is to be requeued (exit code 75)."""

    exit_code = TASK_REQUEUE


# What a rank says when it was another one that went away: gloo's, NCCL's and the rendezvous store's words.
_LOST_PEER = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|DistNetworkError|DistStoreError|DistBackendError"
    r"|Rendezvous\w*Error|TCPStore",
    re.IGNORECASE,
)


def is_lost_peer(message: str) -> bool:
    """Do a rank's last words blame another rank?"""
    return _LOST_PEER.search(message) is not None

"""A process that ends with the one that started it.  Linux only."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """This process is killed when the thread that started it ends: its parent's death, or that thread's."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

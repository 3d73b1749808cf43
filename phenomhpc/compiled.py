"""Functions of numbers and arrays compiled for this machine: numba, with the choices that all of ours share.

Compiled once, some seconds, when a module that has such functions is first imported; kept beside that module, or in the user's
cache folder where that cannot be written.  Where neither can, each process compiles for itself.  They let go of Python's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(*signatures: str) -> Callable[[F], F]:
    """Compiled for these signatures (numba's strings) at once, not for what comes along in the middle of a training."""

    def make(function: F) -> F:
        try:
            return cast(F, numba.njit(list(signatures), nogil=True, cache=True)(function))
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return cast(F, numba.njit(list(signatures), nogil=True)(function))

    return make


def part(function: F) -> F:
    """What compiled functions call: compiled with them."""
    return cast(F, numba.njit(nogil=True)(function))

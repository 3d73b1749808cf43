"""Functions of numbers and arrays compiled for this machine: numba, with the choices that all of ours share.

Compiled once, some seconds, when a module that has such functions is first imported; kept beside that module, or in the user's
cache folder where that cannot be written.  Where neither can, each process compiles for itself.  They let go of Python's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba.extending import intrinsic
from numba.np import linalg

F = TypeVar("F", bound=Callable[..., Any])


def _load_without_scipy() -> None:
    """Load what numba knows of arrays, but not scipy.linalg, of which it only asks whether it is there, for a covariance: half of
    the time that it takes to have a compiled function."""

    def absent() -> None:
        raise ImportError("linear algebra is not compiled here")

    ensure, linalg.ensure_blas = linalg.ensure_blas, absent
    try:
        import numba.np.arraymath  # noqa: F401
    finally:
        linalg.ensure_blas = ensure


_load_without_scipy()


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


def inlined(function: F) -> F:
    """The same, put in wherever it is called, so that what it takes and gives stays in registers."""
    return cast(F, numba.njit(nogil=True, forceinline=True)(function))


def instruction(function: Callable[..., Any]) -> Any:
    """What compiled functions call and LLVM's own instructions are made of: gives its signature, and what emits them."""
    return intrinsic(function)

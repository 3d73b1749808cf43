"""The states of nodes, as the controller sees them."""

from __future__ import annotations

from collections.abc import Sequence

from phenomhpc.errors import UnreachableError
from phenomhpc.slurm.programs import ProgramFailedError, run_program

# sinfo's long states of a node that must not be trusted now; `*` behind a state: it does not answer.
_SICK = ("down", "drain", "fail", "unknown", "reboot", "power")


def parse_nodes(text: str) -> dict[str, str]:
    """Lines of `sinfo -h -N -o %N|%T`: states by node."""
    pairs = (line.strip().split("|", 1) for line in text.splitlines() if "|" in line)
    return {name: state.lower() for name, state in pairs}


def is_sick(state: str) -> bool:
    """Is a node in this state down, drained, failing or silent?"""
    return state.startswith(_SICK) or state.endswith("*")


def query_nodes(*, partition: str | None = None, names: Sequence[str] = ()) -> dict[str, str]:
    """States of a partition's nodes, or of the named ones.  Raises UnreachableError when the controller does not answer."""
    argv = ["sinfo", "-h", "-N", "-o", "%N|%T"]
    argv += ["-p", partition] if partition else []
    argv += ["-n", ",".join(names)] if names else []
    try:
        return parse_nodes(run_program(argv))
    except ProgramFailedError as error:
        raise UnreachableError(f"sinfo: {error}") from error

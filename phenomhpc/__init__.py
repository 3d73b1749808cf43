"""phenomhpc: from raw Cell Painting plates to maps of biology, native to Slurm."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from phenomhpc.api import Result, Run, runs_in, submit

__all__ = ["Result", "Run", "__version__", "runs_in", "submit"]


def __getattr__(name: str) -> Any:
    """What Python callers use, imported when it is first asked for: `import phenomhpc` stays cheap."""
    if name in __all__:
        from phenomhpc import api

        return getattr(api, name)
    raise AttributeError(f"module 'phenomhpc' has no attribute {name!r}")

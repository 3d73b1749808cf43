"""Which checkpoint a name means: for whoever begins with one or embeds by one.  Without torch."""

from __future__ import annotations

from pathlib import Path

from phenomhpc.errors import UsageError
from phenomhpc.models.checkpoint import META, newest_committed
from phenomhpc.runs import find_run


def named_checkpoint(name: str, runs: Path) -> Path:
    """What `name` means: a step folder or an exported file itself, or the newest committed one of a run.  Raises UsageError."""
    folder = Path(name)
    if folder.is_file() or (folder / META).is_file():
        return folder.absolute()
    try:
        run = find_run(runs, name)
    except UsageError as error:
        raise UsageError(f"checkpoint {name}: is no step folder, no exported file and no run; {error}") from error
    newest = newest_committed(run.checkpoints)
    if newest is None:
        raise UsageError(f"checkpoint {name}: run {run.id} has committed none yet; phenomhpc status {run.id} tells why")
    return newest

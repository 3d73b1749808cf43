"""What a person is told when a store, or the run that writes it, cannot be written."""

from __future__ import annotations

import errno
from pathlib import Path

from phenomhpc.errors import WorkError
from phenomhpc.runs import RunPaths
from phenomhpc.store.layout import StorePaths


def unwritable(store: str, paths: RunPaths, error: OSError) -> WorkError:
    """One line: which of the two it is, why, and the way out."""
    what, hint = error.strerror or str(error), ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "; make room and run again to go on"
    elif not StorePaths(Path(store)).dataset.is_file():
        hint = "; is the file system still mounted? run again when it is"
    of_run = error.filename is not None and Path(str(error.filename)).is_relative_to(paths.root)
    where = f"run {paths.root}" if of_run else f"store {store}"
    return WorkError(f"{where}: cannot be written ({what}); what was committed stays{hint}")

"""A node's cache, filled behind the back of training: by one process of the node, in threads that give way to everybody."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from phenomhpc.crops.corpus import Corpus
from phenomhpc.errors import PhenomError
from phenomhpc.store.fill import fill

GIGABYTE = 1e9


class CacheFiller:
    """Fills the caches of a corpus' stores while it is entered, one store after the other; leaving stops it within a field.

    What goes wrong is said and never ends the training: the stores hold everything.
    """

    def __init__(self, corpus: Corpus, folder: Path, max_gb: float | None, say: Callable[[str], None]) -> None:
        self._corpus, self._folder, self._say = corpus, folder, say
        self._max_bytes = None if max_gb is None else round(max_gb * GIGABYTE)
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cache-filler", daemon=True)

    def _run(self) -> None:
        left = self._max_bytes
        for snapshot, cache in zip(self._corpus.snapshots, self._corpus.caches(self._folder), strict=True):
            try:
                state = fill(snapshot, cache, max_bytes=left, stop=self._leave.is_set)
            except PhenomError as error:
                self._say(f"{error}; crops are read from the store")
                continue
            if self._leave.is_set():
                return
            left = None if left is None else max(0, left - state.bytes_held)
            self._say(
                f"cache {cache}: holds {state.fields_held} of {state.num_fields} fields "
                f"({state.bytes_held / GIGABYTE:.1f} GB); expected hit rate {state.hit_rate:.0%}"
            )

    def __enter__(self) -> CacheFiller:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.set()
        self._thread.join()

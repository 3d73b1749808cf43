"""Crops through tensorstore: the reference our own reader is compared with, and a way to read what it does not understand.

Plates whose arrays somebody has written anew with other codecs, other chunks or without shards are read as long as they are
Zarr v3 arrays (field, channel, y, x) of the store's dtype.  It costs about twice the CPU time of our reader, tells nothing of
what it asks of the file system, and takes no cache.  tensorstore is no dependency of the package: pip install tensorstore.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phenomhpc.errors import DamagedError, UsageError
from phenomhpc.store.shardfiles import Traffic
from phenomhpc.store.snapshot import Snapshot

# Indices of shards stay in memory up to this; too little for decoded chunks of random crops to be found there again.
INDEX_CACHE_BYTES = 2_000_000
MAX_OPEN_ARRAYS = 128


class TensorReader:
    """Random crops of a snapshot's fields, as ShardReader gives them.  Thread-safe; an array is opened at its first crop."""

    def __init__(self, snapshot: Snapshot, *, cache_bytes: int = INDEX_CACHE_BYTES) -> None:
        """cache_bytes: of tensorstore's cache of shard indices and chunks.  Raises UsageError where tensorstore is absent."""
        try:
            import tensorstore
        except ImportError as error:
            raise UsageError("data.reader=tensorstore: it is not installed; pip install tensorstore") from error
        self._tensorstore, self._snapshot = tensorstore, snapshot
        self._context = tensorstore.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
        self._arrays: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._num_read = 0

    def read(self, field_no: int, y: int, x: int, out: NDArray[np.generic]) -> None:
        """As ShardReader.read().  Raises DamagedError naming store, plate and field for what cannot be read."""
        row = self._snapshot.table[field_no]
        array = self._array(field_no, int(row["plate"]))
        channels, height, width = out.shape
        if out.dtype != array.dtype.numpy_dtype or channels != array.shape[1]:
            raise ValueError(
                f"crop buffer of {out.dtype} {out.shape}: the plate has {array.dtype.name} and {array.shape[1]} channels"
            )
        if not (0 <= y <= array.shape[2] - height and 0 <= x <= array.shape[3] - width and height and width):
            size = f"{array.shape[2]}x{array.shape[3]}"
            raise IndexError(f"crop of {height}x{width} at ({y}, {x}) leaves field {field_no}, which has {size}")
        self._num_read += 1
        try:
            out[...] = array[int(row["field"]), :, y : y + height, x : x + width].read().result()
        except (ValueError, OSError, RuntimeError, IndexError) as error:
            raise self._damage(field_no, error) from error

    def _array(self, field_no: int, plate: int) -> Any:
        with self._lock:
            array = self._arrays.get(plate)
            if array is not None:
                self._arrays.move_to_end(plate)
                return array
        paths = self._snapshot.store.paths
        # A shard that is not there means "not converted", never zeros.
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(paths.images(self._snapshot.plates[plate]))},
            "fill_missing_data_reads": False,
        }
        try:
            opening = self._tensorstore.open(
                spec, context=self._context, open=True, read=True, recheck_cached_data="open"
            )
            array = opening.result()
        except (ValueError, OSError, RuntimeError) as error:
            raise self._damage(field_no, error) from error
        if array.rank != 4:
            raise self._damage(field_no, f"its array has {array.rank} axes, not (field, channel, y, x)")
        with self._lock:
            self._arrays[plate] = array
            if len(self._arrays) > MAX_OPEN_ARRAYS:
                self._arrays.popitem(last=False)
        return array

    def _damage(self, field_no: int, error: object) -> DamagedError:
        row, root = self._snapshot.table[field_no], self._snapshot.store.paths.root
        number, first = int(row["plate"]), str(error).splitlines()[0]
        return DamagedError(
            f"store {root}: plate {self._snapshot.plates[number]}, field {int(row['field'])}: tensorstore: {first}; "
            "see store verify",
            lambda: self._forget(number),
        )

    def _forget(self, plate: int) -> None:
        with self._lock:
            self._arrays.pop(plate, None)

    @property
    def traffic(self) -> Traffic:
        """The crops read so far; what they asked of the file system tensorstore does not say."""
        return Traffic(crops=self._num_read)

    def close(self) -> None:
        """Let go of every array."""
        with self._lock:
            self._arrays.clear()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""The Zarr store.

layout.py owns every name, spec.py says what a store holds, shards.py writes and addresses shards, convert.py does one
unit, seal.py makes fields tables, indices and snapshots, reader.py reads crops, verify.py finds damage.
"""

from phenomhpc.store.layout import StorePaths
from phenomhpc.store.reader import ShardReader
from phenomhpc.store.snapshot import Snapshot
from phenomhpc.store.spec import DatasetSpec, Store, create_store, open_store

__all__ = ["DatasetSpec", "ShardReader", "Snapshot", "Store", "StorePaths", "create_store", "open_store"]

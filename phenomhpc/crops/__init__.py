"""Which crop comes next (sampler: pure), and batches of them (loader), read by worker processes where there are any."""

from phenomhpc.crops.batches import Batch, StepBatch
from phenomhpc.crops.loader import Loader
from phenomhpc.crops.sampler import Sampler, Visits, flip_target, index_digest
from phenomhpc.crops.tile import tile

__all__ = [
    "Batch",
    "Loader",
    "Sampler",
    "StepBatch",
    "Visits",
    "flip_target",
    "index_digest",
    "tile",
]

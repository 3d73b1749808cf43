"""Which crop comes next (sampler: pure), and batches of them (loader)."""

from phenomhpc.crops.loader import Batch, Loader, StepBatch
from phenomhpc.crops.sampler import Sampler, Visits, flip_target, index_digest
from phenomhpc.crops.tile import tile

__all__ = ["Batch", "Loader", "Sampler", "StepBatch", "Visits", "flip_target", "index_digest", "tile"]

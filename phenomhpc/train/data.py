"""What training reads: one store, bound to a snapshot; and what a checkpoint says about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from phenomhpc.config.models import PretrainConfig
from phenomhpc.crops import Loader, Sampler, StepBatch
from phenomhpc.errors import UsageError
from phenomhpc.models.checkpoint import SCHEMA, CheckpointMeta
from phenomhpc.runs import digest_of
from phenomhpc.store import ShardReader, Snapshot, Store, open_store
from phenomhpc.train.state import TrainState

RANDOM_SCHEME = "philox4x64-10"


@dataclass(frozen=True, kw_only=True)
class CropSource:
    """A snapshot of one store, and the order in which its crops come."""

    store: Store
    snapshot: Snapshot
    sampler: Sampler

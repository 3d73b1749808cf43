"""Arithmetic on GPUs that gives the same bits every time, at a cost: deterministic=true.

Matrix products with a workspace of their own, no operator that adds in whatever order threads come, attention whose backward pass
does not either, and one fixed algorithm for exchanging gradients.  The same topology and number of ranks are needed as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Read by cuBLAS and NCCL when they are first used; a person's own settings stay.
_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring", "NCCL_PROTO": "Simple"}


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Inside, operators of torch are deterministic, or raise RuntimeError where they cannot be."""
    if not wanted:
        yield
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    was, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)
        torch.backends.cudnn.benchmark = benchmark

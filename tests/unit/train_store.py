"""A tiny store, made by the real conversion of PNGs in the RxRx layout, and settings small enough to train in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from phenomhpc.config import ConvertConfig, PretrainConfig, validate
from phenomhpc.jobs.here import run_here
from phenomhpc.progress import silent

SIDE, CHANNELS, FIELDS = 72, 2, 6


def write_plate(raw: Path, *, seed: int = 0, fields: int = FIELDS, name: str = "Plate1") -> None:
    """Smooth blobs on noise, another picture in every field and channel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    folder = raw / "EXP-1" / name
    folder.mkdir(parents=True)
    for field in range(fields):
        for channel in range(1, CHANNELS + 1):
            (cy, cx), width = rng.uniform(10, SIDE - 10, 2), rng.uniform(6, 14)
            blob = 160 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
            image = np.clip(blob + rng.poisson(30, blob.shape), 0, 255).astype(np.uint8)
            (folder / f"A{field + 1:02d}_s1_w{channel}.png").write_bytes(imagecodecs.png_encode(image))


def convert(raw: Path, store: Path, runs: Path) -> Path:
    """Convert and seal everything in `raw`."""
    config = validate("convert", {"plates": [str(raw)], "store": str(store), "runs": str(runs), "workers": 1})
    assert isinstance(config, ConvertConfig)
    run_here(config, command=["convert"], progress=silent(), fresh=True)
    return store


def settings(store: Path, runs: Path, /, **changes: Any) -> PretrainConfig:
    """12 steps of 8 crops of a model with 30 thousand parameters; `changes` by dotted key, dots written as __."""
    tree: dict[str, Any] = {
        "store": [str(store)],
        "runs": str(runs),
        "seed": 3,
        "device": "cpu",
        "threads_per_rank": 1,
        "log_every_steps": 3,
        "model": {
            "name": "test",
            "crop_px": 32,
            "patch_px": 8,
            "dim": 32,
            "depth": 2,
            "heads": 2,
            "drop_path": 0.2,
            "layer_scale": 0.1,
            "decoder_dim": 32,
            "decoder_depth": 1,
            "decoder_heads": 2,
        },
        "optim": {"name": "lion", "peak_lr": 1e-3, "global_batch": 8, "micro_batch": 3, "steps": 12},
        "checkpoint": {"every_steps": 5, "keep": 2},
    }
    for key, value in changes.items():
        *groups, last = key.split("__")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    config = validate("pretrain", tree)
    assert isinstance(config, PretrainConfig)
    return config

"""A tiny synthetic screen, its store and a checkpoint trained on it for two steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phenomhpc.commit import TEMPORARY
from phenomhpc.config import AnyConfig, EmbedConfig, validate
from phenomhpc.jobs.base import Summary
from phenomhpc.jobs.here import run_here
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths

MODEL = {
    "name": "test",
    "crop_px": 32,
    "patch_px": 8,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "layer_scale": 0.1,
    "decoder_dim": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
}
SPEC: dict[str, Any] = {
    "experiments": 1,
    "plates_per_experiment": 3,
    "plate_rows": 2,
    "plate_columns": 4,
    "field_px": 70,
    "num_genes": 3,
    "num_unexpressed": 1,
    "genes_per_pathway": 2,
}


def run(kind: str, **settings: Any) -> tuple[RunPaths, Summary]:
    """One job here, in one process."""
    config: AnyConfig = validate(kind, settings)
    return run_here(config, command=[kind], progress=silent(), fresh=True)


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Where things lie."""

    root: Path
    store: Path
    checkpoint: RunPaths

    def embed(self, **settings: Any) -> tuple[RunPaths, Summary]:
        """Embed the screen with its checkpoint; `settings` over EmbedConfig's."""
        config = self.embed_config(**settings)
        return run_here(config, command=["embed"], progress=silent(), fresh=True)

    def embed_config(self, **settings: Any) -> EmbedConfig:
        given = {
            "store": str(self.store),
            "runs": str(self.root / "runs"),
            "checkpoint": str(self.checkpoint.root),
            "batch": 16,
            "device": "cpu",
            **settings,
        }
        config = validate("embed", given)
        assert isinstance(config, EmbedConfig)
        return config


def pretrain(store: Path, runs: Path, seed: int = 0) -> RunPaths:
    """Two steps."""
    optim = {"name": "adamw", "peak_lr": 1e-3, "global_batch": 4, "micro_batch": 4, "steps": 2}
    settings = {"store": [str(store)], "runs": str(runs), "seed": seed, "device": "cpu", "threads_per_rank": 1}
    return run("pretrain", **settings, model=MODEL, optim=optim)[0]


def make_screen(root: Path, **spec: Any) -> Screen:
    """Paint, convert, seal, train."""
    write_plates(root / "raw", SyntheticSpec(**{**SPEC, **spec}), silent(), workers=1)
    runs = root / "runs"
    run("convert", plates=[str(root / "raw")], store=str(root / "store"), runs=str(runs), workers=1, max_set_aside=1.0)
    return Screen(root=root, store=root / "store", checkpoint=pretrain(root / "store", runs))


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a folder of embeddings but the records, which tell the time, and what a killed process left behind."""
    found = (path for path in folder.rglob("*") if path.is_file() and ".progress" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if TEMPORARY not in path.name}

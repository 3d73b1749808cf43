"""What `phenomhpc checkpoints` shows and deletes; torch is not needed for it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from phenomhpc.config import load_run_config
from phenomhpc.config.training import CheckpointConfig, PretrainConfig
from phenomhpc.errors import UsageError
from phenomhpc.models.checkpoint import COMMITTED, CheckpointMeta, damage, read_meta, step_folders
from phenomhpc.runs import RunPaths
from phenomhpc.train.retention import delete, read_scores, superseded

MEBIBYTE = 2**20


def describe(checkpoints: Path) -> list[dict[str, Any]]:
    """One row per step folder, oldest first; what a damaged one does not tell is None."""
    scores = read_scores(checkpoints)
    rows = []
    for step, folder in step_folders(checkpoints).items():
        meta = _meta(folder)
        mark = folder / COMMITTED
        saved = datetime.fromtimestamp(mark.stat().st_mtime, UTC) if mark.is_file() else None
        size = _bytes(folder)
        rows.append(
            {
                "name": folder.name,
                "step": step,
                "bytes": size,
                "mebibytes": round(size / MEBIBYTE, 1),
                "saved": saved and f"{saved:%Y-%m-%d %H:%M}",
                "ranks": meta and meta.world_size,
                "ema": meta and meta.ema,
                "left_out": meta and sum(last - first for first, last in meta.skip_ledger),
                "scores": scores.get(step, {}),
                "damage": damage(folder),
            }
        )
    return rows


def clear_up(checkpoints: Path, *, keep: int | None, keep_every: int | None, dry_run: bool) -> list[dict[str, Any]]:
    """Delete what nothing keeps, or only name it: name and bytes of each.  None: as the run itself keeps them."""
    asked = {"keep": keep, "keep_every": keep_every}
    config = _config(checkpoints).model_copy(update={name: value for name, value in asked.items() if value is not None})
    gone = []
    for folder in superseded(checkpoints, config):
        gone.append({"name": folder.name, "bytes": _bytes(folder)})
        if not dry_run:
            delete(folder)
    return gone


def _config(checkpoints: Path) -> CheckpointConfig:
    """The settings of the run whose checkpoints these are; the defaults where they lie elsewhere."""
    run_yaml = RunPaths(checkpoints.absolute().parent).run_yaml
    if run_yaml.is_file():
        config = load_run_config(run_yaml)
        if isinstance(config, PretrainConfig):
            return config.checkpoint
    return CheckpointConfig()


def _meta(folder: Path) -> CheckpointMeta | None:
    try:
        return read_meta(folder)
    except UsageError:
        return None


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())

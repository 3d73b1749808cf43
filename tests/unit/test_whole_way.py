"""A real Phenix field goes the whole way: convert, pretrain, embed, a reconstruction to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from phenomhpc.config import resolve
from phenomhpc.jobs.here import run_here
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths

STEPS = 3


def run(folder: Path, kind: str, *overrides: str, **flags: object) -> RunPaths:
    config = resolve(kind, {**flags, "runs": str(folder / "runs")}, overrides, layers=[]).config
    paths, summary = run_here(config, command=[kind], progress=silent())
    assert summary.exit_code == 0
    return paths


@pytest.mark.shared
def test_a_phenix_field_is_converted_pretrained_on_embedded_and_reconstructed(
    shared_data: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    store = str(tmp_path / "store")
    run(tmp_path, "convert", "workers=1", plates=[str(shared_data / "phenix")], store=store)
    sizes = [f"optim.steps={STEPS}", "optim.global_batch=4", "optim.micro_batch=4", "log_every_steps=1"]
    trained = run(tmp_path, "pretrain", "model=mae_vit_tiny", "optim=cpu", *sizes, store=[store])
    assert trained.report.is_file()
    with np.load(trained.reconstructions, allow_pickle=False) as pictures:
        assert pictures["reconstructed"].shape[1:] == (6, 64, 64)
        assert np.isfinite(pictures["reconstructed"]).all()
        assert pictures["original"].std() > 0.1
    embedded = run(tmp_path, "embed", store=store, checkpoint=str(trained.root))
    table = pl.read_parquet(embedded.embeddings / "BR00121482.parquet")
    assert table.height == 1
    assert table["well"].to_list() == ["A01"] and table["num_crops"].to_list() == [256]
    features = table.select(pl.col("^feature_.*$")).to_numpy()
    assert features.shape[1] == 96 and np.isfinite(features).all()

"""What training is for: perturbations of wells that were held out are told apart by a linear classifier on a trained encoder's
features, and hardly on an untrained one's.  Some minutes, so in the soak only; docs/benchmarks.md has the figures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from phenomhpc.config import PretrainConfig, resolve
from phenomhpc.jobs.here import run_here
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.train.probe import ENCODER, UNTRAINED, read_probes
from tests.unit.train_store import convert

STEPS = 2400


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not os.environ.get("PHENOMHPC_SOAK"), reason="some minutes: in `make soak`")
def test_a_trained_encoder_beats_an_untrained_one_with_intervals_apart(tmp_path: Path) -> None:
    """The demo's plates, model and schedule; half of the wells held out."""
    spec = SyntheticSpec(
        experiments=2, plates_per_experiment=2, plate_rows=12, plate_columns=16, field_px=256, cells_per_megapixel=600.0,
        num_genes=64, genes_per_pathway=4, num_unexpressed=4, control_share=0.2,
    )  # fmt: skip
    write_plates(tmp_path / "raw", spec, silent(), workers=1)
    store = convert(tmp_path / "raw", tmp_path / "store", tmp_path / "runs")
    settings = {
        "store": [str(store)], "runs": str(tmp_path / "runs"), "device": "cpu", "optim.steps": STEPS,
        "data.holdout.share": 0.5, "eval.probe_every_steps": STEPS, "eval.probe_wells": 1100, "eval.probe_crops": 16,
        "checkpoint.every_steps": STEPS,
    }  # fmt: skip
    config = resolve("pretrain", settings, ["model=mae_vit_tiny", "optim=cpu"], layers=[]).config
    assert isinstance(config, PretrainConfig)
    paths, _ = run_here(config, command=["pretrain"], progress=silent())
    found = {(row["step"], row["source"]): row for row in read_probes(paths.probe).to_pylist()}
    trained, untrained = found[STEPS, ENCODER], found[0, UNTRAINED]
    assert trained["ci_low"] > untrained["ci_high"], (trained, untrained)

"""Training on a GPU: what DESIGN promises of its bits, and that its ways of computing agree.  Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from phenomhpc.config import dump
from phenomhpc.models.blocks import compile_blocks, recompute_blocks
from phenomhpc.models.checkpoint import newest_committed, read_meta
from phenomhpc.models.mae import MaeOutput, MaskedAutoencoder, build_mae
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, TaskContext, claim_start, create_run, open_attempt
from phenomhpc.store.seal import seal
from phenomhpc.train.loop import train
from phenomhpc.train.metrics import read_metrics
from tests.unit.crop_store import add_plate, new_store, pixels_of
from tests.unit.train_store import settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
CHANNELS, FIELDS, SIDE = 2, 12, 160
SMALL = {
    "crop_px": 64, "patch_px": 8, "dim": 128, "depth": 4, "heads": 2, "drop_path": 0.2, "layer_scale": 0.1,
    "decoder_dim": 64, "decoder_depth": 2, "decoder_heads": 2, "mask_ratio": 0.75, "fourier_weight": 0.01,
    "mlp_ratio": 4.0, "qk_norm": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "store"
    made = new_store(folder, channels=CHANNELS, chunk_px=64, fields_per_shard=FIELDS)
    add_plate(made, "EXP-1__1", pixels_of(0, FIELDS, CHANNELS, SIDE, SIDE))
    seal(made, silent())
    return folder


def trained(
    store: Path, runs: Path, *, stop_after: int | None = None, paths: RunPaths | None = None, **changes: object
) -> RunPaths:
    changes = {f"model__{name}": value for name, value in SMALL.items()} | {"device": "cuda"} | changes
    config = settings(store, runs, **changes)
    paths = paths or create_run(runs, "pretrain", dump(config), {})
    attempt, _ = open_attempt(paths)
    ctx = TaskContext(
        paths=paths, attempt=attempt, task=0, token=claim_start(paths, attempt, 0, 0), units=(), progress=silent()
    )
    if stop_after is not None:
        config = config.model_copy(update={"optim": config.optim.model_copy(update={"steps": stop_after})})
    train(config, ctx)
    return paths


def losses(paths: RunPaths) -> list[float]:
    return [row["loss"] for row in read_metrics(paths.metrics).to_pylist()]


def weights(paths: RunPaths) -> str:
    newest = newest_committed(paths.checkpoints)
    assert newest is not None
    return read_meta(newest).weights


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_deterministic_run_repeats_to_the_last_bit(store: Path, tmp_path: Path, precision: str) -> None:
    first = trained(store, tmp_path / "a", deterministic=True, precision=precision)
    again = trained(store, tmp_path / "b", deterministic=True, precision=precision, data__workers=2)
    assert losses(first) == losses(again)
    assert weights(first) == weights(again)


def test_losses_are_those_of_a_cpu(store: Path, tmp_path: Path) -> None:
    on_gpu = losses(trained(store, tmp_path / "a", precision="fp32", compile=False))
    on_cpu = losses(trained(store, tmp_path / "b", precision="fp32", device="cpu"))
    assert on_gpu == pytest.approx(on_cpu, rel=1e-4)


def test_a_default_run_is_compiled_and_learns(store: Path, tmp_path: Path) -> None:
    compiled = losses(trained(store, tmp_path / "a", precision="bf16"))
    eager = losses(trained(store, tmp_path / "b", precision="bf16", compile=False))
    assert compiled == pytest.approx(eager, rel=2e-2)
    assert compiled[-1] < compiled[0]


def forward_backward(model: MaskedAutoencoder, precision: torch.dtype | None) -> tuple[MaeOutput, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(4, CHANNELS, 64, 64, generator=generator).cuda()
    noise = torch.rand(4, model.num_patches, generator=generator).cuda()
    model.zero_grad()
    with torch.autocast("cuda", precision or torch.bfloat16, enabled=precision is not None):
        output = model(pixels, noise, torch.arange(4).cuda())
    output.loss.backward()
    return output, [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("how", ["compiled", "recomputed", "both"])
@pytest.mark.parametrize("block", ["parallel", "sequential"])
def test_compiled_and_recomputed_blocks_give_the_same(how: str, block: str) -> None:
    model = build_mae(CHANNELS, block=block, **SMALL).cuda().train()
    plain, gradients = forward_backward(model, None)
    if how != "recomputed":
        compile_blocks(model)
    if how != "compiled":
        recompute_blocks(model)
    other, others = forward_backward(model, None)
    torch.testing.assert_close(other.loss, plain.loss, rtol=1e-5, atol=1e-6)
    assert len(gradients) == len(others)
    for mine, theirs in zip(gradients, others, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-4)


def test_the_branches_apart_are_the_branches_together() -> None:
    model = build_mae(CHANNELS, qkv_bias=True, **SMALL).cuda()
    block = model.blocks[0]  # type: ignore[index]
    y = torch.randn(2, 9, SMALL["dim"], device="cuda", dtype=torch.float32)  # type: ignore[call-overload]
    torch.testing.assert_close(block.apart(y), block.together(y), rtol=1e-4, atol=1e-4)

"""Ways of computing the blocks: all give the same; compiling is refused in one line where it cannot be."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from phenomhpc.errors import UsageError
from phenomhpc.models.blocks import blocks_of, compile_blocks, is_compiled, recompute_blocks
from phenomhpc.models.mae import MaskedAutoencoder, build_mae
from phenomhpc.models.vit import ParallelBlock

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FIELDS: dict[str, Any] = {
    "crop_px": 32, "patch_px": 8, "dim": 32, "depth": 2, "heads": 2, "drop_path": 0.2, "layer_scale": 0.1,
    "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2, "mask_ratio": 0.75, "fourier_weight": 0.01,
    "mlp_ratio": 4.0, "qk_norm": True,
}  # fmt: skip


def step(model: MaskedAutoencoder) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    pixels, noise = (
        torch.randn(3, 2, 32, 32, generator=generator),
        torch.rand(3, model.num_patches, generator=generator),
    )
    model.zero_grad()
    loss = model(pixels, noise, torch.arange(3)).loss
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["mae_vit", "ca_mae_vit"])
@pytest.mark.parametrize("block", ["parallel", "sequential"])
def test_recomputed_blocks_keep_less_and_give_the_same_bits(kind: str, block: str) -> None:
    model = build_mae(2, kind=kind, block=block, **FIELDS).train()
    loss, gradients = step(model)
    kept = _kept(model)
    recompute_blocks(model)
    again, others = step(model)
    assert torch.equal(loss, again)
    assert len(gradients) == len(others)
    assert all(map(torch.equal, gradients, others))
    assert _kept(model) < kept


def _kept(model: MaskedAutoencoder) -> int:
    """Values that autograd keeps for the backward pass."""
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.zeros(3, 2, 32, 32), torch.zeros(3, model.num_patches), torch.arange(3))
    return sum(kept)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch calls deprecated
def test_compiled_blocks_keep_their_names_and_give_the_same() -> None:
    model = build_mae(2, **FIELDS).train()
    names = list(model.state_dict())
    loss, gradients = step(model)
    compile_blocks(model)
    assert list(model.state_dict()) == names
    again, others = step(model)
    torch.testing.assert_close(again, loss)
    for mine, theirs in zip(gradients, others, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_the_branches_apart_are_the_branches_together(qkv_bias: bool) -> None:
    block = ParallelBlock(32, 2, mlp_ratio=4.0, qk_norm=True, layer_scale=0.5, qkv_bias=qkv_bias)
    block.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        block.mlp_bias.normal_(generator=torch.Generator().manual_seed(1))
    y = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(block.apart(y), block.together(y))


def test_an_architecture_without_blocks_has_none() -> None:
    assert not list(
        blocks_of(
            build_mae(
                2,
                kind="unet_mae",
                crop_px=32,
                patch_px=8,
                mask_ratio=0.75,
                fourier_weight=0.01,
                options={"width": 8, "levels": 2},
            )
        )
    )


def test_auto_compiles_on_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phenomhpc.models.blocks._missing", lambda device: None)
    assert is_compiled("auto", GPU)
    assert not is_compiled("auto", CPU)
    assert not is_compiled("auto", GPU, deterministic=True)
    assert is_compiled(True, CPU)
    assert not is_compiled(False, GPU)


def test_compiling_is_refused_where_bits_count_or_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="deterministic=true"):
        is_compiled(True, CPU, deterministic=True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    assert not is_compiled("auto", GPU)
    with pytest.raises(UsageError, match="no C compiler here"):
        is_compiled(True, CPU)

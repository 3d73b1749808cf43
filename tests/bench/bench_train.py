"""Crops per second of a training step on random crops: `make bench-train` (CPU), `make bench-gpu`.

Needs torch and numpy only, so it runs from a plain checkout.  Forward, backward and AdamW step at a fixed batch; beside it
the machine's own matrix-multiplication rate in the same precision, since only ratios on one machine count.
"""

from __future__ import annotations

import argparse
import time

import torch

from phenomhpc.models.mae import build_mae

# name -> (crop_px, patch_px, dim, depth, heads, decoder_dim, decoder_depth, decoder_heads, batch)
SIZES = {
    "tiny": (64, 8, 96, 4, 4, 64, 2, 4, 32),
    "S/16": (256, 16, 384, 12, 6, 512, 8, 16, 8),
    "L/8": (256, 8, 1024, 24, 16, 512, 8, 16, 64),
}
CHANNELS = 6


def step_rate(name: str, device: torch.device, steps: int) -> float:
    """Crops per second of one model."""
    crop, patch, dim, depth, heads, decoder_dim, decoder_depth, decoder_heads, batch = SIZES[name]
    model = build_mae(
        CHANNELS, crop_px=crop, patch_px=patch, dim=dim, depth=depth, heads=heads, mlp_ratio=4.0, qk_norm=True,
        layer_scale=1e-4, drop_path=0.1, mask_ratio=0.75, decoder_dim=decoder_dim, decoder_depth=decoder_depth,
        decoder_heads=decoder_heads, fourier_weight=0.01, name=name,
    ).to(device)  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, CHANNELS, crop, crop, generator=generator).to(device)
    noise = torch.rand(batch, model.num_patches, generator=generator).to(device)
    key, weight = torch.arange(batch, device=device), torch.ones(batch, device=device)
    began = 0.0
    for number in range(steps + 1):
        if number == 1:  # the first warms up
            _wait(device)
            began = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(pixels, noise, key, weight).loss
        loss.backward()
        optimiser.step()
    _wait(device)
    return batch * steps / (time.perf_counter() - began)


def matmul_rate(device: torch.device) -> float:
    """TFLOP/s of a square matrix multiplication, bf16 on a GPU, fp32 on a CPU."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    one = torch.randn(size, size, device=device, dtype=dtype)
    for _ in range(3):
        one @ one
    _wait(device)
    began = time.perf_counter()
    for _ in range(10):
        one @ one
    _wait(device)
    return 10 * 2 * size**3 / (time.perf_counter() - began) / 1e12


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}: matrix multiplication {matmul_rate(device):.3g} TFLOP/s")
    for size in SIZES if device.type == "cuda" else list(SIZES)[:2]:
        print(f"| {size} | {step_rate(size, device, arguments.steps):.1f} crops/s |")


if __name__ == "__main__":
    main()

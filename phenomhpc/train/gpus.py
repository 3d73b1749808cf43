"""What GPUs can do at best, by name: the denominator of an MFU.  Without torch.

Dense rates, that is without structured sparsity (the vendors' larger figures count multiplications by zeros that are not done).
bf16: tensor cores (matrix cores); fp32: plain fp32, which is what torch multiplies in unless TF32 is allowed.

Sources, each vendor's own data sheet: NVIDIA A100 (2021), A30, A40, A10, L4, L40S (2023), H100 (SXM, PCIe, NVL), H200 (SXM, NVL),
GH200, HGX B200, V100; AMD Instinct MI250X (both dies; one is what torch sees, so half of it), MI300X.
"""

from __future__ import annotations

from dataclasses import dataclass

from phenomhpc.errors import UsageError

GIGABYTE = 1e9


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """name: for a person to type; marks: words of the name that torch tells, all of them; memory in 10^9 bytes; rates in
    TFLOP/s, None where the hardware has no such units."""

    name: str
    marks: tuple[str, ...]
    memory_gb: float
    bf16: float | None
    fp32: float

    def peak_tflops(self, precision: str) -> float | None:
        return self.bf16 if precision in ("bf16", "fp16") else self.fp32


# Of several that fit a name the first counts: the more particular come first.
GPUS = (
    Gpu(name="b200", marks=("B200",), memory_gb=180, bf16=2250.0, fp32=75.0),
    Gpu(name="gh200", marks=("GH200",), memory_gb=96, bf16=989.4, fp32=67.0),
    Gpu(name="h200-nvl", marks=("H200", "NVL"), memory_gb=141, bf16=835.5, fp32=60.0),
    Gpu(name="h200", marks=("H200",), memory_gb=141, bf16=989.4, fp32=67.0),
    Gpu(name="h100-nvl", marks=("H100", "NVL"), memory_gb=94, bf16=835.5, fp32=60.0),
    Gpu(name="h100-pcie", marks=("H100", "PCIe"), memory_gb=80, bf16=756.0, fp32=51.0),
    Gpu(name="h100", marks=("H100",), memory_gb=80, bf16=989.4, fp32=67.0),
    Gpu(name="a100-40gb", marks=("A100", "40GB"), memory_gb=40, bf16=312.0, fp32=19.5),
    Gpu(name="a100", marks=("A100",), memory_gb=80, bf16=312.0, fp32=19.5),
    Gpu(name="l40s", marks=("L40S",), memory_gb=48, bf16=362.05, fp32=91.6),
    Gpu(name="a40", marks=("A40",), memory_gb=48, bf16=149.7, fp32=37.4),
    Gpu(name="a30", marks=("A30",), memory_gb=24, bf16=165.0, fp32=10.3),
    Gpu(name="a10", marks=("A10",), memory_gb=24, bf16=125.0, fp32=31.2),
    Gpu(name="l4", marks=("L4",), memory_gb=24, bf16=121.0, fp32=30.3),
    Gpu(name="v100", marks=("V100",), memory_gb=32, bf16=None, fp32=15.7),
    Gpu(name="mi300x", marks=("MI300X",), memory_gb=192, bf16=1307.4, fp32=163.4),
    Gpu(name="mi250x", marks=("MI250X",), memory_gb=64, bf16=191.5, fp32=23.95),
)


def gpu_named(name: str) -> Gpu:
    """Raises UsageError for one that is not in the table."""
    for gpu in GPUS:
        if gpu.name == name.lower():
            return gpu
    raise UsageError(f"--gpu {name}: not known; there are {', '.join(sorted(gpu.name for gpu in GPUS))}")


def gpu_of(device_name: str) -> Gpu | None:
    """By the name that torch.cuda.get_device_name tells, such as "NVIDIA H100 80GB HBM3"; None for what is not in the table."""
    words = device_name.replace("-", " ").split()
    return next((gpu for gpu in GPUS if all(mark in words for mark in gpu.marks)), None)


def peak_tflops(device_name: str, precision: str) -> float | None:
    """None for devices and precisions of which nothing is known; a CPU's depends on its clock and is not told."""
    gpu = gpu_of(device_name)
    return None if gpu is None else gpu.peak_tflops(precision)

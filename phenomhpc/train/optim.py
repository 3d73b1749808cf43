"""Lion, AdamW and the one-cycle schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from phenomhpc.train.shards import own_part

if TYPE_CHECKING:
    from phenomhpc.config.training import OptimConfig

# torch's OneCycleLR with its defaults: the rate starts at peak / 25 and ends at peak / 25 / 10,000.
_START_DIVISOR = 25.0
_FINAL_DIVISOR = 1e4
# Of parameters of more than one dimension.
_NOT_DECAYED = ("_token", "_tokens", "positions")


def one_cycle_lr(step: int, *, steps: int, peak_lr: float, warmup_fraction: float) -> float:
    """Learning rate of step `step` (0-based) of `steps`: cosine from peak / 25 up to the peak, cosine down to nearly 0.

    The formula of torch.optim.lr_scheduler.OneCycleLR with `pct_start=warmup_fraction`, as a pure function, so that a
    resumed run has no schedule to restore.  A warm-up of less than a step starts at the peak.
    """
    start, final = peak_lr / _START_DIVISOR, peak_lr / _START_DIVISOR / _FINAL_DIVISOR
    top = warmup_fraction * steps - 1
    if step <= top and top > 0:
        return _cosine(start, peak_lr, step / top)
    top = max(top, 0.0)
    return _cosine(peak_lr, final, (step - top) / max(steps - 1 - top, 1.0))


def _cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * min(share, 1.0)))


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, algorithm 2): the sign of an interpolated momentum, with decoupled weight decay.

    u = sign(beta1 * m + (1 - beta1) * g);  p = p * (1 - lr * decay) - lr * u;  m = beta2 * m + (1 - beta2) * g
    """

    def __init__(self, params: Iterable[Any], *, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; the gradients are left as they are.

        found_inf, set as torch's GradScaler sets it (f32[]): where it is 1 nothing changes, whatever the gradients are.
        """
        if closure is not None:
            raise TypeError("Lion takes no closure")
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: list[Tensor] = [own_part(p.grad) for p in params]
            momenta = [own_part(self._momentum(p)) for p in params]
            params = [own_part(p) for p in params]
            shrink: float | Tensor = 1 - lr * decay
            if found_inf is not None:
                # The momentum in place of a bad gradient leaves the momentum as it is, and is finite.
                bad = found_inf > 0
                grads = [torch.where(bad, m, g) for m, g in zip(momenta, grads, strict=True)]
                shrink = torch.where(bad, 1.0, shrink).to(params[0].dtype)
            update = torch._foreach_lerp(momenta, grads, 1 - beta1)
            torch._foreach_sign_(update)
            if found_inf is not None:
                torch._foreach_mul_(update, 1 - found_inf)
            torch._foreach_mul_(params, shrink)
            torch._foreach_add_(params, update, alpha=-lr)
            torch._foreach_lerp_(momenta, grads, 1 - beta2)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(parameter)
        momentum: Tensor = state["exp_avg"]
        return momentum


def make_optimiser(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser over two groups: weight decay for matrices, none for the rest.

    Biases, norms, LayerScale, tokens and learned positions are not decayed, as in the public masked-autoencoder code (He et al.
    2022); the notes are silent.
    """
    named = dict(model.named_parameters())
    plain = {name for name, p in named.items() if p.ndim < 2 or name.endswith(_NOT_DECAYED)}
    groups = [
        {"params": [p for name, p in named.items() if name not in plain], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named.items() if name in plain], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    if config.name == "lion":
        return Lion(groups, lr=config.peak_lr, betas=betas, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=betas, weight_decay=config.weight_decay, fused=True)


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """The rate of the next update, in every group."""
    for group in optimiser.param_groups:
        group["lr"] = lr


def step_unless(optimiser: torch.optim.Optimizer, bad: Tensor) -> None:
    """An update that leaves weights and state as they are where `bad` (bool[], on the device) is set; the host waits for nothing.

    GradScaler's way to tell an optimiser: `found_inf`, which torch's fused AdamW and our Lion look at.
    """
    found_inf = bad.to(torch.float32)
    optimiser.found_inf, optimiser.grad_scale = found_inf, None  # type: ignore[attr-defined]
    optimiser.step()


def state_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors (`NAME.exp_avg`, ...), made (zero) where no step was taken yet.

    Loading into these tensors in place restores the optimiser: it holds nothing else that changes but the rate.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state = optimiser.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            if isinstance(optimiser, torch.optim.AdamW):
                state["step"] = torch.zeros(
                    (), dtype=torch.float32, device=parameter.device
                )  # as the fused one keeps it
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        tensors.update({f"{name}.{key}": value for key, value in state.items()})
    return tensors

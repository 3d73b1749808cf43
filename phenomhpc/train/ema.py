"""An exponential moving average of the weights, kept beside them on their device (Polyak and Juditsky 1992; optim.ema).

It begins as a copy.  After every step e becomes d * e + (1 - d) * w; a step that is left out leaves it out too, which is
decided on the device, so that the host waits for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from phenomhpc.models.weights import EMA, MODEL


@dataclass(frozen=True, kw_only=True)
class Average:
    """The average of a model's parameters, with their names, shapes and dtype (fp32).

    Like an optimiser it holds the parameters themselves: made after they have got their place, it works on DTensors too.
    """

    decay: float
    weights: dict[str, Tensor]
    _parameters: list[Tensor]

    @classmethod
    def of(cls, model: nn.Module, decay: float | None) -> Average | None:
        """Copies of the parameters; None without a decay."""
        if decay is None:
            return None
        named = dict(model.named_parameters())
        copies = {name: parameter.detach().clone() for name, parameter in named.items()}
        return cls(decay=decay, weights=copies, _parameters=list(named.values()))

    @torch.no_grad()
    def begin(self) -> None:
        """Become a copy of the parameters again: for who has put others into the model."""
        for mean, parameter in zip(self.weights.values(), self._parameters, strict=True):
            mean.copy_(parameter)

    @torch.no_grad()
    def update(self, bad: Tensor) -> None:
        """One step towards the parameters; none where `bad` (bool[], on the device) is set.  The parameters are finite."""
        share = torch.where(bad, 0.0, 1 - self.decay)
        torch._foreach_lerp_(list(self.weights.values()), self._parameters, [share] * len(self._parameters))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the average as its weights, and is not to be trained; afterwards its own, bit for bit.

        For that time it takes as much memory again as the weights.
        """
        with torch.no_grad():
            own = [parameter.clone() for parameter in self._parameters]
        try:
            _fill(self._parameters, self.weights.values())
            yield
        finally:
            _fill(self._parameters, own)


@torch.no_grad()
def _fill(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)  # one by one: DTensors have no _foreach_copy_ (torch 2.13)


@contextmanager
def measured(average: Average | None) -> Iterator[str]:
    """Inside, the model has the weights that are measured, the average where there is one; which: `ema` or `model`."""
    if average is None:
        yield MODEL
        return
    with average.in_place():
        yield EMA

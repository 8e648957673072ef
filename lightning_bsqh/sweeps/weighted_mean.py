"""The mean over micro-batches that J and G are in full-batch mode (method §5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class WeightedMean:
    """Loss and gradient of the whole data, from those of its micro-batches.

    The mean over all samples is the mean of the micro-batches' means, weighted by their numbers of samples.
    Gradients are kept as a running mean in their own precision, so that they take the memory of one and equal parts
    give exactly their value; losses are summed in double precision.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._losses: list[float] = []
        self._gradients: list[Tensor | None] = []

    def add(self, loss: float, samples: int, gradients: Sequence[Tensor | None] = ()) -> None:
        """Takes in one micro-batch.

        Args:
            loss: Its mean loss.
            samples: Its number of samples.
            gradients: Those of its mean loss, one for each parameter; None where it does not depend on that. Not
                kept, but copied.
        """
        self._losses.append(loss * samples)
        before, self.samples = self.samples, self.samples + samples
        if not before:
            self._gradients = [None if g is None else _dense(g).detach().clone() for g in gradients]
            return
        for i, gradient in enumerate(gradients):
            mean = self._gradients[i]
            if gradient is not None:
                # Micro-batches that do not depend on a parameter count with a gradient of zero.
                mean = torch.zeros_like(gradient, layout=torch.strided) if mean is None else mean
                self._gradients[i] = mean.lerp_(_dense(gradient), samples / self.samples)
            elif mean is not None:
                mean.mul_(before / self.samples)

    @property
    def loss(self) -> float:
        """The mean loss, not finite if that of a micro-batch is not."""
        if not all(map(math.isfinite, self._losses)):
            return sum(self._losses)
        return math.fsum(self._losses) / self.samples

    @property
    def gradients(self) -> list[Tensor | None]:
        """The gradient of the mean loss, one for each parameter."""
        return self._gradients


def _dense(gradient: Tensor) -> Tensor:
    return gradient if gradient.layout == torch.strided else gradient.to_dense()

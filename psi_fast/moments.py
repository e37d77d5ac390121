"""Mean, standard deviation and exceedances of null draws, from blocks of them: memory does not grow with the draws."""

import numpy as np
import torch
from torch import Tensor

from psi_fast.results import NullMoments

TIE = 1e-6  # draws this close to the observed value count as reaching it: rounding must not decide


class RunningMoments:
    """What is kept of the draws of C channels. Blocks of draws are added one after the other.

    The result depends on the draws and on where a block ends, not on how the channels of a block are split.

    References
    ----------
    Chan, Golub, LeVeque: Algorithms for computing the sample variance. The American Statistician 37, 1983.
    """

    def __init__(self, observed: Tensor, keep: int = 0) -> None:
        """observed : [C] float64, what the draws are held against; keep : hold on to the first so many draws too."""
        self._kept = np.empty((len(observed), keep), dtype=np.float32) if keep else None
        self._observed = observed
        self._count = np.zeros(len(observed), dtype=np.int64)
        self._reached = np.zeros(len(observed), dtype=np.int64)
        self._mean = np.zeros(len(observed))
        self._squares = np.zeros(len(observed))  # sum of squared distances to the mean

    def add(self, rows: slice, draws: Tensor) -> None:
        """The next block of draws [c, b] of the channels `rows`, which have had as many as each other."""
        values = draws.double().cpu().numpy()  # NumPy sums each row in the same order, however many rows there are
        observed = self._observed[rows].cpu().numpy()
        before, block = self._count[rows], values.shape[1]
        mean = values.mean(axis=1)
        squares = np.square(values - mean[:, None]).sum(axis=1)
        total = before + block
        away = mean - self._mean[rows]
        self._mean[rows] += away * block / total
        self._squares[rows] += squares + away**2 * before * block / total
        self._reached[rows] += (values >= (observed - TIE)[:, None]).sum(axis=1)
        if self._kept is not None:
            left = self._kept[rows, before[0] : before[0] + block]
            left[:] = values[:, : left.shape[1]]
        self._count[rows] = total

    def result(self) -> NullMoments:
        """Mean, standard deviation (B - 1) and p = (1 + draws not below the observed) / (B + 1)."""
        parts = (self._mean, np.sqrt(self._squares / (self._count - 1)), (1 + self._reached) / (self._count + 1))
        kept = None if self._kept is None else torch.from_numpy(self._kept[:, : self._count.max()])
        return NullMoments(*(torch.as_tensor(part, device=self._observed.device) for part in parts), draws=kept)


def moments(observed: Tensor, draws: Tensor) -> NullMoments:
    """Moments of draws [C, B] that are all there, against the observed values [C]."""
    running = RunningMoments(observed)
    running.add(slice(None), draws)
    return running.result()

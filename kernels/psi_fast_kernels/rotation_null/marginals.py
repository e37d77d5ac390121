"""Quantile functions of the leading axes: of each, the unimodal distribution nearest to the data's own.

It is the taut string through the narrowest tube around the samples' distribution function that leaves its slope, the
density, one mode (Davies and Kovac: Local extremes, runs, strings and multiresolution. Annals of Statistics 29, 2001).
To it comes a hundredth of a uniform variable: it moves no shape, but without it samples that coincide, all but a few,
would give draws that do not vary.
"""

import numpy as np
import torch
from torch import Tensor

from psi_fast_kernels._batched import ordered_sum
from psi_fast_kernels._compiled import compiled, over_threads

TUBE_STEPS = 24  # bisections of the tube's radius
CELLS = 128  # of a quantile function's table
UNIFORM_PART = 0.01  # standard deviation


def quantiles(axes: Tensor) -> Tensor:
    """Quantiles at 0, 1 / CELLS, .. 1 of unit columns `axes` [C, K, m], scaled to variance 1: [C, m, CELLS + 1] float64.

    An axis is taken with the sign that gives it no negative skewness, because a principal axis comes with either. The
    tables are made on the CPU.
    """
    x = axes.double().cpu()
    x = torch.where(ordered_sum(x.pow(3), 1)[:, None] < 0, -x, x)
    x = (x * axes.shape[1] ** 0.5).mT.contiguous().sort(-1).values.numpy()
    tables = np.empty((*x.shape[:2], CELLS + 1))
    over_threads(lambda part: _quantiles_each(x[part], tables[part]), len(x))
    uniform_part = UNIFORM_PART * 12**0.5 * (np.linspace(0, 1, CELLS + 1) - 0.5)
    return torch.from_numpy(tables + uniform_part).to(axes.device)


@compiled
def _quantiles_each(x, tables):
    fit = np.empty(x.shape[2])
    for c in range(x.shape[0]):
        for j in range(x.shape[1]):
            narrowest_tube(x[c, j], fit)
            _invert(x[c, j], fit, tables[c, j])


@compiled
def narrowest_tube(x, fit):
    """Radius of the narrowest tube around the sorted samples x [K]; its string's heights at them go into `fit` [K]."""
    narrow, wide = 0.0, 0.5
    for _ in range(TUBE_STEPS):
        radius = (narrow + wide) / 2
        if taut_string(x, radius, fit):
            wide = radius
        else:
            narrow = radius
    taut_string(x, wide, fit)
    return wide


@compiled
def taut_string(x, radius, fit):
    """Shortest path from (x_0, 0) to (x_n, 1) within `radius` of the points (x_i, i / n); its heights there into `fit`.

    Returns whether its slope first rises and then falls.
    """
    last = len(x) - 1
    start, height = 0, 0.0
    falls, unimodal = False, True
    fit[0] = 0.0
    while start < last:
        lowest, highest = -np.inf, np.inf  # slopes that pass all points seen
        low, high, end, slope = start, start, last, 0.0
        for i in range(start + 1, last + 1):
            room = radius if i < last else 0.0
            run = max(x[i] - x[start], 1e-12)
            floor, ceiling = (i / last - room - height) / run, (i / last + room - height) / run
            if floor > highest:  # the path bends up around the tube's upper side
                end, slope, reached = high, highest, high / last + radius
                unimodal = unimodal and not falls
                break
            if ceiling < lowest:
                end, slope, reached = low, lowest, low / last - radius
                falls = True
                break
            if floor >= lowest:
                lowest, low = floor, i
            if ceiling <= highest:
                highest, high = ceiling, i
        else:
            reached = 1.0
            slope = (1.0 - height) / max(x[last] - x[start], 1e-12)
        for i in range(start + 1, end + 1):
            fit[i] = height + slope * (x[i] - x[start])
        start, height = end, reached
    return unimodal


@compiled
def _invert(x, fit, table):
    """x where `fit` reaches 0, 1 / N, .. 1, linear between the samples, into `table` [N + 1]."""
    at = 1
    for cell in range(len(table)):
        u = cell / (len(table) - 1)
        while at < len(x) - 1 and fit[at] < u:
            at += 1
        rise = max(fit[at] - fit[at - 1], 1e-12)
        table[cell] = x[at - 1] + (x[at] - x[at - 1]) * min(max((u - fit[at - 1]) / rise, 0.0), 1.0)

"""Mean and variance of mutual information under permuted labels, in closed form.

With f(n) = n log n and n_ij the contingency table, N * MI = sum_ij f(n_ij) + constant, and permuted labels make the table
hypergeometric. So the moments are sums, over cells and pairs of cells, of expectations of f; cells with the same
cluster size a and class size b share them. Given that x of class b's samples lie in one cluster and w in a second of a2
places, these keep a - x and a2 - w places for the other classes, and there E f depends on one number of places only:

    M_b(s) = sum over the other classes b2 of E f(n), n of class b2 among s drawn of the N - b samples outside b
    E (sum f)^2 = sum_ab E f(x) [f(x) + M_b(a - x) + sum over the other clusters a2 of E (f(w) + M_b(a2 - w))]

References
----------
Vinh, Epps, Bailey: Information theoretic measures for clusterings comparison. JMLR 11, 2010 (the mean).
Romano, Bailey, Nguyen, Verspoor: Standardized mutual information for clustering comparisons. ICML 2014 (the variance).
"""

import numpy as np
from scipy.special import gammaln, xlogy

ROUNDING = 1e-12


def mutual_information_moments(cluster_sizes: np.ndarray, class_sizes: np.ndarray) -> tuple[float, float]:
    """Exact mean and variance, in nats and nats^2, of the mutual information of permuted labels.

    Parameters
    ----------
    cluster_sizes, class_sizes : 1-D arrays of integers >= 0 with the same sum N > 0; empty groups change nothing

    Returns
    -------
    mean, variance : float
    """
    a_sizes, a_count = np.unique(cluster_sizes[cluster_sizes > 0], return_counts=True)
    b_sizes, b_count = np.unique(class_sizes[class_sizes > 0], return_counts=True)
    total = int(np.sum(cluster_sizes))
    table = _Hypergeometric(total)
    f = table.f
    first = second = 0.0
    for ib, b in enumerate(b_sizes):
        others = b_count - (np.arange(len(b_sizes)) == ib)
        elsewhere = sum(n * table.means(total - b, b2) for b2, n in zip(b_sizes, others, strict=True) if n)
        elsewhere = elsewhere + np.zeros(total - b + 1)
        for ia, a in enumerate(a_sizes):
            p = table.pmf(total, a, b)  # of n_ij = x
            weight = p * f[: len(p)] * a_count[ia] * b_count[ib]
            x = np.flatnonzero(weight)
            inner = f[x] + elsewhere[a - x]
            for ja, a2 in enumerate(a_sizes):
                if n := a_count[ja] - (ja == ia):
                    # of class b's other b - x samples, w lie in the cluster of size a2
                    w = np.arange(a2 + 1)
                    value = f[w] + elsewhere[(a2 - w).clip(0, total - b)]  # what lies outside has probability 0
                    inner += n * (table.pmf(total - a, b - x, a2) @ value)
            first += weight.sum()
            second += weight[x] @ inner
    mean, variance = moments_of_information(first, second, cluster_sizes, class_sizes)
    return float(mean), float(variance)


def moments_of_information(
    first: np.ndarray | float, second: np.ndarray | float, cluster_sizes: np.ndarray, class_sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of mutual information [...] from those of sum f: its mean and mean square, sizes in the last axis."""
    total = cluster_sizes.sum(-1)
    constant = (
        xlogy(total, total) - xlogy(cluster_sizes, cluster_sizes).sum(-1) - xlogy(class_sizes, class_sizes).sum(-1)
    )
    variance = second - first**2
    # one group on a side, or all groups single: nothing varies
    variance = np.where(variance < ROUNDING * second, 0.0, variance)
    return (first + constant) / total, variance / total**2


class _Hypergeometric:
    """Probabilities and expectations of f(n) = n log n for n marked among `drawn` of `total` samples."""

    def __init__(self, largest: int) -> None:
        self.f = xlogy(np.arange(largest + 1.0), np.arange(largest + 1.0))
        self._log_factorial = gammaln(np.arange(largest + 1.0) + 1)
        self._means: dict[tuple[int, int], np.ndarray] = {}

    def pmf(self, total: int, drawn: np.ndarray | int, marked: int) -> np.ndarray:
        """P(n) for n = 0..marked in the last axis, zero where impossible."""
        drawn = np.asarray(drawn)[..., None]
        n = np.arange(marked + 1)
        possible = (n <= drawn) & (n >= drawn + marked - total)
        lf = self._log_factorial
        i = np.where(possible, n, 0)
        hit, miss = np.where(possible, drawn - i, 0), np.where(possible, total - marked - drawn + i, 0)
        log_p = (
            lf[marked] - lf[i] - lf[marked - i] + lf[total - marked] - lf[hit] - lf[miss]
            + lf[drawn] + lf[total - drawn] - lf[total]
        )  # fmt: skip
        return np.exp(np.where(possible, log_p, -np.inf))

    def means(self, total: int, marked: int) -> np.ndarray:
        """E f(n) for drawn = 0..total, [total + 1]."""
        if (total, marked) not in self._means:
            self._means[total, marked] = self.pmf(total, np.arange(total + 1), marked) @ self.f[: marked + 1]
        return self._means[total, marked]

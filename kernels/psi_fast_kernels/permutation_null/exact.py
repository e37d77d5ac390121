"""Mean and variance of mutual information under permuted labels, in closed form.

With f(n) = n log n and n_ij the contingency table, N * MI = sum_ij f(n_ij) + constant, and permuted labels make the table
hypergeometric. So the moments are sums, over cells and pairs of cells, of expectations of f; cells with the same
cluster size a and class size b share them, and so few distinct ones remain.

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
    cluster_sizes, class_sizes : 1-D arrays of positive integers with the same sum N

    Returns
    -------
    mean, variance : float
    """
    a_sizes, a_count = np.unique(cluster_sizes, return_counts=True)
    b_sizes, b_count = np.unique(class_sizes, return_counts=True)
    total = int(np.sum(cluster_sizes))
    table = _Hypergeometric(total)
    first = np.array([[table.mean_f(total, a, b) for b in b_sizes] for a in a_sizes])
    mean = a_count @ first @ b_count
    second = 0.0
    for ia, a in enumerate(a_sizes):
        for ib, b in enumerate(b_sizes):
            p = table.pmf(total, a, b)  # of n_ij = x
            weight = p * table.f[: len(p)] * a_count[ia] * b_count[ib]
            x = np.flatnonzero(weight)
            weight = weight[x]
            second += weight @ table.f[x]  # the cell with itself
            # same cluster, another class; the same with the roles exchanged; another cluster and class
            for jb, b2 in enumerate(b_sizes):
                if b_count[jb] - (jb == ib):
                    rest = table.means(total - b, b2)
                    second += (b_count[jb] - (jb == ib)) * (weight @ rest[a - x])
            for ja, a2 in enumerate(a_sizes):
                others = a_count[ja] - (ja == ia)
                if not others:
                    continue
                second += others * (weight @ table.means(total - a, a2)[b - x])
                for jb, b2 in enumerate(b_sizes):
                    if b_count[jb] - (jb == ib):
                        # of class b's other b - x samples, w lie in the cluster of size a2, leaving it a2 - w places
                        rest = table.means(total - b, b2)[::-1]
                        inner = table.conditional(total - a, a2, b - x, rest, total - b)
                        second += others * (b_count[jb] - (jb == ib)) * (weight @ inner)
    constant = (
        xlogy(total, total) - xlogy(cluster_sizes, cluster_sizes).sum() - xlogy(class_sizes, class_sizes).sum()
    ) / total
    variance = second - mean**2
    if variance < ROUNDING * second:  # one group on a side, or all groups single: nothing varies
        variance = 0.0
    return float(mean / total + constant), float(variance / total**2)


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
        return np.where(possible, np.exp(log_p), 0.0)

    def mean_f(self, total: int, drawn: int, marked: int) -> float:
        """E f(n)."""
        return float(self.pmf(total, drawn, marked) @ self.f[: marked + 1])

    def means(self, total: int, marked: int) -> np.ndarray:
        """E f(n) for drawn = 0..total, [total + 1]."""
        if (total, marked) not in self._means:
            self._means[total, marked] = self.pmf(total, np.arange(total + 1), marked) @ self.f[: marked + 1]
        return self._means[total, marked]

    def conditional(
        self, total: int, marked: int, drawn: np.ndarray, reversed_means: np.ndarray, other: int
    ) -> np.ndarray:
        """E over w of g(marked - w), w marked among `drawn` of `total`; g given as reversed_means[other - argument]."""
        p = self.pmf(total, drawn, marked)
        place = other - marked + np.arange(marked + 1)
        return p @ reversed_means[place.clip(0, other)]  # what lies outside has probability 0

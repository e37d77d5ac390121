"""Work and traffic of cluster by shape, for rooflines. N problems, K samples, n_init restarts, k = 2..k_max clusters."""

from psi_fast_kernels.cluster.reference import CANDIDATES
from psi_fast_kernels.philox.cost import operations as random_operations

STEPS = 4  # of Lloyd per restart and k until no label changes; 4.0 on average over null draws of 100 samples, k = 2..6
MOVES = 12  # samples that change cluster in those steps together, likewise
DISTANCE = 3  # a product, a sum and a comparison per sample and centre
SEED = 5  # a sum for the cumulated distances; a product, two sums and a minimum for the distances that are left


def product_flops(problems: int, samples: int, k_max: int, n_init: int) -> int:
    """Operations when every step's cluster sums are a product of the Gram matrix [K, K] and the assignment [K, k]."""
    columns = sum(range(2, k_max + 1))
    return problems * 2 * samples**2 * columns * (n_init * STEPS + 1)  # and once for the silhouettes


def operations(problems: int, samples: int, k_max: int, n_init: int) -> int:
    """Operations when cluster sums are sums of rows: K rows once per labelling, two for every sample that moves."""
    numbers, columns = k_max - 1, sum(range(2, k_max + 1))
    starts = n_init * k_max * CANDIDATES * SEED * samples
    sums = numbers * (n_init * (samples**2 + 2 * MOVES * samples) + samples**2)
    distances = DISTANCE * samples * columns * (n_init * STEPS + 1)
    return problems * (starts + sums + distances) + random_operations("uniform", problems, n_init * k_max * CANDIDATES)


def bytes_moved(problems: int, samples: int, *, itemsize: int = 4) -> int:
    """Bytes read and written once: Gram matrices, two ids, silhouettes, labels and k."""
    return problems * (itemsize * (samples**2 + 1) + 8 * (samples + 3))

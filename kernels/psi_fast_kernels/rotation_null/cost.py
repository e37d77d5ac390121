"""Work and traffic of rotation_null by shape, for rooflines. C channels, B draws, K samples, r = K - 1 axes, m flat axes."""

from psi_fast_kernels.cluster import cost as cluster
from psi_fast_kernels.philox.cost import operations as random_operations
from psi_fast_kernels.rotation_null.tangent import FLAT_AXES

FLOAT = 4


def product_flops(channels: int, draws: int, samples: int, k_max: int, n_init: int) -> int:
    """Operations that products of matrices do: each draw's Gram matrix, and the cluster sums."""
    pairs = channels * draws
    return pairs * 2 * samples**2 * samples + cluster.product_flops(pairs, samples, k_max, n_init)


def operations(channels: int, draws: int, samples: int, k_max: int, n_init: int) -> int:
    """Operations without matrix units: half of each Gram matrix, the rank-m update, and sums of rows for the clusters."""
    pairs = channels * draws
    return pairs * (samples**2 * samples + _update(samples)) + cluster.operations(pairs, samples, k_max, n_init)


def update_operations(channels: int, draws: int, samples: int) -> int:
    """Operations of the rank-m update, the scaling of the axes and the restored angles alone."""
    return channels * draws * _update(samples)


def pool_operations(draws: int, samples: int) -> int:
    """Operations of `rotation_pool`, which all channels share: normal numbers, QR with its Q, products with the basis."""
    axes = samples - 1
    orthogonal = 8 * axes**3 // 3 + 2 * samples * axes**2
    numbers = random_operations("normal", draws, axes**2 + FLAT_AXES * samples)
    return draws * orthogonal + numbers + random_operations("uniform", draws, FLAT_AXES * samples)


def bytes_moved(channels: int, draws: int, samples: int) -> int:
    """Bytes read and written once: the pool, the channels' axes, angles, weights and ids, and one number per draw."""
    axes = samples - 1
    pool = samples * axes + 2 * FLAT_AXES * samples
    return FLOAT * (draws * pool + channels * (axes + samples + 2 * FLAT_AXES) + channels * draws) + 8 * (
        channels + draws
    )


def _update(samples: int) -> int:
    """Per draw: the columns Y, Y^T Y and Q^T Y, turned and leading columns, their product, lengths, ranks and scaling."""
    axes, flat = samples - 1, FLAT_AXES
    columns = 3 * flat * samples + 2 * flat * samples * (axes + flat) + 2 * flat**2 * axes + 4 * flat**2 * samples
    return columns + 2 * flat * samples * axes + 4 * samples * axes + 2 * samples**2

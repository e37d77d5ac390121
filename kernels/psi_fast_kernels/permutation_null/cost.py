"""Work and traffic of permutation_null by shape, for rooflines."""

from psi_fast_kernels.philox import cost

PER_PAIR = 2  # a comparison and a sum
PER_SAMPLE = 5  # the key's two, the cell's two, the sum of the logarithms


def operations(channels: int, draws: int, samples: int) -> int:
    """Integer and float64 operations when ranks and cell sizes come from comparing all pairs of samples.

    A sort and a table need fewer, of order samples * log(samples); but not side by side on thousands of threads.
    """
    words = cost.operations("uint32", 1, samples)
    return channels * draws * (words + 2 * PER_PAIR * samples**2 + PER_SAMPLE * samples)


def bytes_moved(channels: int, draws: int, samples: int) -> int:
    """Bytes read and written once: both labellings, an id and a sum of entropies per channel, one float64 per draw."""
    return channels * 8 * (2 * samples + 2 + draws)

"""Chunk sizes as pure functions of shape; they bound memory and never change a result."""

LINE = 16  # numbers of 4 bytes in 64
ROWS = 4  # rows a product is split by without a remainder


def draws_per_chunk(samples: int, columns: int, *, budget_bytes: int = 16 * 2**20, itemsize: int = 4) -> int:
    """How many [samples, samples] problems to hold at once so that a chunk's working set stays near the cache.

    Parameters
    ----------
    samples : int
        Samples per problem (K).
    columns : int
        Cluster columns carried per sample (n_init * k_max).
    budget_bytes, itemsize : int
        Bytes one chunk may take, and bytes of one number.
    """
    per_problem = itemsize * samples * (3 * samples + 4 * columns)
    return max(1, budget_bytes // per_problem)


def padded(size: int, multiple: int = LINE) -> int:
    """`size` rounded up to a multiple, by default to whole cache lines of float32.

    A matrix library chooses its loops by the alignment and the shape of what it is given, and splits a lone product
    among its threads. In a batch of padded matrices each one is aligned like the first and splits without a remainder,
    so its result does not depend on the batch it came in.
    """
    return -(-size // multiple) * multiple


def rows_per_chunk(bytes_per_row: int, *, budget_bytes: int = 256 * 2**20) -> int:
    """How many rows of `bytes_per_row` fit into `budget_bytes`, at least one."""
    return max(1, budget_bytes // max(1, bytes_per_row))

"""Chunk sizes as pure functions of shape; they bound memory and never change a result."""

CACHE_LINE = 64  # bytes
LINE = CACHE_LINE // 4  # numbers of 4 bytes
ROWS = 4  # rows a product is split by without a remainder
TILE = 128  # largest Gram matrix that a program holds on the chip


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


def tile_of(samples: int) -> int:
    """Side of the tile that holds a [samples, samples] matrix: a power of two, at least what a product takes."""
    return max(16, 1 << (samples - 1).bit_length())


def cluster_columns(k_max: int, pass_columns: int) -> tuple[int, int]:
    """Columns per number of clusters (a power of two, at least k_max) and how many numbers of clusters a pass holds."""
    columns = max(2, 1 << (k_max - 1).bit_length())
    return columns, max(1, min(pass_columns // columns, 1 << (k_max - 2).bit_length()))


def pass_columns_of(architecture: int) -> int:
    """Cluster columns that take their Lloyd steps at once, for a CUDA architecture such as 90.

    Before 90 the matrix units read both factors from registers, which leaves room for fewer.
    """
    return 64 if architecture >= 90 else 16


def warps_of(tile: int) -> int:
    """Warps of a program that holds a [tile, tile] matrix."""
    return 8 if tile >= TILE else 4


def launch_bytes(free: int) -> int:
    """Bytes that one launch may take for its scratch: enough to fill a GPU, an eighth of what is free at most."""
    return min(free // 8, 2**30)

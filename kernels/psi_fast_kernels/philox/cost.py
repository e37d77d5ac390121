"""Work and traffic of philox by shape, for rooflines."""

from psi_fast_kernels.philox.reference import ROUNDS

ROUND = 10  # integer operations: the two halves of two products, four exclusive ors, two sums of the key
EXTRA = {"uint32": 0, "uniform": 2, "normal": 30, "integers": 1}  # per number; a logarithm or square root counts as one


def operations(kind: str, rows: int, count: int) -> int:
    """Integer and float64 operations of `count` numbers for each of `rows` pairs of channel and draw.

    Parameters
    ----------
    kind : {"uint32", "uniform", "normal", "integers", "permutation"}
        A permutation compares every pair of its words: two comparisons, an equality, two logical operations and a sum.
    """
    words = ROUND * ROUNDS * -(-count // 4)
    return rows * (words + (6 * count**2 if kind == "permutation" else EXTRA[kind] * count))


def bytes_moved(rows: int, count: int) -> int:
    """Bytes read and written: two ids per row and one 8-byte number per place, whatever the kind."""
    return rows * 8 * (2 + count)

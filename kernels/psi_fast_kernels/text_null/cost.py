"""Work and traffic of the text nulls by shape, for rooflines. C channels, B draws, P concepts, k clusters, d dimensions."""

from psi_fast_kernels.philox.cost import operations

FLOAT = 4
INDEX = 8


def shuffle_flops(channels: int, draws: int, concepts: int, clusters: int, width: int, kind: str) -> int:
    """Operations of `text_shuffle_null`: products with the bank (gap) or sums of vectors (pairwise), and random words."""
    once = 2 * channels * clusters * concepts * width if kind == "gap" else 0
    each = clusters if kind == "gap" else 3 * clusters * width + 2 * width
    return once + channels * draws * each + operations("integers", channels * draws, clusters)


def shuffle_bytes(channels: int, draws: int, concepts: int, clusters: int, width: int, kind: str) -> int:
    """Bytes `text_shuffle_null` reads and writes at least: its arguments, the products (gap) twice, and the result."""
    between = 2 * FLOAT * channels * clusters * concepts if kind == "gap" else 0
    return between + _arguments(channels, concepts, clusters, width) + FLOAT * channels * draws


def rotation_flops(channels: int, draws: int, concepts: int, clusters: int, width: int, kind: str) -> int:
    """Operations of `text_rotation_null`: a frame of the bank per draw, then k products with it per channel and draw."""
    axes = min(clusters, width)
    frames = 2 * draws * axes * concepts * width + operations("normal", draws, axes * width)
    each = (2 * axes + 1) * clusters * concepts
    value = 2 * clusters * axes if kind == "gap" else 3 * clusters * width + 2 * width
    return frames + channels * draws * (each + value)


def rotation_bytes(channels: int, draws: int, concepts: int, clusters: int, width: int) -> int:
    """Bytes `text_rotation_null` reads and writes at least: its arguments, the turned banks twice, and the result."""
    turned = 2 * FLOAT * draws * min(clusters, width) * concepts
    return turned + _arguments(channels, concepts, clusters, width) + FLOAT * channels * draws


def _arguments(channels: int, concepts: int, clusters: int, width: int) -> int:
    return FLOAT * width * (channels * clusters + concepts) + INDEX * (2 * channels + concepts)

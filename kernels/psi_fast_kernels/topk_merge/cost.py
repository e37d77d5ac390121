"""Work and traffic of topk_merge by shape, for rooflines."""

CANDIDATE = 12  # bytes of a maximum: float32 value, int64 position
PLACE = 20  # bytes of a place: the same and an int64 image


def operations(images: int, channels: int, positions: int, k: int, *, per_image: int = 1) -> int:
    """Comparisons: each activation with a maximum per rank and a minimum; each candidate with the places and its like."""
    candidates = images * per_image
    pairs = candidates * (2 * k + candidates) if k else 0
    return channels * (images * positions * (per_image + 1) + pairs)


def bytes_moved(images: int, channels: int, positions: int, k: int, *, per_image: int = 1, itemsize: int = 4) -> int:
    """Bytes read and written: activations of `itemsize` bytes once, extremes written, then read and merged into K places."""
    candidates = images * per_image * CANDIDATE
    extremes = images * positions * itemsize + candidates + images * 4
    return channels * (extremes + (candidates + 2 * k * PLACE if k else 0))

"""Memory that a worker takes at its most: on the host, and on a GPU. Notation as in `costs`."""

from psi_fast.evaluation import RANDOM_CHANNELS
from psi_fast.planning.costs import CROP, DOUBLE, FLOAT, INDEX, PLACE, Sizes, mined_images, state_bytes
from psi_fast.planning.workload import Workload
from psi_fast.results import KEPT_DRAWS, KEPT_IMAGES

HANDLE = 8
"""Bytes of a reference in a list of Python's."""
DRAWN = 40
"""Bytes an image while random patches are drawn: random words and their order; measured with 20 million images."""
COPIES = 3
"""A state, what is written of it, and its bytes as the file holds them."""
HELD = 850
"""Bytes of a crop's row in the index of embeddings that a run goes on from, beside its numbers; measured with 60,000 crops."""
SORTING = 190
"""Bytes a place while the distinct ones among all are found; measured with two million places."""
STEP = 8
"""Images at once on a CPU."""
SCRATCH = 2**30
"""Bytes that one launch of null draws may take on a GPU."""


def listing_bytes(work: Workload, images: int) -> float:
    """Names, stamps, labels and sizes of all images, which every worker holds."""
    return images * (work.entry_bytes + 2 * HANDLE + 3 * INDEX)


def host_bytes(work: Workload, sizes: Sizes) -> float:
    """Of a worker's own memory, beyond the libraries, the network and the encoder: what stays, and the stage with most."""
    stages = (mining_bytes(work, sizes), embedding_bytes(work, sizes), scoring_bytes(work, sizes))
    return listing_bytes(work, sizes.images) + max(DRAWN * sizes.images, *stages)


def mining_bytes(work: Workload, sizes: Sizes) -> int:
    """A state while it is written, and a batch on its way through the network."""
    batch = STEP * max(3 * FLOAT * work.network.side**2, work.network.live_bytes)
    return COPIES * state_bytes(work, mined_images(sizes)) + batch


def embedding_bytes(work: Workload, sizes: Sizes) -> int:
    """What was mined, all places while the distinct ones are found, then the crops and their embeddings."""
    places = work.places + work.random_crops(sizes.images)
    found = sizes.crops * (2 * FLOAT * work.embedding_width + CROP + HELD)
    return _mined(work, sizes) + max(SORTING * places, found)


def scoring_bytes(work: Workload, sizes: Sizes) -> int:
    """What was mined; embeddings of all crops, those of a layer, in float64 less their mean and as unit rows; draws and means."""
    rows = sizes.crops * work.embedding_width * (3 * FLOAT + 2 * DOUBLE)
    draws = 3 * min(work.config.draws, KEPT_DRAWS) * work.scored
    means = work.config.k_max * work.embedding_width * work.scored
    return _mined(work, sizes) + rows + 2 * FLOAT * (draws + means)


def _mined(work: Workload, sizes: Sizes) -> int:
    """Top patches with their boxes, and the maxima for charts."""
    places = work.places + work.random_crops(sizes.images)
    tops = work.channels * (work.config.top_k * (PLACE + FLOAT) + FLOAT * min(sizes.images, KEPT_IMAGES))
    return tops + 2 * places * CROP


def mapped_bytes(work: Workload, sizes: Sizes) -> int:
    """Of a worker's squares, which are mapped from their file: the system takes them back when it needs room."""
    return 3 * mined_images(sizes) * work.bank_side**2


def device_bytes(work: Workload, sizes: Sizes, itemsize: int = 2) -> int:
    """On a GPU, without the squares, which go there only where they take less than half of what is free.

    Weights in float32 and once more in the half precision they run in (`itemsize` bytes), and the stage with most.
    """
    config, batch = work.config, work.config.batch_size
    network, encoder = work.network, work.encoder
    weights = (network.weight_bytes + encoder.weight_bytes) * (FLOAT + itemsize) // FLOAT
    read = FLOAT * sum(own.width * own.positions for own in work.layers)  # activations, in float32
    state = state_bytes(work, mined_images(sizes))
    mining = state + batch * (2 * 3 * FLOAT * network.side**2 + network.live_bytes * itemsize // FLOAT + 2 * read)
    embedding = batch * (2 * 3 * FLOAT * encoder.side**2 + encoder.live_bytes * itemsize // FLOAT)
    most = max(own.channels for own in work.layers) + RANDOM_CHANNELS  # clustered by one worker
    row = FLOAT * work.embedding_width
    scoring = 2 * sizes.crops * row + most * (config.k_max * row + 2 * INDEX * config.top_k) + SCRATCH
    scoring += FLOAT * work.concepts * (work.embedding_width + work.head_width + most * config.k_max)
    return weights + max(mining, embedding, scoring)

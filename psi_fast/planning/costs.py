"""What each stage of a run takes: bytes and operations as formulas of the sizes, for N images on W workers.

Several workers share mining by parts of the images, embedding by crops, clusters and null draws by parts of the channels, as
`psi_fast.score` does with workers; all else one does while the others wait. Every number is a whole one of Python's, so that
nothing overflows. N images of f bytes in files, squares of side s; L layers with C
channels in all, of which K top patches each; U distinct crops, d numbers an embedding; B null draws, P concepts.
"""

from dataclasses import dataclass
from typing import NamedTuple

from psi_fast.channel_parts import FEWEST, MOST
from psi_fast.disk_room import HEAD_BYTES
from psi_fast.evaluation import RANDOM_CHANNELS
from psi_fast.planning.workload import Workload
from psi_fast.results import COMPONENTS, KEPT_DRAWS, KEPT_IMAGES
from psi_fast.workers import PARTS_PER_WORKER
from psi_fast_kernels.cluster import cost as cluster
from psi_fast_kernels.permutation_null import cost as permutation
from psi_fast_kernels.philox.cost import operations as random_operations
from psi_fast_kernels.rotation_null import cost as rotation
from psi_fast_kernels.text_null import cost as text
from psi_fast_kernels.topk_merge import cost as topk

FLOAT, DOUBLE, INDEX = 4, 8, 8
PLACE = FLOAT + 2 * INDEX
"""Bytes of a top patch: its activation, its image and its position."""
CROP = 5 * DOUBLE
"""Bytes of a crop: its image and the edges of its box."""
PATCH_ROW, SCORE_ROW = 7, 200
"""Bytes of a row of patches.parquet and of scores.parquet, as they were measured; names that repeat hardly count."""
IMAGE_PARTS = 64
"""Parts of the images: more workers than that find nothing to mine."""
STAGES = ("open images", "load", "concepts", "decoding", "mining", "merge", "embedding", "clusters", "nulls", "writing")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage takes, all workers together.

    read : bytes from storage, of images and of their squares; disk : bytes that it leaves on a disk, at their most
    wire : bytes from one worker to another; flops : operations
    share : of what it counts (images, crops, operations, bytes), as much as the busiest worker has
    pool : of `nulls`, the operations that every worker does for itself; in no `share`
    decoded : images that a stage which is not `decoding` decodes as that does
    moved : bytes that pass through the device's memory at least
    """

    read: int = 0
    disk: int = 0
    wire: int = 0
    flops: int = 0
    share: int = 0
    pool: int = 0
    decoded: int = 0
    moved: int = 0


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """One row of a plan: `images` (N) on `workers` (W), of which `crops` (U) distinct ones are embedded.

    kept : those that are a channel's, of which the run folder has the embeddings; the others are random patches
    products : nulls and clusters by matrix units, as on a GPU; else by loops, as on a CPU
    """

    images: int
    workers: int
    crops: int
    kept: int
    products: bool


def costs(work: Workload, sizes: Sizes) -> dict[str, Cost]:
    """The cost of each stage, by its name in a manifest; those that a manifest has not are `load`, `merge` and `writing`."""
    made = results_bytes(work, sizes)
    return {
        "open images": opening(work, sizes),
        "load": Cost(read=work.network.weight_bytes + work.encoder.weight_bytes, share=1),
        "concepts": Cost(flops=work.text_flops, share=1),
        "decoding": decoding(work, sizes),
        "mining": mining(work, sizes),
        "merge": merging(work, sizes),
        "embedding": embedding(work, sizes),
        "clusters": clustering(work, sizes),
        "nulls": nulls(work, sizes),
        "writing": Cost(disk=made, share=made),
    }


def share(count: int, workers: int) -> int:
    """As much of `count` as the busiest of the workers has."""
    return -(-count // workers)


def opening(work: Workload, sizes: Sizes) -> Cost:
    """Every image's name and stamp; those that cannot be decoded are found by decoding all, if they are to be skipped."""
    tried = sizes.images if work.skip_unreadable else 0
    return Cost(read=round(tried * work.image_bytes), decoded=tried, share=sizes.images)


def decoding(work: Workload, sizes: Sizes) -> Cost:
    """N f bytes read, 3 N s^2 written, by one worker; nothing where images are decoded when they are needed, as mining counts."""
    if not work.bank_side:
        return Cost()
    read = round(sizes.images * work.image_bytes)
    return Cost(read=read, disk=bank_bytes(work, sizes.images), share=sizes.images)


def bank_bytes(work: Workload, images: int) -> int:
    """Of `images` squares and of their originals' sizes; 0 where none are kept."""
    return images * (3 * work.bank_side**2 + 2 * INDEX) if work.bank_side else 0


def mining(work: Workload, sizes: Sizes) -> Cost:
    """N forward passes, and of each layer's activations [N, width, P] the maxima and the K top ones."""
    images = sizes.images
    per_image = 1 if work.config.band else work.config.per_image
    ranked = moved = 0
    for layer in work.layers:
        given = (images, layer.channels, layer.positions, 0)
        ranked += topk.operations(*given, per_image=per_image)  # 0: places do not count twice
        moved += topk.bytes_moved(*given, per_image=per_image, itemsize=2)
    image = 3 * work.bank_side**2 if work.bank_side else work.image_bytes
    mined = mined_images(sizes)
    return Cost(
        read=round(images * image),
        disk=2 * state_bytes(work, mined) * min(sizes.workers, IMAGE_PARTS),  # the old and the new one
        flops=images * work.network.flops + ranked,
        moved=moved + images * 3 * work.network.side**2,
        decoded=0 if work.bank_side else mined,
        share=mined,
    )


def mined_images(sizes: Sizes) -> int:
    """Images that the busiest worker mines: of IMAGE_PARTS parts as many as fall to it."""
    if sizes.workers == 1:
        return sizes.images
    return min(sizes.images, share(IMAGE_PARTS, sizes.workers) * share(sizes.images, IMAGE_PARTS))


def state_bytes(work: Workload, images: int) -> int:
    """What mining holds of its first `images`: of each channel K top patches, three extremes, two sums and the sums by class,
    each of whole parts and of the part that is being read, and maxima of up to 1000 images; with `band` instead of the
    patches every image's maximum, minimum and position."""
    channels, config = work.channels, work.config
    ranked = (2 * FLOAT + INDEX) * images if config.band else PLACE * config.top_k
    sums = 3 * FLOAT + 2 * (2 * DOUBLE + DOUBLE * work.classes)
    return channels * (ranked + sums + FLOAT * min(images, KEPT_IMAGES))


def merging(work: Workload, sizes: Sizes) -> Cost:
    """What each part of the images adds goes to one worker, which puts it in order; nothing where one has mined all."""
    if sizes.workers == 1:
        return Cost()
    own = share(sizes.images, IMAGE_PARTS)
    ranked = own if work.config.band else work.config.top_k
    wire = IMAGE_PARTS * state_bytes(work, own)
    return Cost(wire=wire, disk=wire, moved=2 * wire, share=IMAGE_PARTS * work.channels * ranked)


def embedding(work: Workload, sizes: Sizes) -> Cost:
    """U crops through the encoder; their boxes go to the workers, their embeddings come back. Without a bank the images that
    have a top patch are decoded again."""
    crops, workers = sizes.crops, sizes.workers
    row = FLOAT * work.embedding_width
    square = work.encoder.side**2 * 3
    read = crops * 3 * work.bank_side**2 if work.bank_side else min(crops, sizes.images) * work.image_bytes
    own, again = share(crops, workers), min(crops, sizes.images)
    return Cost(
        read=round(min(read, bank_bytes(work, sizes.images)) if work.bank_side else read),
        disk=crops * (CROP + row),
        wire=crops * (CROP + row) if workers > 1 else 0,
        flops=crops * work.encoder.flops,
        moved=crops * (square + row),
        decoded=0 if work.bank_side else share(again, workers),
        share=own,
    )


def clustering(work: Workload, sizes: Sizes) -> Cost:
    """Of each channel, and of the random-patch ones, the Gram matrix of its patches and k-means for k = 2..k_max."""
    config = work.config
    count = cluster.product_flops if sizes.products else cluster.operations
    one = 2 * config.top_k**2 * work.embedding_width + count(1, config.top_k, config.k_max, config.n_init)
    rows = FLOAT * work.embedding_width * config.top_k
    own = channel_parts(work, sizes.workers)
    return Cost(
        wire=2 * channel_bytes(work, sizes),  # as the encoder gives them, and centred
        flops=work.scored * one,
        moved=work.scored * (rows + cluster.bytes_moved(1, config.top_k)),
        share=own.channels * one,
    )


class ChannelParts(NamedTuple):
    """The parts of all layers' channels: how many, and parts and channels of the busiest worker."""

    parts: int
    busiest: int
    channels: int


def channel_parts(work: Workload, workers: int) -> ChannelParts:
    """Of clusters and null draws."""
    parts = busiest = channels = 0
    for layer in work.layers:
        scored = layer.channels + RANDOM_CHANNELS
        each = scored if workers == 1 else max(FEWEST, min(MOST, share(scored, PARTS_PER_WORKER * workers)))
        own = share(share(scored, each), workers)
        parts += share(scored, each)
        busiest += own
        channels += min(scored, own * each)
    return ChannelParts(parts, busiest, channels)


def channel_bytes(work: Workload, sizes: Sizes) -> int:
    """Embeddings that go to the workers with their channels."""
    row = FLOAT * work.embedding_width
    return row * min(work.scored * work.config.top_k, sizes.workers * sizes.crops) if sizes.workers > 1 else 0


def nulls(work: Workload, sizes: Sizes) -> Cost:
    """B draws of S, Q and D for each channel and random-patch channel. Workers share them in parts of the channels, and make for
    each part anew what its channels have in common: random numbers, and the paper's null of S."""
    config, own = work.config, channel_parts(work, sizes.workers)
    each, pool = draw_operations(work, sizes.products) + text_operations(work), pool_operations(work, sizes.products)
    kept = len(COMPONENTS) * min(config.draws, KEPT_DRAWS) * FLOAT
    return Cost(
        wire=work.scored * kept + channel_bytes(work, sizes) if sizes.workers > 1 else 0,
        flops=work.scored * each + own.parts * pool,
        moved=own.parts * rotation.bytes_moved(0, config.draws, config.top_k)
        + work.scored * rotation.bytes_moved(1, config.draws, 0),
        share=own.channels * each,
        pool=own.busiest * pool,
    )


def draw_operations(work: Workload, products: bool) -> int:
    """Of one channel's draws of S and Q."""
    config = work.config
    draws, samples = config.draws, config.top_k
    total = 0
    if config.rotation != "independent":
        count = rotation.product_flops if products else rotation.operations
        total += count(1, draws, samples, config.k_max, config.n_init)
    if work.classes:
        total += permutation.operations(1, draws, samples) if products else _sorted_operations(draws, samples)
    return total


def text_operations(work: Workload) -> int:
    """Of one channel's draws of D."""
    config = work.config
    if not work.concepts:
        return 0
    count = text.shuffle_flops if config.text_null == "shuffled" else text.rotation_flops
    return count(1, config.draws, work.concepts, config.k_max, work.embedding_width, config.distinctness)


def pool_operations(work: Workload, products: bool) -> int:
    """Of what all channels of a layer share: the rotations, and B data sets of patches that point anywhere."""
    config = work.config
    draws, samples, width = config.draws, config.top_k, work.embedding_width
    shared = rotation.pool_operations(draws, samples) if config.rotation != "independent" else 0
    anywhere = random_operations("normal", draws, samples * width) + draws * 2 * samples**2 * width
    given = (draws, samples, config.k_max, config.n_init)
    return shared + anywhere + (cluster.product_flops(*given) if products else cluster.operations(*given))


def _sorted_operations(draws: int, samples: int) -> int:
    """Of permuted labels by a sort and a table, as a CPU does it."""
    each = samples * ((samples - 1).bit_length() + permutation.PER_SAMPLE)
    return draws * each + random_operations("uint32", draws, samples)


def results_bytes(work: Workload, sizes: Sizes) -> int:
    """Of the run folder's files."""
    rows = work.places * PATCH_ROW + work.channels * SCORE_ROW
    return embeddings_bytes(work, sizes) + distributions_bytes(work, sizes) + rows + HEAD_BYTES


def embeddings_bytes(work: Workload, sizes: Sizes) -> int:
    """Of embeddings.safetensors without its head: crops, but not random ones, where each place finds its own, and concepts."""
    numbers = sizes.kept * work.embedding_width + work.concepts * (work.embedding_width + work.head_width)
    return FLOAT * numbers + INDEX * work.places


def distributions_bytes(work: Workload, sizes: Sizes) -> int:
    """Of distributions.safetensors without its head: draws of the components there are, maxima, random-patch channels."""
    components = 1 + bool(work.classes) + bool(work.concepts)
    kept = components * min(work.config.draws, KEPT_DRAWS) + min(sizes.images, KEPT_IMAGES)
    return FLOAT * work.channels * kept + DOUBLE * RANDOM_CHANNELS * len(work.layers)


def disk_bytes(work: Workload, sizes: Sizes, made: dict[str, Cost]) -> int:
    """What lies on disks at the end of a run at most, all workers together: the squares, what a run goes on from, its files."""
    kept = state_bytes(work, sizes.images) + made["embedding"].disk
    return made["decoding"].disk + kept + made["writing"].disk

"""The text nulls on a GPU: random concepts are drawn where their terms are summed, and no rotated bank leaves the chip.

The products with the whole bank are torch's; a kernel then reads k numbers (gap) or vectors (pairwise) a draw. The rotated
null searches the k products of one channel and draw, m terms each, block by block over the bank.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from psi_fast_kernels._chunks import in_chunks
from psi_fast_kernels._specimen import Specimen
from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import rows_per_chunk
from psi_fast_kernels.philox.triton_impl import key_words, philox4x32, signed_word, to_integer
from psi_fast_kernels.text_null.frames import bytes_per_draw, frame_size, gram_root, turned_banks
from psi_fast_kernels.text_null.nearest import aligned
from psi_fast_kernels.text_null.reference import (
    BUDGET,
    channel_fits,
    channels_per_chunk,
    distinct_pool,
    gap_vectors,
    used_clusters,
)

DRAWS = 256  # draws per program of the gap's shuffle
VECTORS = 2048  # numbers of a tile of summed concept vectors
WIDEST = 512  # numbers of a vector read at once
COLUMNS = 128  # concepts compared at once
SHUFFLE = tl.constexpr(int(Stream.TEXT_SHUFFLE))


@triton.jit(do_not_specialize=["first", "draws", "pool", "key_low", "key_high"])
def _shuffled_gaps(
    result,  # [C, B]
    fit,  # [C, k_max, columns], nu_l . T_p
    concepts,  # [pool] int64
    channel,  # [C] int64
    k,  # [C] int64
    first,
    draws,
    pool,
    k_max,
    columns,
    key_low,
    key_high,
    DRAWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * DRAWS + tl.arange(0, DRAWS)
    clusters = tl.load(k + row).to(tl.int32)
    total = tl.zeros([DRAWS], fit.dtype.element_ty)
    for block in range(tl.cdiv(clusters, 4)):
        words = philox4x32(block, first + place, tl.load(channel + row), SHUFFLE, key_low, key_high)
        for i in tl.static_range(4):
            concept = tl.load(concepts + to_integer(words[i], pool))
            cluster = 4 * block + i
            inside = place < tl.where(cluster < clusters, draws, 0)
            total += tl.load(fit + (row * k_max + cluster) * columns + concept, mask=inside, other=0)
    tl.store(result + row * draws + place, total, mask=place < draws)


@triton.jit(do_not_specialize=["first", "draws", "pool", "key_low", "key_high"])
def _shuffled_distances(
    result,  # [C, B]
    bank,  # [U, width]
    concepts,  # [pool] int64
    channel,  # [C] int64
    k,  # [C] int64
    first,
    draws,
    pool,
    width,
    key_low,
    key_high,
    DRAWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * DRAWS + tl.arange(0, DRAWS)
    clusters = tl.load(k + row).to(tl.int32)
    pairs = tl.zeros([DRAWS], bank.dtype.element_ty)  # sum over j != l of T_j . T_l
    for start in range(0, width, WIDTH):
        column = start + tl.arange(0, WIDTH)
        whole = tl.zeros([DRAWS, WIDTH], bank.dtype.element_ty)
        own = tl.zeros([DRAWS, WIDTH], bank.dtype.element_ty)
        for block in range(tl.cdiv(clusters, 4)):
            words = philox4x32(block, first + place, tl.load(channel + row), SHUFFLE, key_low, key_high)
            for i in tl.static_range(4):
                concept = tl.load(concepts + to_integer(words[i], pool))
                inside = column < tl.where(4 * block + i < clusters, width, 0)
                vector = tl.load(bank + concept[:, None] * width + column[None, :], mask=inside[None, :], other=0)
                whole += vector
                own += vector * vector
        pairs += tl.sum(whole * whole - own, axis=1)
    distance = 1 - pairs / (clusters * (clusters - 1)).to(bank.dtype.element_ty)
    tl.store(result + row * draws + place, distance, mask=place < draws)


@triton.jit(do_not_specialize=["first", "draws"])
def _rotated_values(
    result,  # [C, B]
    root,  # [C, k_max, size], L
    weights,  # [C, k_max, size], nu in the frame
    turned,  # [b, size, stride], F T^T
    head,  # [P, width]
    k,  # [C] int64
    first,  # column of the result that the first of the b draws goes to
    draws,
    k_max,
    size,
    columns,  # P
    stride,
    width,
    KIND: tl.constexpr,
    CLUSTERS: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    draw = tl.program_id(1).to(tl.int64)
    dtype = head.dtype.element_ty
    cluster = tl.arange(0, CLUSTERS)
    clusters = tl.load(k + row).to(tl.int32)
    used = cluster < clusters
    own = (row * k_max + cluster) * size
    # every lane keeps the first of its own largest products; the lanes are compared once, at the end
    highest = tl.full([CLUSTERS, COLUMNS], float("-inf"), dtype)
    where = tl.zeros([CLUSTERS, COLUMNS], tl.int32)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        product = tl.zeros([CLUSTERS, COLUMNS], dtype)
        for axis in range(size):
            left = tl.load(root + own + axis, mask=used, other=0)
            right = tl.load(turned + (draw * size + axis) * stride + column, mask=column < columns, other=0)
            product += left[:, None] * right[None, :]
        better = (product > highest) & (column < columns)[None, :]
        highest = tl.where(better, product, highest)
        where = tl.where(better, column[None, :], where)
    top = tl.max(highest, axis=1)
    nearest = tl.min(tl.where(highest == top[:, None], where, columns - 1), axis=1)
    if KIND == "gap":
        axis = tl.arange(0, SIZE)
        inside = used[:, None] & (axis < size)[None, :]
        left = tl.load(weights + own[:, None] + axis[None, :], mask=inside, other=0)
        right = tl.load(turned + (draw * size + axis)[None, :] * stride + nearest[:, None], mask=inside, other=0)
        value = tl.sum(tl.sum(left * right, axis=1), axis=0)
    else:
        pairs = tl.zeros([WIDTH], dtype)
        for start in range(0, width, WIDTH):
            column = start + tl.arange(0, WIDTH)
            inside = used[:, None] & (column < width)[None, :]
            vector = tl.load(head + nearest.to(tl.int64)[:, None] * width + column[None, :], mask=inside, other=0)
            whole = tl.sum(vector, axis=0)
            pairs += whole * whole - tl.sum(vector * vector, axis=0)
        value = 1 - tl.sum(pairs, axis=0) / (clusters * (clusters - 1)).to(dtype)
    tl.store(result + row * draws + first + draw, value)


def text_shuffle_null(
    prototypes: Tensor,
    k: Tensor,
    text: Tensor,
    *,
    kind: str,
    head: Tensor,
    pool: Tensor | None,
    draws: range,
    seed: int,
    channel: Tensor,
) -> Tensor:
    """See `psi_fast_kernels.text_null.op.text_shuffle_null`."""
    bank, concepts = distinct_pool(text if kind == "gap" else head, pool)
    bank, channel, k = bank.contiguous(), channel.contiguous(), k.contiguous()
    result = prototypes.new_empty(len(k), len(draws))
    first, key = signed_word(draws.start), key_words(seed)
    if kind == "pairwise":
        rows, width = vector_tile(bank.shape[1])
        _shuffled_distances[(len(k), triton.cdiv(len(draws), rows))](
            result, bank, concepts, channel, k, first, len(draws), len(concepts), bank.shape[1], *key,
            DRAWS=rows, WIDTH=width, num_warps=4,
        )  # fmt: skip
        return result
    columns = aligned(bank)

    def work(part: slice) -> None:
        fit = channel_fits(prototypes[part], k[part], columns)
        _shuffled_gaps[(len(fit), triton.cdiv(len(draws), DRAWS))](
            result[part], fit, concepts, channel[part], k[part], first, len(draws), len(concepts), fit.shape[1],
            len(columns), *key, DRAWS=DRAWS, num_warps=4,
        )  # fmt: skip

    in_chunks(work, len(k), channels_per_chunk(prototypes, columns, 0, kind), "channels")
    return result


def text_rotation_null(
    prototypes: Tensor, k: Tensor, text: Tensor, *, kind: str, head: Tensor, draws: range, seed: int
) -> Tensor:
    """See `psi_fast_kernels.text_null.op.text_rotation_null`."""
    channels, k_max, width = prototypes.shape
    size, bank = frame_size(k_max, width), aligned(text)
    root = gram_root(torch.where(used_clusters(prototypes, k)[..., None], prototypes, 0)).contiguous()
    weights = gap_vectors(root, k)
    head, k = head.contiguous(), k.contiguous()
    result = prototypes.new_empty(channels, len(draws))

    def work(part: slice) -> None:
        block = range(draws.start + part.start, draws.start + part.stop)
        turned = turned_banks(bank, width, size, draws=block, seed=seed)
        _rotated_values[(channels, len(block))](
            result, root, weights, turned, head, k, part.start, len(draws), k_max, size, len(text), len(bank),
            head.shape[1], KIND=kind, CLUSTERS=triton.next_power_of_2(k_max), SIZE=triton.next_power_of_2(size),
            COLUMNS=columns_tile(len(text)), WIDTH=vector_tile(head.shape[1])[1], num_warps=4,
        )  # fmt: skip

    per_draw = bytes_per_draw(len(bank), width, size, text.itemsize)
    # a launch's second dimension ends at 65,535
    in_chunks(work, len(draws), min(rows_per_chunk(per_draw, budget_bytes=BUDGET), 65_535), "draws")
    return result


def vector_tile(width: int) -> tuple[int, int]:
    """Draws and numbers of their vectors in one tile, powers of two."""
    across = min(max(16, triton.next_power_of_2(width)), WIDEST)
    return VECTORS // across, across


def columns_tile(concepts: int) -> int:
    """Concepts compared at once, a power of two."""
    return min(max(16, triton.next_power_of_2(concepts)), COLUMNS)


def specimens() -> list[Specimen]:
    """The kernels at the defaults, 512 dimensions and k_max = 6, and at k_max = 16."""
    rows, width = vector_tile(512)
    random = {"first": "i32", "draws": "i32", "pool": "i32", "key_low": "i32", "key_high": "i32"}
    inputs = {"result": "*fp32", "concepts": "*i64", "channel": "*i64", "k": "*i64", **random}
    found = [
        Specimen(
            "shuffled gap",
            _shuffled_gaps,
            {**inputs, "fit": "*fp32", "k_max": "i32", "columns": "i32"},
            {"DRAWS": DRAWS},
        ),
        Specimen(
            "shuffled pairwise",
            _shuffled_distances,
            {**inputs, "bank": "*fp32", "width": "i32"},
            {"DRAWS": rows, "WIDTH": width},
        ),
    ]
    pointers = dict.fromkeys(("result", "root", "weights", "turned", "head"), "*fp32")
    sizes = dict.fromkeys(("first", "draws", "k_max", "size", "columns", "stride", "width"), "i32")
    for kind in ("gap", "pairwise"):
        for clusters in (8, 16):
            constants = {"KIND": kind, "CLUSTERS": clusters, "SIZE": clusters, "COLUMNS": COLUMNS, "WIDTH": width}
            name = f"rotated {kind}, {clusters} clusters"
            signature = {**pointers, **sizes, "k": "*i64"}
            found.append(Specimen(name, _rotated_values, signature, constants, default=clusters == 8))
    return found

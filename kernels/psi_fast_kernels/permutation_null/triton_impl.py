"""Permuted labels on the GPU: one program per channel and block of draws, a draw on chip from its words to one number.

The rank of a sample's word and the size of a sample's cell in the contingency table both count the samples that stand in
a relation to it. So a draw is two comparisons of all pairs, without a sort and without the table.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from psi_fast_kernels._specimen import Specimen
from psi_fast_kernels._streams import Stream
from psi_fast_kernels.permutation_null import reference
from psi_fast_kernels.permutation_null.reference import SINGLE, entropy, log_table
from psi_fast_kernels.philox.triton_impl import in_order, key_words, philox4x32

LARGEST = 512  # samples of one program, a thread each
COMPARED = 32  # samples that each thread's own one is compared with at once
DRAWS = 16  # per program, which share a channel's clusters
GROUP_OF_ONE = tl.constexpr(SINGLE)


@triton.jit(do_not_specialize=["first", "draws", "samples", "classes", "stream", "key_low", "key_high"])
def _permuted(
    clusters,  # [C, samples] int64
    labels,  # [C, samples] int64 in [0, classes)
    channel,  # [C] int64
    apart,  # [C] float64, the sum of both entropies
    logarithms,  # [samples + 1] float64, log n
    result,  # [C, draws] float64
    first,  # index of the first draw
    draws,
    samples,
    classes,
    stream,
    key_low,
    key_high,
    SAMPLES: tl.constexpr,  # samples rounded up
    STEP: tl.constexpr,  # samples that all others are compared with at once
    DRAWS: tl.constexpr,
):
    blocks = tl.cdiv(draws, DRAWS)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks) * DRAWS
    sample = tl.arange(0, SAMPLES)
    inside = sample < samples
    own_cluster = tl.load(clusters + row * samples + sample, mask=inside, other=0).to(tl.int32)
    own_channel = tl.load(channel + row)
    both = tl.load(apart + row)
    log_samples = tl.load(logarithms + samples)
    for draw in range(start, tl.minimum(start + DRAWS, draws)):
        word0, word1, word2, word3 = philox4x32(
            tl.arange(0, SAMPLES // 4), tl.cast(first, tl.int64) + draw, own_channel, stream, key_low, key_high
        )
        # equal words rank by their place, as in a stable sort
        key = in_order(word0, word1, word2, word3).to(tl.int64) * SAMPLES + sample
        key = tl.where(inside, key, 1 << 62)
        rank = tl.zeros([SAMPLES], tl.int32)
        for step in range(0, samples, STEP):
            other = tl.gather(key, step + tl.arange(0, STEP), 0)
            rank += tl.sum((other[:, None] < key[None, :]).to(tl.int32), axis=0)
        label = tl.load(labels + row * samples + rank, mask=inside, other=0).to(tl.int32)
        cell = tl.where(inside, own_cluster * classes + label, -1)
        count = tl.zeros([SAMPLES], tl.int32)
        for step in range(0, samples, STEP):
            other_cell = tl.gather(cell, step + tl.arange(0, STEP), 0)
            count += tl.sum((other_cell[:, None] == cell[None, :]).to(tl.int32), axis=0)
        # the sum over cells of n log n is the sum over samples of the logarithm of their cell's size
        total = tl.sum(tl.load(logarithms + count, mask=inside, other=0.0), axis=0)
        together = log_samples - total / tl.cast(samples, tl.float64)
        information = 2 * (both - together)
        value = tl.minimum(tl.maximum(information / tl.where(both < GROUP_OF_ONE, 1.0, both), 0.0), 1.0)
        tl.store(result + row * draws + draw, tl.where(both < GROUP_OF_ONE, 1.0, value))


def permutation_null(clusters: Tensor, labels: Tensor, *, draws: range, seed: int, channel: Tensor) -> Tensor:
    """See `psi_fast_kernels.permutation_null.op.permutation_null`; more than LARGEST samples go to the reference."""
    channels, samples = clusters.shape
    if samples > LARGEST:
        return reference.permutation_null(clusters, labels, draws=draws, seed=seed, channel=channel)
    result = torch.empty(channels, len(draws), dtype=torch.float64, device=clusters.device)
    if result.numel():
        size, step, warps = tile(samples)
        _permuted[(channels * triton.cdiv(len(draws), DRAWS),)](
            clusters.contiguous(), labels.contiguous(), channel.contiguous(), entropy(clusters) + entropy(labels),
            log_table(samples, clusters.device), result, draws.start, len(draws), samples, int(labels.max()) + 1,
            int(Stream.LABEL_PERMUTATION), *key_words(seed), SAMPLES=size, STEP=step, DRAWS=DRAWS, num_warps=warps,
        )  # fmt: skip
    return result


def tile(samples: int) -> tuple[int, int, int]:
    """Samples of a program, a power of two of whole blocks of 4 words; how many it compares at once; its warps."""
    size = max(16, triton.next_power_of_2(samples))
    return size, min(size, COMPARED), max(1, size // 32)


def specimens() -> list[Specimen]:
    """The kernel at K = 100, the default, and at the smallest and the largest tile."""
    pointers = {"clusters": "*i64", "labels": "*i64", "channel": "*i64"}
    pointers |= {"apart": "*fp64", "logarithms": "*fp64", "result": "*fp64"}
    numbers = dict.fromkeys(("first", "draws", "samples", "classes", "stream", "key_low", "key_high"), "i32")
    found = []
    for samples in (100, 4, LARGEST):
        size, step, warps = tile(samples)
        constants = {"SAMPLES": size, "STEP": step, "DRAWS": DRAWS}
        found.append(
            Specimen(f"K = {samples}", _permuted, pointers | numbers, constants, warps=warps, default=samples == 100)
        )
    return found

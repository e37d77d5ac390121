"""Two kernels: one reads the activations, once, and leaves each image's extremes; one merges these into the top-K.

Floats are compared as int32 keys of the same order. Two launches rather than one program per channel that does both,
since a layer with few channels has large maps: channels and images together fill the device.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from psi_fast_kernels._specimen import Specimen
from psi_fast_kernels.topk_merge.reference import Extremes, Maxima, TopK, merge

RANKED = 1024  # most places, and most new candidates, that the merge ranks by comparing pairs; more are sorted
COMPARED = 4096  # pairs one step of the merge compares
LOADED = 2048  # numbers one program of 4 warps holds
WHOLE_MAP = 16384  # largest map that one program holds, which reads a channel's positions as they lie
NAN_KEY = tl.constexpr(2**31 - 1)
NO_KEY = tl.constexpr(-(2**31))  # below the key of -inf


class Tile(NamedTuple):
    """Channels and positions one program holds, powers of two; whether these are all positions; warps."""

    channels: int
    positions: int
    whole: bool
    warps: int


@triton.jit
def _key(value):
    """int32 in the order of float32 values, with -0 = 0 and NaN above inf."""
    value = value.to(tl.float32)
    bits = value.to(tl.int32, bitcast=True)
    bits = tl.where(bits == NO_KEY, 0, bits)  # -0
    return tl.where(value != value, NAN_KEY, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def _value(key):
    """The float32 of a key; NaN of NAN_KEY and of NO_KEY."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _load_keys(row, place, stride_position, inside_channel, positions):
    """Keys [channels, positions] of the places; NO_KEY outside."""
    inside = inside_channel[:, None] & (place[None, :] < positions)
    value = tl.load(row[:, None] + place[None, :] * stride_position, mask=inside, other=0.0)
    return tl.where(inside, _key(value), NO_KEY)


@triton.jit
def _lowest(key):
    """Key whose minimum is the smallest value: places outside count as the largest, NaN as the smallest."""
    return tl.where(key == NO_KEY, NAN_KEY, tl.where(key == NAN_KEY, NO_KEY, key))


@triton.jit
def _extremes(
    activations,  # [B, C, P] by strides
    values,  # [B, per_image, C] float32
    places,  # [B, per_image, C] int64
    minima,  # [B, C] float32
    stride_image,
    stride_channel,
    stride_position,
    channels,
    positions,
    per_image,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    WHOLE: tl.constexpr,  # one tile holds all positions, so it is read once for all ranks
):
    blocks = tl.cdiv(channels, CHANNELS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    channel = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    row = activations + image * stride_image + channel.to(tl.int64) * stride_channel
    tile = tl.arange(0, POSITIONS)
    out = image * per_image * channels + channel
    if WHOLE:
        left = _load_keys(row, tile, stride_position, inside, positions)
        low = _lowest(left)
        for _ in range(per_image):
            best = tl.max(left, axis=1)
            first = tl.min(tl.where(left == best[:, None], tile[None, :], POSITIONS), axis=1)
            tl.store(values + out, _value(best), mask=inside)
            tl.store(places + out, first.to(tl.int64), mask=inside)
            left = tl.where(tile[None, :] == first[:, None], NO_KEY, left)
            out += channels
    else:
        low = tl.full([CHANNELS, POSITIONS], NAN_KEY, tl.int32)
        last_key = tl.full([CHANNELS], NAN_KEY, tl.int32)
        last_place = tl.full([CHANNELS], -1, tl.int32)
        for _ in range(per_image):
            # per lane the first of the largest, among what follows the rank before
            best = tl.full([CHANNELS, POSITIONS], NO_KEY, tl.int32)
            best_place = tl.zeros([CHANNELS, POSITIONS], tl.int32)
            for start in range(0, positions, POSITIONS):
                place = start + tile
                key = _load_keys(row, place, stride_position, inside, positions)
                low = tl.minimum(low, _lowest(key))
                after = (key == last_key[:, None]) & (place[None, :] > last_place[:, None])
                better = (key > best) & ((key < last_key[:, None]) | after)
                best = tl.where(better, key, best)
                best_place = tl.where(better, place[None, :], best_place)
            last_key = tl.max(best, axis=1)
            last_place = tl.min(tl.where(best == last_key[:, None], best_place, positions), axis=1)
            tl.store(values + out, _value(last_key), mask=inside)
            tl.store(places + out, last_place.to(tl.int64), mask=inside)
            out += channels
    tl.store(minima + image * channels + channel, _value(tl.min(low, axis=1)), mask=inside)


@triton.jit(do_not_specialize=["first_image"])
def _merge(
    old_values,  # [C, K] float32, descending
    old_images,  # [C, K] int64
    old_places,  # [C, K] int64
    new_values,  # [N, C] float32, N = B * per_image
    new_places,  # [N, C] int64
    values,  # [C, K], as the old ones
    images,
    places,
    first_image,
    per_image,
    channels,
    k,
    count,  # N
    PLACES: tl.constexpr,  # K rounded up
    STEP: tl.constexpr,
):
    channel = tl.program_id(0).to(tl.int64)
    out = channel * k
    place = tl.arange(0, PLACES)
    held = place < k
    old = _key(tl.load(old_values + out + place, mask=held, other=0.0))
    # a place of the sorted old ones falls behind the larger new ones; an old value goes before an equal new one
    old_rank = place
    step = tl.arange(0, STEP)
    for start in range(0, count, STEP):
        candidate = start + step
        inside = candidate < count
        value = tl.load(new_values + candidate * channels + channel, mask=inside, other=0.0)
        new = _key(value)
        over = new[None, :] > old[:, None]
        old_rank += tl.sum((over & inside[None, :]).to(tl.int32), axis=1)
        rank = tl.sum((held[:, None] & ~over).to(tl.int32), axis=0)
        for other_start in range(0, count, STEP):
            other = other_start + step
            other_inside = other < count
            other_key = _key(tl.load(new_values + other * channels + channel, mask=other_inside, other=0.0))
            before = other_key[:, None] > new[None, :]
            before |= (other_key[:, None] == new[None, :]) & (other[:, None] < candidate[None, :])
            rank += tl.sum((before & other_inside[:, None]).to(tl.int32), axis=0)
        kept = inside & (rank < k)
        tl.store(values + out + rank, value, mask=kept)
        tl.store(images + out + rank, (first_image + candidate // per_image).to(tl.int64), mask=kept)
        new_place = tl.load(new_places + candidate * channels + channel, mask=kept, other=0)
        tl.store(places + out + rank, new_place, mask=kept)
    kept = held & (old_rank < k)
    tl.store(values + out + old_rank, tl.load(old_values + out + place, mask=kept, other=0.0), mask=kept)
    tl.store(images + out + old_rank, tl.load(old_images + out + place, mask=kept, other=0), mask=kept)
    tl.store(places + out + old_rank, tl.load(old_places + out + place, mask=kept, other=0), mask=kept)


def topk_merge(top: TopK, activations: Tensor, first_image: int, *, per_image: int) -> tuple[TopK, Extremes]:
    """See `psi_fast_kernels.topk_merge.op.topk_merge`; activations [B, C, P].

    The activations are read once; again for every further rank only where a program does not hold a whole map.
    """
    images, channels, positions = activations.shape
    device = activations.device
    values = torch.empty(images, per_image, channels, device=device)
    places = torch.empty(images, per_image, channels, dtype=torch.int64, device=device)
    minima = torch.empty(images, channels, device=device)
    tile = extremes_tile(channels, positions, by_channel=activations.stride(1) < activations.stride(2))
    _extremes[(images * triton.cdiv(channels, tile.channels),)](
        activations, values, places, minima, *activations.stride(), channels, positions, per_image,
        CHANNELS=tile.channels, POSITIONS=tile.positions, WHOLE=tile.whole, num_warps=tile.warps,
    )  # fmt: skip
    extremes = Extremes(values[:, 0], places[:, 0], minima)
    k, count = top.values.shape[1], images * per_image
    if k == 0:
        return top, extremes
    if max(k, count) > RANKED:
        return merge(top, Maxima(values.permute(2, 0, 1), places.permute(2, 0, 1)), first_image), extremes
    old = [part.contiguous() for part in top]
    merged = TopK(*(torch.empty_like(part) for part in old))
    places_tile, step = merge_tile(k)
    _merge[(channels,)](
        *old, values, places, *merged, first_image, per_image, channels, k, count,
        PLACES=places_tile, STEP=step, num_warps=4,
    )  # fmt: skip
    return merged, extremes


def extremes_tile(channels: int, positions: int, *, by_channel: bool) -> Tile:
    """What one program holds of [C, P]; `by_channel` says that neighbours in memory are channels, not positions.

    Neighbours are read together: 32 channels at least in the one case, whole maps in the other.
    """
    width = triton.next_power_of_2(positions)
    if by_channel:
        width = min(width, LOADED // 32)
    elif width > WHOLE_MAP:
        width = LOADED
    height = min(triton.next_power_of_2(channels), max(1, LOADED // width), 128)
    warps = 4 if height * width <= LOADED else 8 if height * width <= 4 * LOADED else 16
    return Tile(height, width, positions <= width, warps)


def merge_tile(k: int) -> tuple[int, int]:
    """Places per program and new candidates per step, powers of two."""
    places = triton.next_power_of_2(k)
    return places, max(1, min(32, COMPARED // places))


def specimens() -> list[Specimen]:
    """The last and the first maps of a ResNet-50, and tokens of a ViT; the top 100 and 512."""
    names = ("stride_image", "stride_channel", "stride_position", "channels", "positions", "per_image")
    outputs = {"values": "*fp32", "places": "*i64", "minima": "*fp32"}
    found = []
    for channels, side, dtype, by_channel in (
        (2048, 7, "fp32", False),
        (64, 112, "fp32", False),
        (768, 14, "bf16", True),
    ):
        tile = extremes_tile(channels, side * side, by_channel=by_channel)
        fixed = "stride_channel" if by_channel else "stride_position"
        found.append(
            Specimen(
                f"extremes of {channels} x {side} x {side} {dtype}",
                _extremes,
                {"activations": f"*{dtype}", **outputs, **{name: "i32" for name in names if name != fixed}},
                {"CHANNELS": tile.channels, "POSITIONS": tile.positions, "WHOLE": tile.whole, fixed: 1},
                warps=tile.warps,
            )
        )
    tensors = {f"{when}{what}": kind for when in ("old_", "new_", "") for what, kind in outputs.items()}
    for k in (100, 512):
        places, step = merge_tile(k)
        found.append(
            Specimen(
                f"merge into {k}",
                _merge,
                {
                    **{name: kind for name, kind in tensors.items() if not name.endswith("minima")},
                    "old_images": "*i64",
                    "images": "*i64",
                    **dict.fromkeys(("first_image", "per_image", "channels", "k", "count"), "i32"),
                },
                {"PLACES": places, "STEP": step},
                default=k == 100,
            )
        )
    return found

"""k-means and silhouette in Triton: one program per problem; Gram matrices up to TILE on the chip, larger ones by blocks."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from psi_fast_kernels._chunks import in_chunks
from psi_fast_kernels._hardware import architecture_of, free_bytes
from psi_fast_kernels._specimen import Specimen
from psi_fast_kernels._tiling import (
    TILE,
    cluster_columns,
    launch_bytes,
    pass_columns_of,
    rows_per_chunk,
    tile_of,
    warps_of,
)
from psi_fast_kernels.cluster.reference import SAME, Clustering
from psi_fast_kernels.cluster.triton_blocks import cluster_blocks
from psi_fast_kernels.cluster.triton_tile import best_clustering
from psi_fast_kernels.philox.triton_impl import key_words


def cluster(
    gram: Tensor, *, k_max: int, n_init: int, seed: int, stream: int, channel: Tensor, draw: Tensor
) -> Clustering:
    """See `psi_fast_kernels.cluster.op.cluster`; computed in float32."""
    problems, samples, _ = gram.shape
    found = Clustering(
        gram.new_empty(problems),
        torch.empty(problems, samples, dtype=torch.int64, device=gram.device),
        torch.empty(problems, dtype=torch.int64, device=gram.device),
    )
    start = {"k_max": k_max, "n_init": n_init, "key": (*key_words(seed), int(stream))}
    tile = tile_of(samples)
    run = _on_the_chip if tile <= TILE else _by_blocks
    columns, groups = cluster_columns(k_max, pass_columns_of(architecture_of(gram.device)))

    def work(part: slice) -> None:
        for whole, own in zip(
            found, run(gram[part], channel[part], draw[part], tile, columns, groups, **start), strict=True
        ):
            whole[part] = own

    per_problem = 12 * tile * tile + n_init * (4 * tile * columns * groups + 8 * k_max * samples)
    in_chunks(
        work, problems, rows_per_chunk(per_problem, budget_bytes=launch_bytes(free_bytes(gram.device))), "problems"
    )
    return found


def _on_the_chip(
    gram: Tensor, channel: Tensor, draw: Tensor, tile: int, columns: int, groups: int, *, k_max: int, n_init: int,
    key: tuple[int, int, int],
) -> Clustering:  # fmt: skip
    problems, samples, _ = gram.shape
    found = Clustering(
        torch.empty(problems, dtype=torch.float32, device=gram.device),
        torch.empty(problems, samples, dtype=torch.int64, device=gram.device),
        torch.empty(problems, dtype=torch.int64, device=gram.device),
    )
    starts = torch.empty(problems, n_init, columns, dtype=torch.int32, device=gram.device)
    kept = torch.empty(problems, k_max - 1, samples, dtype=torch.int8, device=gram.device)
    _cluster[(problems,)](
        split_gram(gram, tile), channel, draw, starts, kept, *found, samples, k_max, n_init, *key,
        T=tile, P=columns, G=groups, num_warps=warps_of(tile), num_stages=1,
    )  # fmt: skip
    return found


def _by_blocks(
    gram: Tensor, channel: Tensor, draw: Tensor, tile: int, columns: int, groups: int, *, k_max: int, n_init: int,
    key: tuple[int, int, int],
) -> Clustering:  # fmt: skip
    problems, samples, _ = gram.shape
    shape = (problems, n_init, k_max - 1)
    starts = torch.empty(problems, n_init, columns, dtype=torch.int32, device=gram.device)
    labels = torch.empty(*shape, samples, dtype=torch.int8, device=gram.device)
    sums = torch.empty(problems, n_init, tile, columns * groups, dtype=torch.float32, device=gram.device)
    inertias, values = (torch.empty(shape, dtype=torch.float32, device=gram.device) for _ in range(2))
    cluster_blocks[(problems * n_init,)](
        split_gram(gram, tile), channel, draw, starts, labels, sums, inertias, values, samples, k_max, n_init, *key,
        T=tile, B=TILE, P=columns, G=groups, num_warps=warps_of(TILE), num_stages=1,
    )  # fmt: skip
    restart = inertias.argmin(1, keepdim=True)  # for each k; of equal ones the first
    values = values.gather(1, restart)[:, 0]
    best = values.argmax(1)  # of equal ones the smaller k
    row = torch.arange(problems, device=gram.device)
    chosen = labels[row, restart[row, 0, best], best].long()
    one_point = 1 - gram.amin((1, 2)) <= SAME * torch.finfo(torch.float32).eps
    none = one_point | (values[row, best] == -torch.inf)
    return Clustering(
        torch.where(none, 0, values[row, best]),
        torch.where(none[:, None], 0, chosen),
        torch.where(none, 1, best + 2),
    )


def split_gram(gram: Tensor, tile: int) -> Tensor:
    """The two float16 parts [N, 2, tile, tile] of Gram matrices [N, K, K], zero from K on."""
    rest = tile - gram.shape[1]
    gram = pad(gram.float(), (0, rest, 0, rest))
    high = gram.half()
    return torch.stack((high, (gram - high).half()), dim=1)


@triton.jit(do_not_specialize=["samples", "k_max", "n_init", "key0", "key1", "stream"])
def _cluster(
    parts, channel, draw, starts, kept, silhouettes, labels, ks, samples, k_max, n_init, key0, key1, stream,
    T: tl.constexpr, P: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    problem = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, T)
    own = kept + problem * (k_max - 1) * samples
    value, k = best_clustering(
        parts + problem * 2 * T * T, starts + problem * n_init * P, own, samples, k_max, n_init, key0, key1, stream,
        tl.load(channel + problem), tl.load(draw + problem), T, P, G, True,
    )  # fmt: skip
    tl.store(silhouettes + problem, value)
    tl.store(ks + problem, tl.cast(k, tl.int64))
    tl.debug_barrier()  # other threads wrote what is read now
    found = tl.load(own + (k - 2) * samples + row, mask=row < tl.where(k > 1, samples, 0), other=0)
    tl.store(labels + problem * samples + row, found.to(tl.int64), mask=row < samples)


def specimens() -> list[Specimen]:
    """The kernels at the default shape, to be compiled."""
    signature = {
        "parts": "*fp16", "channel": "*i64", "draw": "*i64", "starts": "*i32", "kept": "*i8",
        "silhouettes": "*fp32", "labels": "*i64", "ks": "*i64",
        "samples": "i32", "k_max": "i32", "n_init": "i32", "key0": "i32", "key1": "i32", "stream": "i32",
    }  # fmt: skip
    columns, groups = cluster_columns(6, pass_columns_of(90))
    _, fewer = cluster_columns(6, pass_columns_of(80))
    constants = {"T": TILE, "P": columns, "G": groups}
    blocks = {name: signature[name] for name in signature if name not in ("kept", "silhouettes", "ks")}
    blocks |= {"labels": "*i8", "sums": "*fp32", "inertias": "*fp32", "values": "*fp32"}
    large = {"T": 512, "B": TILE, "P": columns, "G": groups}
    return [
        Specimen(
            "blocks, K = 512", cluster_blocks, blocks, large, 8, products=True, before_90={"G": fewer}, default=False
        ),
        Specimen("tile", _cluster, signature, constants, warps_of(TILE), products=True, before_90={"G": fewer}),
    ]

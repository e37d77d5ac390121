"""The paper's S null: samples anywhere on the sphere, whatever the data."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from psi_fast_kernels._chunks import in_chunks
from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import padded, rows_per_chunk
from psi_fast_kernels.cluster import cluster
from psi_fast_kernels.philox import normal

BUDGET = 64 * 2**20  # bytes of normal numbers and what becomes of them


def sphere_null(
    samples: int,
    width: int,
    *,
    draws: range,
    k_max: int,
    n_init: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    backend: str = "auto",
) -> Tensor:
    """Silhouettes of samples uniform on the sphere, [B]: every embedding turned by its own rotation, so no channel matters.

    Parameters
    ----------
    samples, width : int
        K samples of d-wide embeddings.
    draws, k_max, n_init, seed, backend
        As in `psi_fast_kernels.rotation_null.rotation_null`.
    """
    result = torch.empty(len(draws), dtype=dtype, device=device)

    def work(part: slice) -> None:
        draw = torch.arange(draws.start + part.start, draws.start + part.stop, device=device)
        none = torch.zeros_like(draw)
        points = normal(seed, Stream.SPHERE, none, draw, samples * width).unflatten(-1, (samples, width))
        points = normalize(points, dim=-1).to(dtype)
        points = pad(points, (0, padded(width) - width, 0, padded(samples) - samples))
        result[part] = cluster(
            (points @ points.mT)[:, :samples, :samples],
            k_max=k_max,
            n_init=n_init,
            seed=seed,
            stream=Stream.INDEPENDENT_STARTS,
            channel=none,
            draw=draw,
            backend=backend,
        ).silhouette

    per_draw = 8 * samples * (3 * width + 2 * samples)
    in_chunks(work, len(draws), rows_per_chunk(per_draw, budget_bytes=BUDGET), "draws")
    return result

"""rotation_null: silhouettes of rotated data, for every channel and draw."""

import torch
from torch import Tensor

from psi_fast_kernels._backend import implementation
from psi_fast_kernels.rotation_null import pool as pools
from psi_fast_kernels.rotation_null.pool import Pool
from psi_fast_kernels.rotation_null.tangent import Tangent

OFFERS = ("triton", "numba", "torch", "cuml")
ROTATIONS = ("marginal", "unimodal", "radial", "tangent", "gaussian")


def rotation_pool(
    samples: int,
    width: int,
    *,
    rotation: str,
    draws: range,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Pool:
    """The random numbers of the draws `draws`, which all channels share.

    Parameters
    ----------
    samples, width : int
        K >= 4 samples of d-wide embeddings.
    rotation : {"marginal", "unimodal", "radial", "tangent", "gaussian"}
        What a draw keeps of the data; `reference` gives each as a formula.
    draws : range
        Indices of the draws; a draw's numbers depend on its index, not on the range it is asked in.
    """
    if samples < 4:
        raise ValueError(f"at least 4 samples are needed, got {samples}")
    if rotation not in ROTATIONS:
        raise ValueError(f"unknown rotation {rotation!r}; there are {', '.join(ROTATIONS)}")
    return pools.rotation_pool(
        samples, width, rotation=rotation, draws=draws, seed=seed, dtype=dtype, device=torch.device(device)
    )


def rotation_null(
    tangent: Tangent,
    pool: Pool,
    *,
    rotation: str,
    k_max: int,
    n_init: int,
    seed: int,
    channel: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Silhouettes of the pool's draws for each channel, clustered as the data are: [C, B] in the tangent's dtype.

    Parameters
    ----------
    tangent : Tangent
        C channels, from `tangent_space` with the same rotation.
    pool : Pool
        B draws, from `rotation_pool` with the same samples, width and rotation.
    k_max, n_init, seed : int
        As in `psi_fast_kernels.cluster.cluster`.
    channel : [C] int64
        Channel ids, which the random starts depend on.
    backend : {"auto", "triton", "numba", "torch", "cuml"}

    References
    ----------
    Langsrud: Rotation tests. Statistics and Computing 15, 2005.
    """
    if rotation not in ROTATIONS:
        raise ValueError(f"unknown rotation {rotation!r}; there are {', '.join(ROTATIONS)}")
    if pool.mix.shape[1] != tangent.angles.shape[1]:
        raise ValueError(f"the pool has {pool.mix.shape[1]} samples, the channels {tangent.angles.shape[1]}")
    rows = {"marginal": tangent.quantiles.shape[1], "unimodal": tangent.weights.shape[1]}.get(rotation, 0)
    if pool.columns.shape[1] != rows:
        raise ValueError(
            f"tangent and pool must be those of rotation {rotation!r} and of one width: it takes {rows} rows of columns, "
            f"the pool has {pool.columns.shape[1]}"
        )
    if channel.shape != tangent.angles.shape[:1]:
        raise ValueError(f"channel must be [{len(tangent.angles)}], got {tuple(channel.shape)}")
    module = implementation(__name__, backend, tangent.angles.device, offers=OFFERS)
    return module.rotation_null(
        tangent, pool, rotation=rotation, k_max=k_max, n_init=n_init, seed=seed, channel=channel
    )

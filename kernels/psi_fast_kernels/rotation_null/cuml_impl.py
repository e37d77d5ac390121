"""The S nulls with cuML's k-means: the draws are those of `reference`, their clusterings cuML's."""

from torch import Tensor

from psi_fast_kernels.rotation_null import reference
from psi_fast_kernels.rotation_null.pool import Pool
from psi_fast_kernels.rotation_null.tangent import Tangent


def rotation_null(
    tangent: Tangent, pool: Pool, *, rotation: str, k_max: int, n_init: int, seed: int, channel: Tensor
) -> Tensor:
    """See `psi_fast_kernels.rotation_null.op.rotation_null`."""
    return reference.rotation_null(
        tangent, pool, rotation=rotation, k_max=k_max, n_init=n_init, seed=seed, channel=channel, clustering="cuml"
    )

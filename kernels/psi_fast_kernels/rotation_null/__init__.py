"""Null draws of the silhouette: samples rotated against each other, then clustered like the data."""

from psi_fast_kernels.rotation_null.op import ROTATIONS, rotation_null, rotation_pool
from psi_fast_kernels.rotation_null.pool import Pool
from psi_fast_kernels.rotation_null.sphere import sphere_null
from psi_fast_kernels.rotation_null.tangent import Tangent, tangent_space

__all__ = ["ROTATIONS", "Pool", "Tangent", "rotation_null", "rotation_pool", "sphere_null", "tangent_space"]

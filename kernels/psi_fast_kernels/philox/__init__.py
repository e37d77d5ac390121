"""Counter-based random numbers: a number depends on (seed, stream, channel, draw, position) and on nothing else."""

from psi_fast_kernels.philox.op import integers, normal, permutation, uint32, uniform
from psi_fast_kernels.philox.reference import philox4x32

__all__ = ["integers", "normal", "permutation", "philox4x32", "uint32", "uniform"]

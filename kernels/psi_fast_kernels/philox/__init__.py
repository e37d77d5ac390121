"""Counter-based random numbers: a number depends on (seed, stream, channel, draw, position) and on nothing else."""

from psi_fast_kernels.philox.reference import integers, normal, permutation, philox4x32, uint32, uniform

__all__ = ["integers", "normal", "permutation", "philox4x32", "uint32", "uniform"]

"""Distinctness of the clusters' concepts (D) and its nulls of shuffled or rotated text."""

from psi_fast_kernels.text_null.op import text_rotation_null, text_shuffle_null
from psi_fast_kernels.text_null.reference import Concepts, distinctness, shuffle_moments

__all__ = ["Concepts", "distinctness", "shuffle_moments", "text_rotation_null", "text_shuffle_null"]

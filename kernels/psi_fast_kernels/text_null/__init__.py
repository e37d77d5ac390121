"""Distinctness of the clusters' concepts (D) and its nulls of shuffled or rotated text."""

from psi_fast_kernels.text_null.moments import shuffle_moments
from psi_fast_kernels.text_null.nearest import nearest_concepts
from psi_fast_kernels.text_null.op import text_rotation_null, text_shuffle_null
from psi_fast_kernels.text_null.reference import Concepts, distinctness

__all__ = [
    "Concepts",
    "distinctness",
    "nearest_concepts",
    "shuffle_moments",
    "text_rotation_null",
    "text_shuffle_null",
]

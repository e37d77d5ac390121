"""Spatial maxima of activations and their merge into the running top-K."""

from psi_fast_kernels.topk_merge.op import Maxima, TopK, empty_top_k, spatial_maxima, topk_merge

__all__ = ["Maxima", "TopK", "empty_top_k", "spatial_maxima", "topk_merge"]

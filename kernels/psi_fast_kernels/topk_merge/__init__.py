"""Spatial extremes of activations and their merge into the running top-K."""

from psi_fast_kernels.topk_merge.op import topk_merge
from psi_fast_kernels.topk_merge.reference import Extremes, Maxima, TopK, empty_top_k, joined, spatial_maxima

__all__ = ["Extremes", "Maxima", "TopK", "empty_top_k", "joined", "spatial_maxima", "topk_merge"]

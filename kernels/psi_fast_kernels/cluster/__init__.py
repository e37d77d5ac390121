"""k-means and silhouette of many small problems, in their Gram matrices."""

from psi_fast_kernels.cluster.op import Clustering, cluster
from psi_fast_kernels.cluster.reference import inertia, silhouette, silhouettes

__all__ = ["Clustering", "cluster", "inertia", "silhouette", "silhouettes"]

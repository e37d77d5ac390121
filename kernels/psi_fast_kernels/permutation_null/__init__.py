"""Agreement of clusters with class labels (NMI) and its null of permuted labels, drawn or in closed form."""

from psi_fast_kernels.permutation_null.exact import mutual_information_moments
from psi_fast_kernels.permutation_null.op import permutation_moments, permutation_null
from psi_fast_kernels.permutation_null.reference import dense_labels, entropy, nmi

__all__ = ["dense_labels", "entropy", "mutual_information_moments", "nmi", "permutation_moments", "permutation_null"]

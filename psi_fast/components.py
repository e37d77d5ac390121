"""Clusters (+ labels, concept bank) -> S, Q, D."""

import torch
from torch import Tensor

from psi_fast.config import PSIConfig
from psi_fast.results import Bank, Clusters, Components, PatchEmbeddings
from psi_fast_kernels.permutation_null import dense_labels, nmi
from psi_fast_kernels.text_null import distinctness


def measure(
    patches: PatchEmbeddings, clusters: Clusters, labels: Tensor | None, bank: Bank | None, config: PSIConfig
) -> Components:
    """S, and Q where there are labels [C, K] int64, and D where there is a bank.

    Q is the agreement of clusters and class labels, as normalised mutual information with the arithmetic mean. D is the
    distinctness of the concepts nearest to the clusters' unit means; where the bank has a head, by its distances.
    """
    q = None
    if labels is not None:
        q = torch.full_like(clusters.silhouette, torch.nan, dtype=torch.float64)
        for group in patches.groups(2 * config.k_max):
            rows = group.rows[:, None]
            q[group.rows] = nmi(clusters.labels[rows, group.columns], dense_labels(labels[rows, group.columns]))
    d, concepts = None, torch.full((len(clusters.k), config.k_max), -1, device=clusters.k.device)
    if bank is not None:
        d = torch.full_like(clusters.silhouette, torch.nan, dtype=torch.float64)
        scored = torch.nonzero(clusters.k > 0)[:, 0]
        prototypes, k = clusters.prototypes[scored], clusters.k[scored]
        found = distinctness(prototypes, k, bank.embeddings, kind=config.distinctness, head=bank.head)
        # one cluster has no siblings to be distinct from
        d[scored] = torch.where(k > 1, found.value.double(), 0)
        concepts[scored] = found.concept
    return Components(clusters.silhouette.double(), q, d, concepts)

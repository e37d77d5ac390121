"""Scores that others gave to channels, from the same patches as PSI: clarity, polysemanticity, the Monosemanticity Score and
the class selectivity index.

The first three are sums over the Gram matrix G [n, n] of a channel's unit embeddings, as published without centring:

    clarity           mean of G_ij over i != j
    polysemanticity   1 - cos(c_1, c_2), c_1 and c_2 the centres of 2-means
    monosemanticity   sum_{i != j} w_i w_j G_ij / sum_{i != j} w_i w_j, w the activations scaled to 0..1

References
----------
Dreyer et al.: Mechanistic understanding and validation of large AI models with SemanticLens. arXiv 2501.05398 (the first two;
github.com/jim-berend/semanticlens, scores.py).
Pach et al.: Sparse autoencoders learn monosemantic features in vision-language models. arXiv 2504.02821.
Morcos et al.: On the importance of single directions for generalization. ICLR 2018, arXiv 1803.06959.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from psi_fast.clustering import unit_gram
from psi_fast.config import PSIConfig
from psi_fast.results import Group, PatchEmbeddings, PeerScores
from psi_fast_kernels._batched import ordered_sum, products
from psi_fast_kernels._chunks import in_chunks
from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import draws_per_chunk
from psi_fast_kernels.cluster import cluster

STARTS = 200
"""Random starts of 2-means. SemanticLens takes 10, whose best differs from seed to seed where a channel has no two clusters."""
FIRST = 10
"""Patches that stand for a channel whose smaller cluster is one patch or none, as in SemanticLens."""


def peer_scores(
    patches: PatchEmbeddings, weights: np.ndarray | None, class_selectivity: np.ndarray | None, config: PSIConfig
) -> PeerScores:
    """The scores of the patches; of random-patch channels, whose activations are not known, the first two.

    Parameters
    ----------
    patches : PatchEmbeddings
        As the encoder gives them, without centring.
    weights, class_selectivity : [real, K] and [real] float32, optional
        Of TopPatches.
    """
    device = patches.unique.device
    found = torch.full((3, len(patches.index)), torch.nan, device=device)
    known = _with_unknown(weights, patches.index.shape).to(device)
    for group in patches.groups(2):
        samples = group.columns.shape[1]

        def work(part: slice, group: Group = group) -> None:
            rows, columns = group.rows[part], group.columns[part]
            gram = unit_gram(patches.unique[patches.index[rows[:, None], columns]])
            halves = cluster(
                gram,
                k_max=2,
                n_init=STARTS,
                seed=config.seed,
                stream=Stream.PEER_STARTS,
                channel=patches.channel[rows],
                draw=torch.zeros_like(rows),
                backend=config.backend,
            ).labels
            found[:, rows] = from_gram(gram.double(), halves, known[rows[:, None], columns].double()).float()

        per_chunk = draws_per_chunk(samples + patches.unique.shape[1], 2 * STARTS)
        in_chunks(work, len(group.rows), per_chunk, "channels")
    clarity, polysemanticity, monosemanticity = found
    return PeerScores(
        clarity, polysemanticity, monosemanticity, _with_unknown(class_selectivity, patches.index.shape[:1])
    )


def from_gram(gram: Tensor, halves: Tensor, weights: Tensor) -> Tensor:
    """Clarity, polysemanticity and monosemanticity [3, N] of N channels.

    Parameters
    ----------
    gram : [N, n, n] float64
    halves : [N, n] int64
        Cluster 0 or 1 of each patch.
    weights : [N, n] float64
    """
    samples = gram.shape[1]
    members = one_hot(halves, 2).double()
    sides = torch.cat((torch.ones_like(weights)[..., None], weights[..., None], members), dim=2)
    along = products(gram, sides)  # [N, n, 4]: G times one, weights, first and second half
    sums = products(sides.mT, along)
    own = gram.diagonal(dim1=1, dim2=2)

    clarity = (sums[:, 0, 0] - ordered_sum(own, 1)) / (samples * (samples - 1))

    apart = 1 - (sums[:, 2, 3] / (sums[:, 2, 2] * sums[:, 3, 3]).sqrt()).clamp(-1, 1)
    # a patch alone is no cluster: how far the first patches are from the mean of all
    spread = 1 - (ordered_sum(along[:, :FIRST, 0], 1) / min(FIRST, samples) / sums[:, 0, 0].sqrt()).clamp(-1, 1)
    polysemanticity = torch.where(members.sum(1).amin(1) < 2, spread, apart)

    squares = weights.square()
    pairs = ordered_sum(weights, 1).square() - ordered_sum(squares, 1)
    monosemanticity = (sums[:, 1, 1] - ordered_sum(squares * own, 1)) / pairs
    return torch.stack((clarity, polysemanticity, torch.where(pairs > 0, monosemanticity, torch.nan)))


def scaled(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Activations [C, K] on a scale where `low` [C] is 0 and `high` [C] is 1, float32; nan where these are equal."""
    values, low, high = (part.astype(np.float64) for part in (values, low[:, None], high[:, None]))
    reach = high - low
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.clip((values - low) / reach, 0, 1)
    return np.where(reach > 0, part, np.nan).astype(np.float32)


def selectivity_index(sums: Tensor, counts: Tensor) -> np.ndarray:
    """Class selectivity [C] float32 in [0, 1]: (m - o) / (m + o), m the largest class mean and o the mean of the other classes'.

    nan with fewer than two classes, and for a channel whose means are all 0.

    Parameters
    ----------
    sums : [classes, C] float64
        Of the activations of each class's images, none negative.
    counts : [classes]
        Images of each class, at least one.
    """
    means = (sums / counts[:, None]).cpu().numpy()
    if len(means) < 2:
        return np.full(sums.shape[1], np.nan, dtype=np.float32)
    largest = means.max(0)
    others = (means.sum(0) - largest) / (len(means) - 1)
    with np.errstate(invalid="ignore"):
        return ((largest - others) / (largest + others)).astype(np.float32)


def _with_unknown(values: np.ndarray | None, shape: torch.Size) -> Tensor:
    """The values of the first channels, followed by nan up to `shape`; float32."""
    if values is None:
        return torch.full(shape, torch.nan)
    own = torch.from_numpy(np.asarray(values, dtype=np.float32))
    return pad(own, (0, 0) * (own.ndim - 1) + (0, shape[0] - len(own)), value=torch.nan)

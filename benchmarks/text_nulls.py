"""Which null of D tells units of several classes from units of one, or of none: shuffled text (two pools) or rotated text?

    python benchmarks/text_nulls.py                    # all of Tiny-ImageNet val

The units are those of `tiny_imagenet.planted_units`, clustered as psi_fast clusters them. Below the AUROC of z_D stand two
rows about false alarms: each unit's prototypes turned by a rotation of its own have no link to the text, so a calibrated
null gives them z around 0 with deviation 1, and p <= .05 in 5 % of cases.
"""

import json

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score
from tiny_imagenet import planted_arguments, planted_units
from torch import Tensor
from torch.nn.functional import normalize

from psi_fast import PSIConfig
from psi_fast.calibration import calibrate
from psi_fast.clustering import cluster_patches
from psi_fast.moments import moments
from psi_fast.progress import Progress
from psi_fast.results import PatchEmbeddings
from psi_fast_kernels.text_null import distinctness, text_rotation_null, text_shuffle_null

NULLS = ("shuffled, bank", "shuffled, layer", "rotated")
PAIRS = [(positive, negative) for positive in ("poly2", "poly3") for negative in ("mono", "random")]


def centred(rows: Tensor) -> Tensor:
    """Unit rows without their mean."""
    return normalize(rows.double() - rows.double().mean(0), dim=1).float()


def turned(prototypes: Tensor, seed: int) -> Tensor:
    """Each unit's prototypes [U, k_max, d] under a rotation of its own, which keeps the angles among them."""
    width = prototypes.shape[2]
    generator = torch.Generator().manual_seed(seed)
    rotated = []
    for own in prototypes:
        # the coordinates of `own` in its row space, put into a random orthonormal frame
        basis, coordinates = torch.linalg.qr(own.T)
        q, r = torch.linalg.qr(torch.randn(width, basis.shape[1], generator=generator))
        rotated.append((q * r.diagonal().sign() @ coordinates).T)
    return normalize(torch.stack(rotated), dim=-1)


def calibrated(prototypes: Tensor, k: Tensor, text: Tensor, null: str, kind: str, draws: int, seed: int):
    """z and p of D of every unit under one null, each [U]."""
    observed, concepts = distinctness(prototypes, k, text, kind=kind)
    shared = {"kind": kind, "draws": range(draws), "seed": seed}
    if null == "rotated":
        drawn = text_rotation_null(prototypes, k, text, **shared)
    else:
        pool = concepts[concepts >= 0] if null == "shuffled, layer" else None
        drawn = text_shuffle_null(prototypes, k, text, pool=pool, channel=torch.arange(len(k)), **shared)
    found = moments(observed.double(), drawn)
    parts = (observed.double(), found.mean, found.sd, found.p)
    result = calibrate(*(part.numpy() for part in parts))
    return result.z, result.p


def main() -> None:
    """Print the table, and write it as JSON when asked to."""
    parser = planted_arguments(__doc__.splitlines()[0])
    parser.add_argument("--distinctness", choices=("gap", "pairwise"), default="gap")
    options = parser.parse_args()
    planted = planted_units(options)
    used, index = np.unique(planted.top, return_inverse=True)
    patches = PatchEmbeddings(
        centred(torch.from_numpy(planted.embeddings[used])),
        torch.from_numpy(index.reshape(planted.top.shape)),
        torch.arange(len(planted.top)),
    )
    text = centred(planted.text)
    config = PSIConfig(top_k=options.top_k, seed=options.seed)
    clusters = cluster_patches(patches, config, Progress())
    several = (clusters.k > 1).numpy()  # one cluster has nothing to be told apart from
    prototypes, k, kind = clusters.prototypes[several], clusters.k[several], planted.kind[several]
    unrelated = turned(prototypes, options.seed)

    table = Table("z_D under", *NULLS, title=f"D = {options.distinctness}, {options.draws} draws, {len(k)} units")
    figures: dict[str, dict[str, float]] = {}
    for null in NULLS:
        arguments = (k, text, null, options.distinctness, options.draws, options.seed)
        z, _ = calibrated(prototypes, *arguments)
        figures[null] = {
            f"AUROC {positive} vs {negative}": float(
                roc_auc_score(
                    kind[np.isin(kind, (positive, negative))] == positive, z[np.isin(kind, (positive, negative))]
                )
            )
            for positive, negative in PAIRS
        }
        figures[null] |= {f"mean z of {name}": float(z[kind == name].mean()) for name in dict.fromkeys(kind)}
        z, p = calibrated(unrelated, *arguments)
        figures[null] |= {
            "unrelated prototypes: mean z": float(z.mean()),
            "unrelated prototypes: sd of z": float(z.std(ddof=1)),
            "unrelated prototypes: false alarms at 5 %": float((p <= 0.05).mean()),
        }
    for row in figures[NULLS[0]]:
        table.add_row(row, *(f"{figures[null][row]:.4f}" for null in NULLS))
    Console(highlight=False, width=120).print(table)
    if options.json:
        options.json.write_text(json.dumps(vars(options) | {"figures": figures}, indent=2, default=str))


if __name__ == "__main__":
    main()

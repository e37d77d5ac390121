"""Small channels for score_embeddings, and its table compared."""

import numpy as np
import pandas as pd
import replicas

from psi_fast import PSIConfig, score_embeddings

QUICK = PSIConfig(draws=20, n_init=2, k_max=3)
SCORED = [
    "psi",
    "log_psi",
    "p",
    "q",
    *(x + y for x in "SQD" for y in ("", "_null_mean", "_null_sd", "_z", "_hat", "_p")),
]
INDEPENDENT_OF_THE_LAYER = [c for c in SCORED if c != "q"]


def inputs(channels: int = 5, samples: int = 24, width: int = 16, concepts: int = 20, seed: int = 0):
    """Embeddings [C, K, d] on a cone, half of them in clusters; labels [C, K]; text [P, d]."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(concepts, width)) + 0.2
    x = np.empty((channels, samples, width))
    labels = np.empty((channels, samples), dtype=np.int64)
    for c in range(channels):
        chosen = rng.choice(concepts, 1 + c % 3, replace=False)
        x[c], which = replicas.planted_clusters(samples, replicas.unit(text[chosen]), rng, noise=0.7)
        labels[c] = np.where(rng.random(samples) < 0.7, which, rng.integers(6, size=samples))
    return x.astype(np.float32), labels, text.astype(np.float32)


def run(config: PSIConfig = QUICK, **changes):
    x, labels, text = inputs()
    arguments = {"embeddings": x, "labels": labels, "text": text} | changes
    return score_embeddings(arguments.pop("embeddings"), config=config, **arguments)


def same(a: pd.DataFrame, b: pd.DataFrame, **tolerance: float) -> None:
    pd.testing.assert_frame_equal(a, b, check_exact=not tolerance, **tolerance)

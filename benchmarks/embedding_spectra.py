"""Measures what benchmarks/families.py needs of real embeddings: variances and mean along the principal axes.

    python benchmarks/embedding_spectra.py             # all of Tiny-ImageNet val, writes benchmarks/results/s_nulls_spectra.csv

The embeddings are those of `tiny_imagenet.planted_units` (EfficientNet-Lite2), less their mean, as unit rows. `all` stands for
all images; `class` for the images of one class: the covariance within classes, and the root mean square of the classes' means.
"""

import numpy as np
from families import SPECTRA, unit
from tiny_imagenet import planted_arguments, planted_units


def moments(within: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances [d] of the rows `within` along their principal axes, descending, and sizes [d] of the means [n, d] there."""
    values, vectors = np.linalg.eigh(within.T @ within / (len(within) - len(means)))
    return np.clip(values[::-1], 0, None), np.sqrt(((means @ vectors[:, ::-1]) ** 2).mean(0))


def main() -> None:
    """Write the table."""
    planted = planted_units(planted_arguments(__doc__.splitlines()[0]).parse_args())
    rows = unit(planted.embeddings.astype(np.float64) - planted.embeddings.mean(0, dtype=np.float64))
    _, label = np.unique(planted.labels, return_inverse=True)
    means = np.stack([rows[label == c].mean(0) for c in range(label.max() + 1)])
    every = rows.mean(0, keepdims=True)
    columns = (*moments(rows - every, every), *moments(rows - means[label], means))
    SPECTRA.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(
        SPECTRA, np.stack(columns, axis=1), fmt="%.4g", delimiter=",", comments="",
        header="variance_all,mean_all,variance_class,mean_class",
    )  # fmt: skip


if __name__ == "__main__":
    main()

"""Time of psi_fast.score_embeddings against a scikit-learn loop for the same work, both in one run.

    python benchmarks/bench_score_embeddings.py
    python benchmarks/bench_score_embeddings.py --embeddings runs/demo/embeddings.safetensors

The loop's time is measured on a subset of the channels and draws and scaled linearly; the output says which. It rotates by
`tangent`, which costs less than psi_fast's default `marginal`, and leaves out the null of independent rotations that psi_fast
reports beside it, so the ratio is not flattered.
"""

import argparse
import os
import time
from pathlib import Path

ARGUMENTS = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ARGUMENTS.add_argument("--channels", type=int, default=64)
ARGUMENTS.add_argument("--samples", type=int, default=100, help="patches per channel (K)")
ARGUMENTS.add_argument("--width", type=int, default=512, help="embedding width (d); a file brings its own")
ARGUMENTS.add_argument("--concepts", type=int, default=1000)
ARGUMENTS.add_argument("--draws", type=int, default=50)
ARGUMENTS.add_argument("--n-init", type=int, default=3)
ARGUMENTS.add_argument("--k-max", type=int, default=6)
ARGUMENTS.add_argument("--threads", type=int, default=2)
ARGUMENTS.add_argument("--subset", type=int, nargs=2, default=(4, 5), metavar=("CHANNELS", "DRAWS"), help="of the loop")
ARGUMENTS.add_argument("--repeats", type=int, default=3, help="runs of psi_fast; the median counts")
ARGUMENTS.add_argument("--embeddings", type=Path, help="embeddings.safetensors of a run folder")
OPTIONS = ARGUMENTS.parse_args()
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = str(OPTIONS.threads)  # read when the libraries load

import numpy as np  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from sklearn.cluster import KMeans  # noqa: E402
from sklearn.metrics import normalized_mutual_info_score, silhouette_score  # noqa: E402

from psi_fast import PSIConfig, score_embeddings  # noqa: E402


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def synthetic(options: argparse.Namespace, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [C, K, d] on a narrow cone with spectrum 1/i, channels of one to four clusters; text [P, d] on another cone."""
    d = options.width
    scale = (1.0 + np.arange(d)) ** -0.5
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
    centres = rng.normal(size=(options.channels, 4, d)) * scale * 0.7
    which = rng.integers(1 + np.arange(options.channels) % 4, size=(options.samples, options.channels)).T
    x = np.take_along_axis(centres, which[..., None], axis=1)
    x = x + rng.normal(size=x.shape) * scale
    text = rng.normal(size=(options.concepts, d)) * scale
    return unit(x @ axes + 3 * axes[0]).astype(np.float32), unit(text @ axes + 3 * axes[1]).astype(np.float32)


def from_run(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """The first channels of a run folder's embeddings with all their places filled, and its concepts."""
    tensors = load_file(options.embeddings)
    index = tensors["index"][:, : options.samples]
    index = index[(index >= 0).all(1)][: options.channels]
    x = tensors["unique"][index]
    text = tensors.get("text", x.reshape(-1, x.shape[-1]))[: options.concepts]
    return x, text


def cluster(x: np.ndarray, k_max: int, n_init: int) -> tuple[float, np.ndarray]:
    """Largest mean silhouette over k = 2..k_max, and its labels."""
    best = (-np.inf, np.zeros(len(x), dtype=int))
    for k in range(2, k_max + 1):
        labels = KMeans(k, n_init=n_init, random_state=0).fit(x).labels_
        value = silhouette_score(x, labels, metric="cosine")
        if value > best[0]:
            best = (value, labels)
    return best


def rotated(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One draw: the samples rotated against each other in the tangent space at their mean."""
    samples = len(x)
    mean = unit(x.mean(0))
    for _ in range(8):
        cosine = np.clip(x @ mean, -1, 1)
        angle = np.arccos(cosine)
        tangent = (x - cosine[:, None] * mean) * (angle / np.maximum(np.sin(angle), 1e-12))[:, None]
        step = tangent.mean(0)
        size = max(np.linalg.norm(step), 1e-12)
        mean = unit(np.cos(size) * mean + np.sin(size) / size * step)
    normals = rng.normal(size=(samples - 1, samples - 1))
    q, r = np.linalg.qr(normals)
    basis = np.linalg.qr(np.c_[np.ones(samples), np.eye(samples)[:, 1:]])[0][:, 1:]
    moved = basis @ ((q * np.sign(np.diag(r))) @ (basis.T @ tangent))
    length = np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)
    return np.cos(length) * mean + np.sin(length) / length * moved


def gaps(prototypes: np.ndarray, concepts: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Semantic gap of each row of concepts [B, k]."""
    k = len(prototypes)
    similarity = np.einsum("jd,bld->bjl", prototypes, text[concepts])
    own = np.trace(similarity, axis1=1, axis2=2)
    return own / k - (similarity.sum((1, 2)) - own) / (k * (k - 1))


def loop(x: np.ndarray, labels: np.ndarray, text: np.ndarray, options: argparse.Namespace) -> float:
    """Seconds of the scikit-learn loop over all channels and draws, scaled from a subset."""
    channels, draws = min(options.subset[0], len(x)), min(options.subset[1], options.draws)
    rng = np.random.default_rng(0)
    cluster(x[0], options.k_max, options.n_init)  # first calls load and compile
    once, per_draw = 0.0, 0.0
    for own, classes in zip(x[:channels].astype(np.float64), labels[:channels], strict=True):
        start = time.perf_counter()
        _, found = cluster(own, options.k_max, options.n_init)
        normalized_mutual_info_score(classes, found)
        prototypes = unit(np.stack([own[found == j].mean(0) for j in range(found.max() + 1)]))
        gaps(prototypes, (prototypes @ text.T).argmax(1)[None], text)
        gaps(prototypes, rng.integers(len(text), size=(options.draws, len(prototypes))), text)
        once += time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(draws):
            cluster(rotated(own, rng), options.k_max, options.n_init)
            normalized_mutual_info_score(rng.permutation(classes), found)
        per_draw += time.perf_counter() - start
    return len(x) * (once / channels + options.draws * per_draw / (channels * draws))


def main() -> None:
    """Measure both and print the ratio."""
    options, say = OPTIONS, Console(highlight=False, soft_wrap=True).print
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    x, text = from_run(options) if options.embeddings else synthetic(options, rng)
    channels, samples, width = x.shape
    labels = rng.integers(20, size=(channels, samples))
    config = PSIConfig(
        top_k=samples, draws=options.draws, n_init=options.n_init, k_max=options.k_max, backend="torch", seed=0
    )
    score_embeddings(x[:2], labels=labels[:2], text=text, config=config)  # first calls allocate and load
    seconds = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        score_embeddings(x, labels=labels, text=text, config=config, device="cpu")
        seconds.append(time.perf_counter() - start)
    ours, theirs = float(np.median(seconds)), loop(x, labels, text, options)
    work = channels * options.draws
    source = f"embeddings of {options.embeddings}" if options.embeddings else "synthetic cone"
    part = f"{min(options.subset[0], channels)} channels and {min(options.subset[1], options.draws)} draws each"
    say(
        f"C={channels} K={samples} d={width} P={len(text)} draws={options.draws} n_init={options.n_init} k=2..{options.k_max}"
    )
    say(f"{source}, {options.threads} threads")
    say(f"psi_fast            {ours:9.2f} s   {1e3 * ours / work:8.3f} ms/draw   median of {options.repeats}")
    say(
        f"scikit-learn loop   {theirs:9.2f} s   {1e3 * theirs / work:8.3f} ms/draw   measured on {part}, scaled linearly"
    )
    say(f"ratio               {theirs / ours:9.1f}")


if __name__ == "__main__":
    main()

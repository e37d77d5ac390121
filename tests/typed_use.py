"""A user's program, which is checked by pyright in strict mode and never run: what the public API returns has known types."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self, assert_type

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import psi_fast
from psi_fast import Network, Preprocess, PSIConfig, PsiFastError, Scores
from psi_fast.encoders import Encoder, load_encoder
from psi_fast.encoders.text_head import TextHead, load_text_head
from psi_fast.experiments import EXPERIMENTS, Claim, Outcome, Study, separation
from psi_fast.networks import load_network
from psi_fast.planning.outlook import Plan
from psi_fast.progress import Progress
from psi_fast.vocabulary import Vocabulary
from psi_fast_kernels.cluster import Clustering, cluster
from psi_fast_kernels.permutation_null import mutual_information_moments, nmi, permutation_moments, permutation_null
from psi_fast_kernels.philox import integers, normal, permutation, uint32, uniform
from psi_fast_kernels.rotation_null import Pool, Tangent, rotation_null, rotation_pool, sphere_null, tangent_space
from psi_fast_kernels.text_null import Concepts, distinctness, shuffle_moments, text_rotation_null, text_shuffle_null
from psi_fast_kernels.topk_merge import Extremes, TopK, empty_top_k, topk_merge


class OwnEncoder:
    """An encoder of the user's own."""

    def __init__(self) -> None:
        self.name = "own"
        self.preprocess = Preprocess(size=224, resize=256)
        self.warnings: list[str] = []

    def encode(self, batch: Tensor) -> Tensor:
        return batch.flatten(1)

    def concepts(self, vocabulary: Vocabulary | None, progress: Progress | None = None) -> tuple[list[str], Tensor]:
        return ["a"], torch.ones(1, 8)

    def fingerprint(self) -> str:
        return "own"

    def to(self, device: torch.device) -> Self:
        return self


class OwnHead:
    """A text head of the user's own."""

    def __init__(self) -> None:
        self.name, self.precision = "own", "float32"
        self.warnings: list[str] = []

    def embed(self, concepts: Sequence[str], progress: Progress | None = None) -> Tensor:
        return torch.ones(len(concepts), 8)

    def fingerprint(self) -> str:
        return "own"

    def to(self, device: torch.device) -> Self:
        return self


def of_images(module: nn.Module, dataset: list[tuple[Tensor, int]]) -> None:
    config = PSIConfig(top_k=50, patch="image", band=(0.1, 0.9))
    own = Network(module, Preprocess(size=224, resize=256), "own")
    scores = psi_fast.score(own, ["a", "b"], dataset, encoder=OwnEncoder(), config=config, text_head=OwnHead(), out="x")
    assert_type(scores, Scores)
    assert_type(scores.table, pd.DataFrame)
    assert_type(scores.top(10), pd.DataFrame)
    assert_type(scores.patches, pd.DataFrame | None)
    assert_type(scores.flag_counts(), dict[str, int])
    assert_type(scores.significant(), int)
    assert_type(psi_fast.load(Path("x")), Scores)
    assert_type(psi_fast.build_report("x", out="y", images=dataset), Path)
    assert_type(psi_fast.run_jobs([{"network": "a:b", "layer": "c"}], "x", allow_code=True), pd.DataFrame)
    assert_type(psi_fast.plan(own, "a", [1e5, 1e9], encoder=OwnEncoder(), workers=[1, 64], price_per_hour=2.5), Plan)
    assert_type(load_network(module).preprocess, Preprocess)
    assert_type(load_network("torchvision:resnet18").class_names, list[str] | None)
    assert_type(load_encoder("classifier:efficientnet-lite:lite2"), Encoder)
    assert_type(load_text_head(OwnHead()), TextHead)
    assert_type(PSIConfig.preset("paper").draws, int)
    assert_type(PSIConfig.from_toml("a.toml"), PSIConfig)


def of_embeddings(units: np.ndarray, text: Tensor) -> str:
    try:
        scores = psi_fast.score_embeddings(units, labels=np.zeros((3, 60)), text=text, config=PSIConfig(draws=500))
    except PsiFastError as error:
        return str(error)
    return repr(scores)


def of_experiments(module: nn.Module) -> None:
    study = Study(module, "layer4", "images", encoder=OwnEncoder(), out="x")
    outcome = separation(study)
    assert_type(outcome, Outcome)
    assert_type(outcome.table, pd.DataFrame)
    assert_type(outcome.summary, str)
    for claim in outcome.claims:
        assert_type(claim, Claim)
    for name, conduct in EXPERIMENTS.items():
        assert_type(name, str)
        assert_type(conduct(study), Outcome)


def of_workers() -> None:
    with psi_fast.RayWorkers(workers=2, device="cpu") as workers:
        assert_type(workers, psi_fast.RayWorkers)
        found = psi_fast.run_jobs([{"network": "timm:resnet50"}], "out", workers=workers)
        assert_type(found, pd.DataFrame)
    task = psi_fast.ArrayTask.parse("3/8")
    assert_type(task, psi_fast.ArrayTask)
    try:
        psi_fast.score("timm:resnet50", "layer4", "images", encoder="classifier:timm:resnet50", workers=task)
    except psi_fast.OthersMissing:
        psi_fast.score("a", "b", "c", encoder="d", workers=psi_fast.Merging(complete=True))


def of_kernels(gram: Tensor, rows: Tensor, labels: Tensor, k: Tensor, channel: Tensor) -> None:
    found = cluster(gram, k_max=6, n_init=4, seed=0, stream=0, channel=channel, draw=channel)
    assert_type(found, Clustering)
    assert_type(nmi(found.labels, labels), Tensor)
    assert_type(permutation_null(labels, labels, draws=range(9), seed=0, channel=channel), Tensor)
    assert_type(permutation_moments(labels, labels), tuple[Tensor, Tensor])
    assert_type(mutual_information_moments(np.arange(3), np.arange(3)), tuple[float, float])
    for drawn in (uniform, normal, uint32, permutation):
        assert_type(drawn(0, 0, channel, channel, 8), Tensor)
    assert_type(integers(0, 0, channel, channel, 8, 5), Tensor)
    tangent = tangent_space(gram, 512)
    pool = rotation_pool(100, 512, rotation="marginal", draws=range(9), seed=0)
    assert_type(tangent, Tangent)
    assert_type(pool, Pool)
    silhouettes = rotation_null(tangent, pool, rotation="marginal", k_max=6, n_init=4, seed=0, channel=channel)
    assert_type(silhouettes, Tensor)
    assert_type(sphere_null(100, 512, draws=range(9), k_max=6, n_init=4, seed=0), Tensor)
    concepts = distinctness(rows, k, rows, kind="gap")
    assert_type(concepts, Concepts)
    assert_type(shuffle_moments(rows, k, rows, kind="gap", pool=None), tuple[Tensor, Tensor])
    shuffled = text_shuffle_null(rows, k, rows, kind="gap", pool=None, draws=range(9), seed=0, channel=channel)
    assert_type(shuffled, Tensor)
    assert_type(text_rotation_null(rows, k, rows, kind="gap", draws=range(9), seed=0), Tensor)
    top, extremes = topk_merge(empty_top_k(64, 100), rows, first_image=0)
    assert_type(top, TopK)
    assert_type(extremes, Extremes)

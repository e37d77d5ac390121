"""Channels that workers score in parts: the bits of one process, whatever the null of D and whoever ends first."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from psi_fast import PSIConfig
from psi_fast.evaluation import Background, evaluate
from psi_fast.null_parts import Spread
from psi_fast.progress import Progress
from psi_fast.results import Bank, PatchEmbeddings
from psi_fast.workers import ArrayTask

CHANNELS, PLACES, WIDTH, CONCEPTS = 37, 16, 12, 30
CASES = {
    "shuffled": {},
    "exact": {"exact": True, "text_pool": "layer"},
    "of the layer": {"text_pool": "layer", "center": False},
    "rotated": {"text_null": "rotated"},
    "pairwise": {"distinctness": "pairwise", "head": True},
    "rotated pairwise": {"distinctness": "pairwise", "text_null": "rotated", "labels": False},
    "independent": {"rotation": "independent", "weights": False},
}


class Backwards:
    """Several workers of this process, of whom the last ends first."""

    def __init__(self, count):
        self.count, self.did = count, []

    def own(self, stage, number):
        return True

    def results(self, work, tasks, shared=None):
        for number, task in reversed(list(tasks.items())):
            self.did.append((work.__name__, number))
            yield number, work(*(() if shared is None else (shared,)), *task)


def scored(spread, *, labels=True, weights=True, head=False, **settings):
    generator = torch.Generator().manual_seed(5)
    config = PSIConfig(top_k=PLACES, k_max=3, n_init=2, draws=70, batch_size=8, **settings)

    def unit(rows, width=WIDTH):
        return normalize(torch.randn(rows, width, generator=generator), dim=1)

    index = torch.randint(90, (CHANNELS, PLACES), generator=generator)
    index[3, 9:] = -1  # not enough patches of its own group of sizes, and too few
    index[4, 2:] = -1
    index[5] = 7  # all alike
    patches = PatchEmbeddings(unit(90), index, torch.arange(CHANNELS) + 50)
    classes = torch.randint(4, (CHANNELS, PLACES), generator=generator)
    bank = Bank(tuple(map(str, range(CONCEPTS))), unit(CONCEPTS), unit(CONCEPTS, 7) if head else None)
    background = Background(unit(60), torch.randint(4, (60,), generator=generator) if labels else None)
    activations = np.random.default_rng(5).random((CHANNELS, PLACES), dtype=np.float32)
    flags = np.zeros(CHANNELS, dtype=bool)
    known = {"dead": flags, "unselective": flags}
    known |= {name: activations[:, 0] for name in ("max_activation", "selectivity")}
    if weights:
        known |= {"weights": activations, "class_selectivity": activations[:, 1]}
    return evaluate(
        patches, classes if labels else None, bank, background, config, torch.device("cpu"), Progress(False),
        keep_draws=50, spread=spread, **known,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    for name in ("channel_parts", "null_parts"):
        monkeypatch.setattr(f"psi_fast.{name}.FEWEST", 2)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("case", CASES)
def test_any_number_of_workers_gives_the_bits_of_one_process(case, count):
    workers = Backwards(count)
    alone, found = (scored(spread, **CASES[case]) for spread in (None, Spread(workers, None, "")))
    for own, other in ((alone.table, found.table), (alone.random, found.random)):
        pd.testing.assert_frame_equal(own, other, check_exact=True)
    for field in dataclasses.fields(alone.clusters):
        np.testing.assert_array_equal(
            *(getattr(own.clusters, field.name).numpy() for own in (alone, found)), field.name
        )
    assert alone.draws.keys() == found.draws.keys()
    for name, draws in alone.draws.items():
        np.testing.assert_array_equal(draws, found.draws[name])
    parts = {name: len([own for own, _ in workers.did if own == name]) for name, _ in workers.did}
    assert parts.keys() == {"clustered_part", "null_part", "text_part"}
    assert min(parts.values()) >= count


def test_a_turned_bank_is_made_once_a_worker():
    workers = Backwards(5)
    scored(Spread(workers, None, ""), text_null="rotated")
    assert len([name for name, _ in workers.did if name == "text_part"]) == 5


def test_tasks_of_an_array_cluster_all_channels_themselves(monkeypatch):
    """They know nothing of each other but what they keep, and clusters are not kept."""
    monkeypatch.setattr("psi_fast.channel_parts.clustered_part", None)
    monkeypatch.setattr("psi_fast.channel_parts.text_part", None)
    found = scored(Spread(ArrayTask(1, 1), None, ""))
    pd.testing.assert_frame_equal(found.table, scored(None).table, check_exact=True)

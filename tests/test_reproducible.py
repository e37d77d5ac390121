"""A channel's scores depend on its own patches, the settings and the seed; on no chunk, block, thread or neighbour."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from channels import INDEPENDENT_OF_THE_LAYER, inputs, run, same

import psi_fast.clustering
import psi_fast.nulls
import psi_fast.peer_scores
import psi_fast_kernels.permutation_null.reference
import psi_fast_kernels.rotation_null.reference
import psi_fast_kernels.rotation_null.sphere
import psi_fast_kernels.text_null.reference
from psi_fast import PSIConfig, score_embeddings
from psi_fast.errors import ConfigError

CHUNKED = [
    (psi_fast.clustering, "draws_per_chunk"),
    (psi_fast.nulls, "rows_per_chunk"),
    (psi_fast.peer_scores, "draws_per_chunk"),
    (psi_fast_kernels.rotation_null.reference, "draws_per_chunk"),
    (psi_fast_kernels.rotation_null.sphere, "rows_per_chunk"),
    (psi_fast_kernels.permutation_null.reference, "rows_per_chunk"),
    (psi_fast_kernels.text_null.reference, "rows_per_chunk"),
]


@pytest.mark.parametrize("chunk", [1, 3, 7])
@pytest.mark.parametrize(("samples", "width"), [(24, 16), (41, 20)])
@pytest.mark.parametrize(
    "changes",
    [{}, {"rotation": "radial", "text_null": "rotated"}, {"distinctness": "pairwise", "exact": True}],
    ids=str,
)
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_same_table_bit_for_bit_whatever_the_chunks(chunk, samples, width, changes, backend, monkeypatch):
    x, labels, text = inputs(7, samples, width)
    valid = np.ones(labels.shape, dtype=bool)
    valid[2:5, -5:] = False  # two groups of channels
    config = PSIConfig(draws=20, n_init=2, k_max=3, backend=backend, **changes)
    whole = score_embeddings(x, labels=labels, text=text, valid=valid, config=config)
    for module, name in CHUNKED:
        monkeypatch.setattr(module, name, lambda *_, **__: chunk)
    monkeypatch.setattr(psi_fast.nulls, "CHANNELS", {"cpu": chunk})
    parts = score_embeddings(x, labels=labels, text=text, valid=valid, config=config)
    same(parts.table, whole.table)
    assert np.array_equal(parts.labels, whole.labels)


@pytest.mark.parametrize("block", [1, 7, 20])
def test_blocks_of_draws_change_rounding_only(block, monkeypatch):
    x, labels, text = inputs()
    config = PSIConfig(draws=20, n_init=2, k_max=3)
    whole = score_embeddings(x, labels=labels, text=text, config=config).table
    for name in ("BLOCK", "CHEAP_BLOCK"):
        monkeypatch.setattr(psi_fast.nulls, name, block)
    parts = score_embeddings(x, labels=labels, text=text, config=config).table
    numbers = whole.select_dtypes("number").columns
    np.testing.assert_allclose(parts[numbers], whole[numbers], rtol=1e-6, atol=1e-9)


def test_a_channel_does_not_depend_on_the_others():
    x, labels, text = inputs()
    config = PSIConfig(draws=20, n_init=2, k_max=3, center=False)
    whole = score_embeddings(x, labels=labels, text=text, config=config).table
    for count in (1, 3):
        part = score_embeddings(x[:count], labels=labels[:count], text=text, config=config).table
        same(part[INDEPENDENT_OF_THE_LAYER], whole[INDEPENDENT_OF_THE_LAYER][:count])


def test_a_process_that_compiles_gives_the_bits_of_one_that_loads(tmp_path):
    code = "import sys, channels; channels.run(labels=None, text=None).table.to_pickle(sys.argv[1])"
    tables = [tmp_path / "compiled.pkl", tmp_path / "loaded.pkl"]
    for table in tables:
        subprocess.run(
            [sys.executable, "-c", code, str(table)],
            cwd=Path(__file__).parent,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "machine code")},
            check=True,
            timeout=300,
        )
    same(*map(pd.read_pickle, tables))


def test_the_seed_decides():
    same(run().table, run().table)
    first, other = run().table, run(PSIConfig(draws=20, n_init=2, k_max=3, seed=1)).table
    for x in "SQD":
        assert (first[f"{x}_null_mean"] != other[f"{x}_null_mean"]).all()


def test_more_draws_begin_with_the_fewer():
    """Draws are counted, not streamed: 20 of 40 draws are the 20 draws."""
    few, many = run(), run(PSIConfig(draws=40, n_init=2, k_max=3))
    for x in "SQD":
        reached_few = (few.table[f"{x}_p"] * 21 - 1).round()
        reached_many = (many.table[f"{x}_p"] * 41 - 1).round()
        assert (reached_few <= reached_many).all()
        assert (reached_many <= reached_few + 20).all()


@pytest.mark.parametrize("backend", ["cuml", "triton"])
def test_a_backend_that_cannot_run_is_one_line(backend, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x, labels, text = inputs()
    with pytest.raises(ConfigError, match=f"backend '{backend}' cannot run here: it needs") as caught:
        score_embeddings(x, labels=labels, text=text, config=PSIConfig(backend=backend))
    assert "\n" not in str(caught.value)

"""One run of everything on each backend: the ops together give the table of plain torch."""

import numpy as np
import pytest
from channels import inputs

from psi_fast import PSIConfig, score_embeddings

QUICK = {"draws": 4, "n_init": 2, "k_max": 3}
CLOSE = 2e-5  # z divides float32 silhouettes by a small spread


@pytest.mark.parametrize("changes", [{}, {"text_null": "rotated", "rotation": "radial"}], ids=str)
@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_the_same_table_on_every_backend(backend, changes, triton_device, monkeypatch):
    monkeypatch.setattr("psi_fast.peer_scores.STARTS", 8)  # the interpreter takes its time
    x, labels, text = inputs(2, 16, 8, 10)

    def run(name: str):
        device = triton_device.type if name == "triton" else "cpu"
        config = PSIConfig(**QUICK, **changes, backend=name)
        return score_embeddings(x, labels=labels, text=text, config=config, device=device)

    ours, theirs = run(backend), run("torch")
    numbers = theirs.table.select_dtypes("number").columns
    np.testing.assert_allclose(ours.table[numbers], theirs.table[numbers], rtol=CLOSE, atol=CLOSE)
    assert np.array_equal(ours.labels, theirs.labels)
    assert (ours.table["concepts"] == theirs.table["concepts"]).all()

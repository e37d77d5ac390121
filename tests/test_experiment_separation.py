"""Separation: rotated-null channels by their definition, and the experiment through Python and the command."""

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from test_study import study

import psi_fast
from psi_fast.evaluation import Evaluation, evaluate
from psi_fast.experiments import separation
from psi_fast.experiments.null_channels import null_channels
from psi_fast.progress import Progress
from psi_fast.validation import read_bank, read_embeddings, read_labels

ARGUMENTS = (
    *("--network", "tiny:network", "--layer", tiny.LAYER, "--encoder", "classifier:tiny:classifier", "--no-progress"),
    *(part for pair in tiny.SETTINGS.items() for part in pair),
)


def scored(channels=60, draws=40) -> Evaluation:
    """Unstructured channels with kept draws."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(channels, 24, 6)) * (1 + np.arange(6)) ** -0.5 + 1
    nothing = np.zeros(channels, bool)
    return evaluate(
        read_embeddings(x, None),
        read_labels(rng.integers(4, size=(channels, 24)), (channels, 24)),
        read_bank(rng.normal(size=(30, 6)), None, 6),
        None,
        psi_fast.PSIConfig(draws=draws, k_max=4, n_init=1),
        torch.device("cpu"),
        Progress(False),
        dead=nothing,
        max_activation=np.zeros(channels, np.float32),
        selectivity=np.zeros(channels, np.float32),
        unselective=nothing,
        keep_draws=draws,
    )


def test_a_null_channel_is_one_draw_against_the_others():
    found = scored()
    table = null_channels(found, turn=3)
    assert len(table) == 60
    log_psi = 0.0
    for name in "SQD":
        draws = found.draws[name].double().numpy()
        for row in (0, 17):
            own = (row + 3) % 40
            others = np.delete(draws[row], own)
            z = (draws[row, own] - others.mean()) / others.std(ddof=1)
            assert table[f"{name}_z"][row] == pytest.approx(z)
            assert table[f"{name}_p"][row] == pytest.approx((1 + (others >= draws[row, own] - 1e-6).sum()) / 40)
        log_psi = log_psi + np.log(table[f"{name}_hat"])
    np.testing.assert_allclose(table["log_psi"], log_psi)
    np.testing.assert_allclose(table["psi"], np.exp(log_psi))


def test_null_channels_are_exchangeable_with_their_draws():
    found = scored(channels=200, draws=39)
    # S has no ties: its p is uniform on 1/39, ..., 39/39
    p = null_channels(found)["S_p"].to_numpy()
    counts = np.bincount(np.rint(p * 39).astype(int) - 1, minlength=39)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(null_channels(found)["psi"].mean() - 0.125) < 0.03


def test_claims_are_those_of_the_table(tmp_path):
    own = study(tmp_path, layer=["2", "0"])
    found = separation(own)
    table = found.table
    assert set(table["kind"]) == {"real", "random patches", "rotated null"}
    assert list(dict.fromkeys(table["layer"])) == ["2", "0"]
    for layer in ("2", "0"):
        rows = table[table["layer"] == layer]
        for pair in (("real", "rotated null"), ("real", "random patches"), ("random patches", "rotated null")):
            two = rows[rows["kind"].isin(pair)]
            (claim,) = [c for c in found.claims if c.name == f"{layer}: AUROC {pair[0]} / {pair[1]}"]
            assert claim.value == pytest.approx(roc_auc_score(two["kind"] == pair[0], two["log_psi"]))
        for kind in ("real", "random patches", "rotated null"):
            (claim,) = [c for c in found.claims if c.name == f"{layer}: median PSI, {kind}"]
            assert claim.value == pytest.approx(np.median(rows.loc[rows["kind"] == kind, "psi"]))
    real = own.evaluation("2").table
    np.testing.assert_array_equal(table[(table["layer"] == "2") & (table["kind"] == "real")]["psi"], real["psi"])
    assert found.figure.get_size_inches()[0] > 5


def test_null_channels_do_not_share_a_draw():
    """One draw of all channels has one rotation for all of them, and its p lie far from uniform."""
    found = scored(channels=200, draws=39)
    draws = found.draws["S"].double().numpy()
    p = (1 + (draws[:, 1:] >= draws[:, :1]).sum(1)) / 39
    shared = np.var(p)
    assert np.var(null_channels(found)["S_p"]) > 1.2 * shared


def test_the_command_writes_and_shows_it(tmp_path, pictures, capsys):
    assert tiny.run("experiment", "separation", *ARGUMENTS, "--images", pictures, "--out", tmp_path / "run") == 0
    shown = capsys.readouterr().out
    assert "AUROC real / rotated null" in shown
    assert str(tmp_path / "run" / "experiments" / "separation") in shown.replace("\n", "")
    assert len(pd.read_csv(tmp_path / "run" / "experiments" / "separation" / "claims.csv")) == 6
    assert tiny.run("experiment", "separation", *ARGUMENTS, "--images", pictures, "--out", tmp_path / "run") == 0


def test_a_settings_file_and_bad_input(tmp_path, pictures, capsys):
    file = tmp_path / "job.toml"
    file.write_text('network = "tiny:network"\nlayer = ["0"]\nband = [0.2, 0.9]\ntop_k = 16\n')
    arguments = ("--images", pictures, "--encoder", "classifier:tiny:classifier", "--out", tmp_path / "run")
    settings = ("--draws", "9", "--k-max", "3", "--patch", "image", "--no-progress")
    assert tiny.run("experiment", "separation", "--config", file, *arguments, *settings) == 0
    assert "0: AUROC" in capsys.readouterr().out
    assert tiny.run("experiment", "separation", *ARGUMENTS, "--layer", "nothing", *arguments) == 2
    assert "'nothing' not found" in tiny.one_line(capsys)
    assert tiny.run("experiment", "separatoin") == 2
    assert "separation" in capsys.readouterr().err

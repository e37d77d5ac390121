"""Patch swaps by decile of PSI: means, tests, effect sizes and their table."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from psi_fast.experiments.patch_swap import CONTROLS, _cell, _claims, _surest, by_decile
from psi_fast.experiments.swaps import CONDITIONS


def test_deciles_are_means_of_their_channels():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "decile": np.repeat(np.arange(1, 11), 40),
            "condition": np.tile(CONDITIONS, 80),
            "margin_sd": rng.normal(size=400),
        }
    )
    found = by_decile(rows)
    assert list(found["condition"]) == list(CONTROLS) * 10
    rows, found = (table[table["condition"] == "random"] for table in (rows, found))
    assert found["decile"].tolist() == list(range(1, 11))
    np.testing.assert_allclose(found["margin"], rows.groupby("decile")["margin_sd"].mean())
    assert (found["low"] < found["margin"]).all()
    assert (found["high"] > found["margin"]).all()
    assert (found["channels"] == 8).all()
    for (_, own), (_, one) in zip(rows.groupby("decile")["margin_sd"], found.iterrows(), strict=True):
        signs = np.array(np.meshgrid(*[[1, -1]] * 8)).reshape(8, -1)
        means = np.abs((signs * own.to_numpy()[:, None]).mean(0))
        assert one["p"] == pytest.approx((means >= abs(own.mean()) - 1e-12).mean())
        assert one["d_z"] == pytest.approx(own.mean() / own.std())


def test_the_top_decile_is_held_against_the_others():
    rng = np.random.default_rng(1)
    channels = pd.DataFrame(
        {"channel": np.arange(60), "log_psi": rng.normal(size=60), "decile": 1 + np.arange(60) // 6}
    )
    table = channels.merge(pd.DataFrame({"condition": CONDITIONS}), how="cross")
    for name in ("change", "change_sd", "margin_sd", "q"):
        table[name] = rng.random(len(table))
    raised = (table["decile"] == 10) & (table["condition"] == "random")
    table.loc[raised, "margin_sd"] += 2
    claims = {one.name: one for one in _claims(table, "a", 0)}
    for control in CONTROLS:
        rows = table[table["condition"] == control]
        top, others = (rows.loc[(rows["decile"] == 10) == own, "margin_sd"] for own in (True, False))
        one = claims[f"a: aligned minus {control}, top decile of PSI less the others"]
        assert one.value == pytest.approx(top.mean() - others.mean())
        assert one.p == stats.mannwhitneyu(top, others).pvalue
        assert (one.p < 1e-3) == (control == "random")


def test_sure_deciles_are_counted_after_correction():
    p = np.full(40, 0.9)
    p[[1, 5]] = 1e-4, 2e-3  # 2e-3 * 40 / 2 is .04
    p[2] = 0.04
    rows = pd.DataFrame({"condition": list(CONTROLS) * 10, "p": p})
    assert "over 40 differences): 0 over non-aligned, 2 over random, 0 over shuffled-position" in _surest(rows)


def test_few_channels_have_neither_test_nor_effect_size():
    found = by_decile(pd.DataFrame({"decile": [1] * 5, "condition": CONDITIONS, "margin_sd": np.arange(5.0)}))
    assert found[["p", "d_z", "low"]].isna().all(axis=None)
    assert _cell(0.5, np.nan, np.nan, np.nan, np.nan) == "+0.500"
    assert _cell(0.5, 0.25, 0.75, 0.031, 1.5) == "+0.500 (+0.250 to +0.750), p 0.031, d 1.50"

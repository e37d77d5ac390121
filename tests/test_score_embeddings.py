"""score_embeddings: the table of cases, reproducibility, inputs of every kind, and the nulls beside them."""

import numpy as np
import pytest
import replicas
import torch
from channels import QUICK, SCORED, inputs, run, same
from scipy import stats
from sklearn.metrics import normalized_mutual_info_score, silhouette_score

from psi_fast import PSIConfig, PsiFastError, score_embeddings

# ---- the observed values and the row


def test_observed_values_are_those_of_the_definition():
    x, labels, text = inputs()
    scores = run(PSIConfig(draws=5, center=False))
    text = replicas.unit(text.astype(np.float64))
    for c, row in scores.table.iterrows():
        own = scores.labels[c]
        rows = replicas.unit(x[c].astype(np.float64))
        assert row["S"] == pytest.approx(silhouette_score(rows, own, metric="cosine"), abs=1e-5)
        assert row["Q"] == pytest.approx(normalized_mutual_info_score(labels[c], own), abs=1e-10)
        prototypes = np.stack([rows[own == j].mean(0) for j in range(row["k"])])
        d, concepts = replicas.distinctness(replicas.unit(prototypes), text, "gap")
        assert row["D"] == pytest.approx(d, abs=1e-5)
        assert row["concepts"] == [str(i) for i in concepts]
        assert row["cluster_sizes"] == np.bincount(own).tolist() == sorted(row["cluster_sizes"], reverse=True)


def test_centring_subtracts_the_mean_of_the_unique_rows_and_of_the_bank():
    x, labels, text = inputs()
    x[1, 3] = x[0, 0]  # a patch that two channels share counts once
    unique = np.unique(replicas.unit(x.astype(np.float64)).reshape(-1, 16).round(6), axis=0)
    by_hand = replicas.unit(replicas.unit(x.astype(np.float64)) - replicas.unit(unique).mean(0))
    bank = replicas.unit(text.astype(np.float64))
    expected = score_embeddings(
        by_hand, labels=labels, text=bank - bank.mean(0), config=PSIConfig(draws=20, n_init=2, k_max=3, center=False)
    )
    found = score_embeddings(x, labels=labels, text=text, config=QUICK)
    same(found.table[SCORED], expected.table[SCORED], atol=1e-3, rtol=0)
    assert np.array_equal(found.labels, expected.labels)


def test_columns_keep_their_ranges_and_hang_together():
    table = run(background=np.random.default_rng(1).normal(size=(50, 16)), background_labels=np.arange(50)).table
    assert table["components"].tolist() == ["SQD"] * 5
    assert ((table[["psi", "S_hat", "Q_hat", "D_hat"]] > 0) & (table[["psi", "S_hat", "Q_hat", "D_hat"]] < 1)).all(
        axis=None
    )
    assert ((table[["p", "q", "S_p", "Q_p", "D_p"]] > 0) & (table[["p", "q", "S_p", "Q_p", "D_p"]] <= 1)).all(axis=None)
    assert table["S"].between(-1, 1).all()
    assert table["Q"].between(0, 1).all()
    assert table["random_percentile"].between(0, 100).all()
    assert table["k"].between(2, 3).all()
    for x in "SQD":
        z = (table[x] - table[f"{x}_null_mean"]) / table[f"{x}_null_sd"]
        np.testing.assert_allclose(table[f"{x}_z"], z, rtol=1e-12)
        np.testing.assert_allclose(table[f"{x}_hat"], 1 / (1 + np.exp(-z)), rtol=1e-12)
        counts = table[f"{x}_p"] * 21
        np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
    np.testing.assert_allclose(table["psi"], table["S_hat"] * table["Q_hat"] * table["D_hat"], rtol=1e-12)
    np.testing.assert_allclose(table["log_psi"], np.log(table["psi"]), rtol=1e-9)
    assert (table["p"] == table[["S_p", "Q_p", "D_p"]].max(axis=1)).all()
    np.testing.assert_allclose(table["q"], stats.false_discovery_control(table["p"]), rtol=1e-12)
    assert table["max_activation"].isna().all()


# ---- psi.md's table of cases


def test_labels_all_alike_are_degenerate():
    _, labels, _ = inputs()
    labels[2] = 7
    table = run(labels=labels).table
    assert table["flags"].tolist() == [[], [], ["degenerate:Q"], [], []]
    assert table.loc[2, ["Q_z", "Q_hat"]].tolist() == [0, 0.5]
    assert table.loc[2, "psi"] == pytest.approx(table.loc[2, "S_hat"] * 0.5 * table.loc[2, "D_hat"])
    for exact in (False, True):
        again = run(PSIConfig(draws=20, n_init=2, k_max=3, exact=exact), labels=labels).table
        assert again.loc[2, "flags"] == ["degenerate:Q"]


def test_labels_all_different_are_degenerate():
    _, labels, _ = inputs()
    labels[1] = np.arange(24)
    assert run(labels=labels).table.loc[1, "flags"] == ["degenerate:Q"]


def test_one_concept_is_degenerate():
    table = run(text=inputs()[2][:1]).table
    assert all("degenerate:D" in flags for flags in table["flags"])
    assert (table["D_hat"] == 0.5).all()


@pytest.mark.parametrize("center", [True, False])
def test_equal_patches_have_one_cluster_and_are_degenerate(center):
    x, _, _ = inputs()
    x[0] = x[0, 0]
    scores = run(PSIConfig(draws=20, n_init=2, k_max=3, center=center), embeddings=x)
    row = scores.table.loc[0]
    assert (row["k"], row["S"], row["D"], row["cluster_sizes"]) == (1, 0, 0, [24])
    assert row["flags"] == ["degenerate:S", "degenerate:Q", "degenerate:D"]
    assert row["psi"] == pytest.approx(0.125)
    assert (scores.labels[0] == 0).all()


def test_a_layer_of_one_patch_is_degenerate_everywhere():
    table = run(embeddings=np.ones((2, 24, 16)), labels=np.zeros((2, 24), int)).table
    assert table["psi"].tolist() == pytest.approx([0.125, 0.125])
    assert table["k"].tolist() == [1, 1]


@pytest.mark.parametrize(("patches", "scored"), [(0, False), (1, False), (5, False), (6, True), (7, True)])
def test_few_patches(patches, scored):
    """2 * k_max = 6 valid patches are the fewest that are scored."""
    valid = np.ones((5, 24), dtype=bool)
    valid[3, patches:] = False
    scores = run(valid=valid)
    row = scores.table.loc[3]
    assert row["flags"] == ([] if scored else ["few_patches"])
    assert row[SCORED].notna().all() == scored
    assert (scores.labels[3] == -1).all() == (not scored)
    assert (row["k"] > 0) == scored
    if not scored:
        assert row[SCORED].isna().all()
        assert (row["concepts"], row["cluster_sizes"]) == ([], [])
    assert scores.table.drop(3)[SCORED].notna().all(axis=None)


def test_no_channel_has_enough_patches():
    scores = run(valid=np.zeros((5, 24), dtype=bool))
    assert scores.table[SCORED].isna().all(axis=None)
    assert (scores.labels == -1).all()
    assert scores.flag_counts() == {"few_patches": 5}


@pytest.mark.parametrize(
    ("absent", "components"), [(["labels"], "SD"), (["text"], "SQ"), (["labels", "text"], "S"), ([], "SQD")]
)
def test_components_there_are_make_psi(absent, components):
    table = run(**dict.fromkeys(absent)).table
    assert (table["components"] == components).all()
    np.testing.assert_allclose(table["psi"], np.prod([table[f"{x}_hat"] for x in components], axis=0), rtol=1e-12)
    assert (table["p"] == table[[f"{x}_p" for x in components]].max(axis=1)).all()
    for x in set("SQD") - set(components):
        assert table[[x, f"{x}_z", f"{x}_hat", f"{x}_p"]].isna().all(axis=None)
    if "text" in absent:
        assert table["concepts"].tolist() == [[]] * 5
    # what is absent changes nothing of the others
    full = run().table
    for x in components:
        assert (table[f"{x}_z"] == full[f"{x}_z"]).all()


def spoilt(value: float, *place: int) -> np.ndarray:
    x = inputs()[0]
    x[place] = value
    return x


BAD = [
    ({"embeddings": spoilt(np.nan, 3, 5, 2)}, r"embeddings\[3, 5\] is nan or inf"),
    ({"embeddings": spoilt(-np.inf, 0, 23, 0)}, r"embeddings\[0, 23\] is nan or inf"),
    ({"embeddings": spoilt(0.0, 2, 1)}, r"embeddings\[2, 1\] is zero"),
    ({"text": np.r_[np.ones((3, 16)), np.full((1, 16), np.nan)]}, r"text\[3\] is nan or inf"),
    ({"text": np.zeros((2, 16))}, r"text\[0\] is zero"),
    ({"labels": np.zeros((5, 23), int)}, r"labels must have shape \[5, 24\], one class per patch, got \[5, 23\]"),
    ({"labels": np.zeros(5, int)}, r"labels must be \[5, 24\], got 1 dimensions"),
    ({"labels": np.zeros((5, 24))}, "labels must be integers, got float64"),
    ({"labels": np.full((5, 24), "cat")}, "labels must be numbers"),
    ({"labels": torch.zeros(5, 24, dtype=torch.bfloat16)}, "labels must be integers"),
    ({"valid": np.ones((24, 5), bool)}, r"valid must be bool \[5, 24\].*got bool \[24, 5\]"),
    ({"valid": np.ones((5, 24), int)}, r"valid must be bool \[5, 24\].*got int64"),
    ({"embeddings": np.ones((24, 16))}, r"embeddings must be \[C, K, d\], got 2 dimensions with shape \[24, 16\]"),
    ({"embeddings": np.ones((0, 24, 16))}, "embeddings must hold at least one channel"),
    ({"embeddings": np.full((5, 24, 16), "x")}, "embeddings must be numbers"),
    ({"text": np.ones((3, 15))}, r"text must be \[M, 16\] like the patch embeddings.*got \[3, 15\]"),
    ({"text": np.ones((0, 16))}, "text must be"),
    ({"concept_names": ["a"]}, "concept_names must name each of the 20 rows of text, got 1 names"),
    ({"background": np.ones((23, 16)), "background_labels": np.zeros(23, int)}, "at least K = 24 patches, got 23"),
    ({"background": np.ones((30, 16))}, "labels and background_labels go together"),
    ({"background": np.ones((30, 17)), "background_labels": np.zeros(30, int)}, r"background must be \[M, 16\]"),
    ({"background": np.ones((30, 16)), "background_labels": np.zeros(29, int)}, "background_labels must have shape"),
    ({"device": "tpu"}, "tpu"),
]


@pytest.mark.parametrize(("changes", "said"), BAD)
def test_bad_input_ends_in_one_line(changes, said):
    with pytest.raises(PsiFastError, match=said) as caught:
        run(**changes)
    assert "\n" not in str(caught.value)


# ---- inputs of every kind


@pytest.mark.parametrize(
    "convert",
    [torch.from_numpy, lambda x: x.astype(np.float64), lambda x: torch.from_numpy(x).double().requires_grad_()],
    ids=["torch", "float64", "grad"],
)
def test_numpy_torch_and_float64_give_the_same(convert):
    x, labels, text = inputs()
    given = score_embeddings(convert(x), labels=torch.from_numpy(labels), text=convert(text), config=QUICK)
    same(given.table, run().table)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_exactly(dtype):
    x, labels, text = inputs()
    half = torch.from_numpy(x).to(dtype), torch.from_numpy(text).to(dtype)
    given = score_embeddings(half[0], labels=labels.astype(np.int32), text=half[1], config=QUICK)
    expected = score_embeddings(half[0].float().numpy(), labels=labels, text=half[1].float().numpy(), config=QUICK)
    same(given.table, expected.table)


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**-100, 2.0**20, 2.0**100])
def test_length_of_the_embeddings_does_not_matter(scale):
    x, _, text = inputs()
    same(run(embeddings=x * np.float32(scale), text=text * np.float32(scale)).table, run().table)


def test_names_of_the_classes_do_not_matter():
    _, labels, _ = inputs()
    same(run(labels=labels * 1000 - 7).table, run().table)


def test_concept_names_appear_in_the_table():
    names = [f"thing {i}" for i in range(20)]
    plain, named = run().table, run(concept_names=names).table
    assert named["concepts"].tolist() == [[names[int(i)] for i in row] for row in plain["concepts"]]


def test_arguments_are_left_alone():
    x, labels, text = inputs()
    copies = x.copy(), labels.copy(), text.copy()
    score_embeddings(x, labels=labels, text=text, config=QUICK)
    assert all(np.array_equal(a, b) for a, b in zip((x, labels, text), copies, strict=True))


def test_places_that_hold_no_patch_are_ignored_whatever_they_hold():
    x, labels, text = inputs()
    config = PSIConfig(draws=20, n_init=2, k_max=3, center=False)
    short = score_embeddings(x[:, :17], labels=labels[:, :17], text=text, config=config)
    spread, places = np.full_like(x, np.nan), np.sort(np.random.default_rng(0).permutation(24)[:17])
    spread[:, places], spread_labels = x[:, :17], np.full_like(labels, -5)
    spread_labels[:, places] = labels[:, :17]
    valid = np.zeros((5, 24), dtype=bool)
    valid[:, places] = True
    found = score_embeddings(spread, labels=spread_labels, text=text, valid=valid, config=config)
    same(found.table, short.table)
    assert np.array_equal(found.labels[:, places], short.labels)
    assert (found.labels[~valid] == -1).all()


# ---- nulls and baselines


def test_independent_null_is_reported_beside_every_rotation():
    tables = [
        run(PSIConfig(draws=20, n_init=2, k_max=3, rotation=r)).table for r in ("marginal", "tangent", "independent")
    ]
    assert all((t["S_z_independent"] == tables[0]["S_z_independent"]).all() for t in tables)
    assert (tables[0]["S_z"] != tables[1]["S_z"]).all()


@pytest.mark.parametrize("changes", [{}, {"text_pool": "layer"}, {"distinctness": "pairwise"}], ids=str)
def test_exact_moments_are_those_the_draws_converge_to(changes):
    x, labels, text = inputs(4)
    base = {"draws": 1500, "n_init": 1, "k_max": 2, **changes}
    drawn = score_embeddings(x, labels=labels, text=text, config=PSIConfig(**base)).table
    exact = score_embeddings(x, labels=labels, text=text, config=PSIConfig(**base, exact=True)).table
    for name in ("Q", "D"):
        sd = exact[f"{name}_null_sd"]
        assert ((drawn[f"{name}_null_mean"] - exact[f"{name}_null_mean"]).abs() < 4 * sd / 1500**0.5).all()
        assert ((drawn[f"{name}_null_sd"] / sd - 1).abs() < 0.12).all()
        assert (drawn[f"{name}_null_mean"] != exact[f"{name}_null_mean"]).all()
    kept = ["S", "Q", "D", "S_z", "S_p", "Q_p", "D_p", "p", "q", "k"]
    same(drawn[kept], exact[kept])


@pytest.mark.parametrize("changes", [{}, {"text_pool": "layer"}, {"text_null": "rotated"}], ids=str)
def test_background_is_no_part_of_a_channels_own_score(changes):
    config = PSIConfig(draws=20, n_init=2, k_max=3, **changes)
    rng = np.random.default_rng(5)
    alone = run(config).table
    beside = run(config, background=rng.normal(size=(60, 16)), background_labels=rng.integers(9, size=60)).table
    assert alone["random_percentile"].isna().all()
    assert beside["random_percentile"].notna().all()
    same(beside[SCORED], alone[SCORED], atol=1e-5, rtol=1e-5)

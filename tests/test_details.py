"""What lies behind a run's scores, against replicas that take one channel at a time."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tiny
from scipy.special import expit
from sklearn.metrics import silhouette_samples

from psi_fast import details as module
from psi_fast import store
from psi_fast.details import open_details
from psi_fast.errors import InputError, StoreError
from psi_fast.experiments.outcome import claim_table
from psi_fast.experiments.statistics import Claim
from psi_fast.neighbours import neighbours

LAYERS = ("1", "3")
DEAD = 6  # channel 1 of layer "3"


def scored(folder, **changes):
    """A run of two layers, of which the second has a dead channel."""
    tiny.score(tiny.conv_network(tiny.Kill(1)), LAYERS, out=folder, config=replace(tiny.CONFIG, **changes))
    return open_details(folder)


@pytest.fixture(scope="module")
def details(tmp_path_factory):
    return scored(tmp_path_factory.mktemp("details") / "a run")


@pytest.fixture(scope="module", params=[True, False], ids=["centred", "plain"])
def both(request, details, tmp_path_factory):
    """With and without centring."""
    return details if request.param else scored(tmp_path_factory.mktemp("plain") / "run", center=False)


def every(details):
    return np.arange(len(details.index))


def embeddings(details, row):
    """The channel's patches [n, d] as they were scored."""
    table, index = details.scores.table, details.index.numpy()
    unique = details.unique.numpy().astype(float)
    if details.scores.manifest["config"]["center"]:
        layer = (table["layer"] == table["layer"].iloc[row]).to_numpy()
        used = sorted({int(i) for i in index[layer].ravel() if i >= 0})
        unique = unique - unique[used].mean(0)
        unique /= np.linalg.norm(unique, axis=1, keepdims=True)
    return unique[index[row][index[row] >= 0]]


def ragged(details):
    """The same run, in which two channels lack some patches, not the last ones, and one has patches but no score."""
    index, labels = details.index.clone(), details.scores.labels.copy()
    for row, lost in ((0, [0, 5]), (3, [2, 11])):
        index[row, lost], labels[row, lost] = -1, -1
    table = details.scores.table.copy()
    table.loc[2, "k"], labels[2] = 0, -1
    return replace(details, index=index, scores=replace(details.scores, labels=labels, table=table))


def test_attributes(details):
    assert details.name == "a run"
    assert details.present == "SQD"
    assert {name: rows.tolist() for name, rows in details.layers.items()} == {
        "1": [0, 1, 2, 3, 4],
        "3": list(range(5, 11)),
    }
    assert details.concepts == ["red", "green", "blue", "dark", "light"]
    assert details.scores.table["flags"][DEAD] == ["dead"]
    assert repr(details) == f"Details(a run, 11 channels, {len(details.unique)} distinct patches)"


@pytest.mark.parametrize("budget", [None, 1])
def test_silhouettes_are_scikit_learns(both, budget, monkeypatch):
    if budget:  # a channel at a time
        monkeypatch.setattr(module, "BUDGET", budget)
    rows = np.array([9, 0, DEAD, 3])
    for details in (both, ragged(both)):
        found = details.silhouettes(rows)
        assert (found.dtype, found.shape) == (np.float32, (4, 12))
        for row, own in zip(rows, found, strict=True):
            labels = details.scores.labels[row]
            if row == DEAD:
                assert np.isnan(own).all()
                continue
            expected = silhouette_samples(embeddings(details, row), labels[labels >= 0], metric="cosine")
            np.testing.assert_allclose(own[labels >= 0], expected, atol=2e-5)
            assert np.isnan(own[labels < 0]).all()


def test_silhouettes_average_to_s(both):
    found = both.silhouettes(every(both)).mean(1)
    np.testing.assert_allclose(found, both.scores.table["S"], atol=1e-6)
    assert np.isnan(found).sum() == 1


def test_silhouettes_of_alike_patches_are_zero(details):
    index, labels = details.index.clone(), details.scores.labels.copy()
    index[0], labels[0] = index[0, 0], 0
    alike = replace(details, index=index, scores=replace(details.scores, labels=labels))
    assert (alike.silhouettes([0]) == 0).all()
    coordinates, shares = alike.principal([0])
    assert np.abs(coordinates).max() < 1e-6
    assert (shares <= 1).all()


def test_principal_coordinates_are_those_of_the_covariance(both):
    for details in (both, ragged(both)):
        coordinates, shares = details.principal(every(details))
        assert coordinates.dtype == shares.dtype == np.float32
        for row in every(details):
            held = details.index[row].numpy() >= 0
            assert np.isnan(coordinates[row, ~held]).all()
            if row == DEAD:
                assert np.isnan(shares[row]).all()
                continue
            x = embeddings(details, row)
            x = x - x.mean(0)
            values, vectors = np.linalg.eigh(x.T @ x)
            expected = x @ vectors[:, [-1, -2]]
            expected *= np.sign(expected[np.abs(expected).argmax(0), [0, 1]])
            np.testing.assert_allclose(coordinates[row, held], expected, atol=2e-5)
            np.testing.assert_allclose(shares[row], values[[-1, -2]] / values.sum(), atol=1e-5)


def test_concepts_are_those_of_the_table_and_the_nearest(both):
    text = both.text.numpy().astype(float)
    if both.scores.manifest["config"]["center"]:
        text = text - text.mean(0)
        text /= np.linalg.norm(text, axis=1, keepdims=True)
    rows = every(both)[::-1]
    found = both.cluster_concepts(rows, count=4)
    for row, clusters in zip(rows, found, strict=True):
        assert [cluster[0][0] for cluster in clusters] == both.scores.table["concepts"][row]
        labels = both.scores.labels[row]
        for cluster, own in enumerate(clusters):
            mean = embeddings(both, row)[labels == cluster].sum(0)
            cosines = text @ (mean / np.linalg.norm(mean))
            best = np.argsort(-cosines)[:4]
            assert [name for name, _ in own] == [both.concepts[i] for i in best]
            np.testing.assert_allclose([value for _, value in own], cosines[best], atol=1e-5)
    assert found[list(rows).index(DEAD)] == []
    assert [len(cluster) for cluster in both.cluster_concepts([0], count=9)[0]] == [5] * both.scores.table["k"][0]


def test_classes_are_counted(details):
    patches = details.scores.patches
    found = details.cluster_classes(every(details), count=3)
    for row, own in zip(every(details), found, strict=True):
        layer, channel, k = details.scores.table.loc[row, ["layer", "channel", "k"]]
        mine = patches[(patches["layer"] == layer) & (patches["channel"] == channel)]
        expected = []
        for cluster in range(k):
            counts = Counter(mine.loc[mine["cluster"] == cluster, "label"])
            expected.append(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:3])
        assert own == expected
    assert found[DEAD] == []
    assert sum(len(own) for own in found) > 20


def test_without_labels_there_are_no_classes(tmp_path):
    images = tiny.image_set(labelled=False)
    tiny.score(images=images, out=tmp_path / "run")
    found = open_details(tmp_path / "run")
    assert found.present == "SD"
    assert found.cluster_classes([0]) == [[[]] * found.scores.table["k"][0]]
    assert found.null_draws("Q") is None
    assert np.isfinite(found.null_log_psi(tiny.LAYER)).all()


def test_distributions(details):
    channels = len(details.index)
    for name in "SQD":
        drawn = details.null_draws(name)
        assert (drawn.dtype, drawn.shape) == (np.float32, (channels, 9))
        assert np.isnan(drawn[DEAD]).all()
        rows = np.delete(every(details), DEAD)
        np.testing.assert_allclose(drawn[rows].mean(1), details.scores.table[f"{name}_null_mean"][rows], atol=1e-5)
    assert details.image_maxima.shape == (channels, 40)
    np.testing.assert_array_equal(details.image_maxima.max(1), details.scores.table["max_activation"])
    table = details.scores.table
    for layer, rows in details.layers.items():
        random = details.random_log_psi(layer)
        assert (random.dtype, random.shape) == (np.float64, (100,))
        for row in rows[table["k"][rows] > 0]:
            assert (random <= table["log_psi"][row]).sum() == pytest.approx(table["random_percentile"][row])


def test_null_draws_are_calibrated_like_the_scores(details, monkeypatch):
    table = details.scores.table
    for layer, rows in details.layers.items():
        expected = []
        for row in rows[table["k"][rows] > 0]:
            hats = []
            for name in "SQD":
                mean, sd = table[f"{name}_null_mean"][row], table[f"{name}_null_sd"][row]
                z = (details.null_draws(name)[row].astype(float) - mean) / sd if sd >= 1e-9 else np.zeros(9)
                hats.append(expit(z))
            expected.append(np.log(np.prod(hats, axis=0)))
        everything = np.ravel(expected)
        np.testing.assert_allclose(details.null_log_psi(layer), everything, rtol=1e-9)
        monkeypatch.setattr(module, "SAMPLE", 20)
        some = details.null_log_psi(layer)
        assert len(some) == len(set(some)) == 20
        assert set(np.round(some, 9)) <= set(np.round(everything, 9))
        np.testing.assert_array_equal(details.null_log_psi(layer), some)
        monkeypatch.undo()


def check_neighbours(index, concepts, sizes, found, count, first=0):
    """Against Python's sets, a pair at a time."""
    held = [{int(i) for i in own if i >= 0} for own in index]
    shares = [Counter() for _ in index]
    for own, names, numbers in zip(shares, concepts, sizes, strict=True):
        for name, number in zip(names, numbers, strict=True):
            own[name] += number / sum(numbers)
    for i, near in enumerate(found):
        patches, alike = [], []
        for j in range(len(index)):
            both = held[i] & held[j]
            share = sum(min(shares[i][name], shares[j][name]) for name in shares[i])
            patches += [(j, len(both), len(both) / len(held[i] | held[j]))] if j != i and both else []
            alike += [(j, share)] if j != i and share else []
        patches.sort(key=lambda own: (-own[1], own[0]))
        alike.sort(key=lambda own: (-round(own[1], 9), own[0]))
        assert [(j - first, n) for j, n, _ in near.patches] == [own[:2] for own in patches[:count]]
        assert [own[2] for own in near.patches] == pytest.approx([own[2] for own in patches[:count]])
        assert [j - first for j, _ in near.concepts] == [j for j, _ in alike[:count]]
        assert [own[1] for own in near.concepts] == pytest.approx([own[1] for own in alike[:count]])


def test_neighbours_of_a_run_lie_in_their_layer(details):
    found = details.neighbours(3)
    for rows in details.layers.values():
        concepts, sizes = (details.scores.table[name][rows].tolist() for name in ("concepts", "cluster_sizes"))
        own = found[rows[0] : rows[-1] + 1]
        check_neighbours(details.index[rows].numpy(), concepts, sizes, own, 3, rows[0])
    assert found[DEAD] == ([], [])
    assert max(len(own.patches) for own in found) == 3


@pytest.mark.parametrize("budget", [256 * 2**20, 1])
def test_neighbours(budget, monkeypatch):
    monkeypatch.setattr("psi_fast.neighbours.rows_per_chunk", lambda size, **_: max(1, budget // size))
    rng = np.random.default_rng(3)
    index = rng.integers(-1, 60, size=(40, 12))
    index[7] = -1
    sizes = [rng.integers(1, 9, size=rng.integers(1, 5)).tolist() for _ in index]
    concepts = [rng.choice(list("abcdefgh"), size=len(own)).tolist() for own in sizes]
    concepts[7], sizes[7] = [], []
    check_neighbours(index, concepts, sizes, neighbours(index, concepts, sizes, 5), 5)


def test_neighbours_where_nothing_is_scored():
    assert neighbours(np.full((2, 3), -1), [[], []], [[], []], 4) == [([], [])] * 2


def test_channels_have_addresses(details):
    addresses = [details.address(row) for row in every(details)]
    assert addresses[4:6] == ["1/4", "3/0"]
    assert [details.row(address) for address in addresses] == every(details).tolist()
    for wrong, told in (
        ("4", r"a channel is given as LAYER/NUMBER, such as 1/0, got '4'"),
        ("3/x", "LAYER/NUMBER"),
        ("33/1", r"no layer '33'; nearest: '3'"),
        ("1/5", r"1 in .*a run has no channel 5; it has 5, from 0 to 4"),
    ):
        with pytest.raises(InputError, match=told):
            details.row(wrong)


def test_experiments_are_read(details, tmp_path):
    assert details.experiments == []
    assert details.swaps is None
    for name in ("patch-swap", "depth"):
        folder = tmp_path / store.EXPERIMENTS / name
        folder.mkdir(parents=True)
        table = details.scores.table[["channel", "psi"]]
        table.to_parquet(folder / "table.parquet", index=False)
        claim_table([Claim("one", 0.5, 0.25, 0.75)]).to_csv(folder / "claims.csv", index=False)
        manifest = {"experiment": name, "text": "What came out.", "claims": 1, "identity": "x"}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / store.EXPERIMENTS / "unfinished").mkdir()
    here = replace(details, folder=tmp_path)
    assert [(own.name, own.text, own.claims[0].high, own.folder.name) for own in here.experiments] == [
        ("depth", "What came out.", 0.75, "depth"),
        ("patch-swap", "What came out.", 0.75, "patch-swap"),
    ]
    assert here.swaps is not None
    assert here.swaps.equals(details.scores.table[["channel", "psi"]])
    (folder / "claims.csv").write_text("name\n")
    with pytest.raises(StoreError, match=r"cannot read the experiment in .*depth: .*; remove it and run it again"):
        replace(details, folder=tmp_path).experiments  # noqa: B018


def test_what_is_missing_is_told_in_one_line(details, tmp_path):
    with pytest.raises(StoreError, match="holds no finished run"):
        open_details(tmp_path)
    for path in details.folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    for name in ("embeddings.safetensors", "distributions.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:40])
        with pytest.raises(
            StoreError, match=rf"cannot read .*{re.escape(name)}: .*; remove .*manifest.json and score again"
        ):
            open_details(tmp_path)
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "distributions.safetensors").unlink()
    with pytest.raises(StoreError, match=r"has no distributions\.safetensors, .* score it again"):
        open_details(tmp_path)

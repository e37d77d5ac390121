"""Planted: units of colours that a classifier tells apart, so that meanings, clusters and their number are known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from PIL import Image
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from test_study import study
from torch import nn

from psi_fast import Network
from psi_fast.errors import ConfigError, InputError, ModelError
from psi_fast.experiments import planted, survey
from psi_fast.experiments.planted import _claims
from psi_fast.experiments.planted_units import (
    adjusted_rand,
    class_logits,
    classifier_units,
    disjoint_pairs,
    merged_units,
    pure_logits,
)
from psi_fast.image_set import ImageSet

CORNERS = np.array([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)])
EACH = 16
CONFIG = replace(tiny.CONFIG, top_k=40, k_max=4, n_init=2, draws=99, patch="image")


def colour_images(each=EACH):
    """`each` pictures of each corner of the colour cube, in front of noise."""

    def read(name):
        number = int(name.removeprefix("colour-"))
        rng = np.random.default_rng(number)
        pixels = 0.5 + 0.35 * (2 * CORNERS[number % 8] - 1) + rng.normal(0, 0.05, 3) + rng.normal(0, 0.1, (32, 32, 3))
        return Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8))

    names = [f"colour-{number}" for number in range(8 * each)]
    return ImageSet(
        names, read, names, labels=[n % 8 for n in range(8 * each)], class_names=[f"colour {n}" for n in range(8)]
    )


def colour_network():
    """One logit a corner; the layer "0" has a channel a corner too."""
    module = nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8, bias=False)
    )
    with torch.no_grad():
        module[0].weight.copy_(torch.from_numpy(2 * CORNERS - 1)[:, :, None, None])
        module[3].weight.copy_(torch.eye(8))
    return Network(module, tiny.PREPROCESS, "colours")


class ColourEncoder(tiny.TinyEncoder):
    """The mean colour, and the corners as concepts."""

    def encode(self, batch):
        self.encoded += len(batch)
        return torch.cat([batch.mean((2, 3)), batch[:, :, 0, :2].flatten(1)], 1)

    def concepts(self, vocabulary, progress=None):
        rows = torch.zeros(8, 9)
        rows[:, :3] = torch.from_numpy(2.0 * CORNERS - 1)
        return [f"colour {n}" for n in range(8)], rows

    def fingerprint(self):
        return "colours"


def colours(folder, **changes):
    options = {"encoder": ColourEncoder(), "config": CONFIG} | changes
    return study(folder, colour_network(), "0", colour_images(), **options)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return planted(colours(tmp_path_factory.mktemp("planted")), members=(2, 3), units=20)


def claim(outcome, name):
    (one,) = [own for own in outcome.claims if own.name == name]
    return one


def test_units_of_several_colours_are_told_from_those_of_one(found):
    for m in (2, 3):
        assert claim(found, f"AUROC PSI, poly{m} / mono").value >= 0.95
        assert claim(found, f"adjusted Rand index, poly{m}").value >= 0.9
    # of 8 concepts two random ones are often as distinct as two colours, so two meanings rarely reach p <= .05
    assert claim(found, "p <= .05, poly3").value >= 0.9
    assert claim(found, "p <= .05, mono").value == 0
    assert claim(found, "k as planted, poly2").value >= 0.9
    assert claim(found, "adjusted Rand index, merged").value >= 0.9


def test_the_table_says_what_each_unit_is(found):
    table = found.table
    # 8 colours give 8 single units, 28 pairs of which 20 were asked for, and 4 pairs of channels
    assert table["kind"].value_counts().to_dict() == {
        "mono": 8, "poly2": 20, "poly3": 20, "random": 20, "merged": 4, "channel": 4,
    }  # fmt: skip
    assert table["meaning"][table["kind"] != "random"].is_unique
    assert table[table["kind"] == "poly3"]["planted"].eq(3).all()
    assert table[table["kind"].isin(["mono", "random", "channel"])]["rand_index"].isna().all()
    assert set(table["layer"]) == {"3", "0"}
    assert "12 images" in found.text  # four fifths of the 16 of a class
    assert len(found.figure.axes) == 4
    for kind, rows in table.groupby("kind"):
        for column in ("p", "q"):
            assert claim(found, f"{column} <= .05, {kind}").value == pytest.approx((rows[column] <= 0.05).mean())


def test_claims_are_those_of_the_table(found):
    table = found.table
    kinds = {str(kind): rows for kind, rows in table.groupby("kind")}
    for name, column in {"PSI": "log_psi", "S": "S_z", "Q": "Q_z", "D": "D_z"}.items():
        for kind in ("poly2", "poly3"):
            for other in ("mono", "random"):
                two = pd.concat([kinds[kind], kinds[other]])
                one = claim(found, f"AUROC {name}, {kind} / {other}")
                assert one.value == pytest.approx(roc_auc_score(two["kind"] == kind, two[column]))
                assert "over classes" in one.how
    first = kinds["channel"].set_index("meaning")["psi"]
    merged = kinds["merged"].assign(first=[meaning.split(" + ")[0] for meaning in kinds["merged"]["meaning"]])
    gain = merged["psi"].to_numpy() - first.loc[merged["first"]].to_numpy()
    paired = claim(found, "PSI, merged less its first channel")
    assert paired.value == pytest.approx(gain.mean())
    assert gain.mean() > 0.2
    assert paired.p == pytest.approx(2 / 2**4)  # all that four pairs can give
    effect = claim(found, "PSI, merged less its first channel, effect size")
    assert effect.value == pytest.approx(gain.mean() / gain.std(ddof=1))
    more = table.assign(k=table["k"] + (np.arange(len(table)) % 3 == 0))
    again = {one.name: one.value for one in _claims(more, (2, 3), SimpleNamespace(config=CONFIG, layers=["0"]))}
    for kind in ("poly2", "poly3", "merged"):
        rows = more[more["kind"] == kind]
        assert again[f"k as planted, {kind}"] == pytest.approx((rows["k"] == rows["planted"]).mean())
        rows = kinds[kind]
        assert claim(found, f"adjusted Rand index, {kind}").value == pytest.approx(rows["rand_index"].mean())
        assert claim(found, f"k as planted, {kind}").value == pytest.approx((rows["k"] == rows["planted"]).mean())


def test_poly_units_take_as_much_of_each_colour(tmp_path):
    own = colours(tmp_path)
    logits = class_logits(own, None)
    assert logits.values.shape == (128, 8)
    np.testing.assert_array_equal(logits.values.argmax(1), own.labels)
    chosen, purity = pure_logits(logits.values, own.labels, 12)
    assert list(chosen) == list(range(8))
    assert (purity == 1).all()
    # a logit a thousand times as large would have the whole top without ranks
    scaled = replace(logits, values=logits.values * np.array([1000, 1, 1, 1, 1, 1, 1, 1]))
    units = classifier_units(scaled, chosen, (2,), 28, 12, np.random.default_rng(0))
    for kind, images, part in zip(units.kind, units.images, units.planted, strict=True):
        if kind == "poly2":
            assert sorted(np.bincount(part, minlength=2)) == [6, 6]
            assert len(set(own.labels[images])) == 2
            assert adjusted_rand(part, own.labels[images]) == 1
        if kind == "random":
            assert len(set(images)) == 12


def test_logits_take_part_when_they_stand_for_a_class():
    classes = np.repeat([0, 1, 2], 10)
    values = np.zeros((30, 4))
    values[:10, 0] = 1  # all of class 0
    values[:8, 1] = 1  # eight of class 0, then the first in order: two more of it
    values[10:15, 2] = 1  # five of class 1, five of class 0: half is enough
    values[[0, 1, 2, 10, 11, 12, 20, 21, 22, 23], 3] = 1
    chosen, purity = pure_logits(values, classes, 10)
    assert list(chosen) == [0]  # logit 2 has five of class 0 as well, the first class among equals
    values[15, 2] = 1
    chosen, purity = pure_logits(values, classes, 10)
    assert list(chosen) == [0, 2]
    np.testing.assert_allclose(purity, [1, 0.6])


def test_rand_index_is_scikit_learns():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.integers(rng.integers(1, 5), size=20), rng.integers(rng.integers(1, 5), size=20)
        assert adjusted_rand(a, b) == pytest.approx(adjusted_rand_score(a, b))
    assert adjusted_rand(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])) == 1


def test_merged_channels_share_no_image(tmp_path, monkeypatch):
    own = colours(tmp_path)
    units = merged_units(own, "0", 4, 12, np.random.default_rng(0))
    top = own.top("0", own.with_changes(top_k=12))
    for meaning, images in zip(units.meaning[:4], units.images[:4], strict=True):
        one, two = (int(name.split()[1]) for name in meaning.split(" + "))
        assert len(set(images)) == 12
        np.testing.assert_array_equal(images[:6], top.images[one, :6])
        np.testing.assert_array_equal(images[6:], top.images[two, :6])
    small = study(
        tmp_path / "small",
        colour_network(),
        "0",
        colour_images(),
        encoder=ColourEncoder(),
        config=replace(CONFIG, patch=0.5),
    )
    units = merged_units(small, "0", 4, 12, np.random.default_rng(0))
    top = small.top("0", small.with_changes(top_k=12))
    for meaning, boxes in zip(units.meaning[:4], units.boxes[:4], strict=True):
        one, two = (int(name.split()[1]) for name in meaning.split(" + "))
        places = np.concatenate([top.positions[one, :6], top.positions[two, :6]])
        np.testing.assert_array_equal(boxes, small.boxes("0", places))
    same = replace(top, images=np.tile(top.images[:1], (8, 1)))
    assert disjoint_pairs(same, 6, 4, np.random.default_rng(0)).shape == (0, 2)
    monkeypatch.setattr(small, "top", lambda *_: same)
    with pytest.raises(InputError, match="no two live channels of 0 have 6 top images each without one in common"):
        merged_units(small, "0", 4, 12, np.random.default_rng(0))


def test_the_forward_pass_is_kept(tmp_path, monkeypatch):
    class_logits(colours(tmp_path), None)

    def forbidden(*_args, **_keywords):
        raise AssertionError("nothing is computed again")

    monkeypatch.setattr(survey, "activations", forbidden)
    class_logits(colours(tmp_path), None)


def test_another_classifier_and_bad_input(tmp_path):
    own = colours(tmp_path)
    logits = class_logits(own, "tiny:classifier")
    assert logits.values.shape == (128, 7)
    assert logits.names[0] == "class 0"
    with pytest.raises(ConfigError, match=r"only \d+ classes have a logit"):
        planted(own, members=(9,), units=4)
    with pytest.raises(ConfigError, match="at least 2, got"):
        planted(own, members=(1,))
    with pytest.raises(ConfigError, match=r"from 2 \* k_max = 8 to the 128 images, got 6"):
        planted(own, unit_patches=6)
    with pytest.raises(ModelError, match="name it with --classifier"):
        class_logits(study(tmp_path / "other", tiny.network()), None)

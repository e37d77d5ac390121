"""Ablation: every AUROC against scikit-learn, and units of one and of two colours, whose components are known."""

from itertools import combinations

import colours
import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from test_study import study

from psi_fast.experiments import ablation
from psi_fast.experiments.ablation import AGAINST, subsets_of, values
from psi_fast.experiments.null_channels import null_channels
from psi_fast.image_set import ImageSet

ONE = [{name: 1.0} for name in colours.NAMES] * 2
TWO = [{first: 1.0, second: 1.0} for first, second in combinations(colours.NAMES, 2)]


@pytest.fixture(scope="module")
def of_two_colours(tmp_path_factory):
    own = colours.study(tmp_path_factory.mktemp("two"), TWO)
    return own, ablation(own)


def cell(found, against, components, way="product"):
    table = found.table
    (row,) = table[
        (table["against"] == against) & (table["components"] == components) & (table["way"] == way)
    ].itertuples()
    return row


def named(found, ending):
    (claim,) = [claim for claim in found.claims if claim.name.endswith(ending)]
    return claim


def test_all_subsets_and_ways_are_there_with_their_aurocs(of_two_colours):
    own, found = of_two_colours
    assert subsets_of("SQD") == ["S", "Q", "D", "SQ", "SD", "QD", "SQD"]
    assert len(found.table) == 2 * 7 * 4
    evaluation = own.evaluation(colours.LAYER)
    others = {"rotated null": null_channels(evaluation), "random patches": evaluation.random}
    combined = {
        "product": lambda z, p: np.log(expit(z)).sum(1),
        "minimum": lambda z, p: z.min(1),
        "mean": lambda z, p: expit(z).sum(1),
        "largest p": lambda z, p: 1 - p.max(1),
    }
    for row in found.table.itertuples():
        groups = []
        for table in (evaluation.table, others[row.against]):
            z, p = (np.array([table[f"{name}_{kind}"] for name in row.components], dtype=np.float64).T for kind in "zp")
            groups.append(combined[row.way](z, p))
        expected = roc_auc_score([1] * len(groups[0]) + [0] * len(groups[1]), np.concatenate(groups))
        assert row.auroc == pytest.approx(expected, abs=1e-9), row
        assert row.low <= row.auroc <= row.high


def test_the_product_of_all_ranks_as_psi(of_two_colours):
    own, _ = of_two_colours
    table = own.evaluation(colours.LAYER).table
    np.testing.assert_allclose(values(table, "SQD", "product"), table["log_psi"])
    np.testing.assert_allclose(-values(table, "SQD", "largest p"), table["p"])


def test_units_of_two_colours_are_told_from_their_nulls_by_every_component(of_two_colours):
    _, found = of_two_colours
    for components in ("S", "Q", "SQD"):
        assert cell(found, "rotated null", components).auroc > 0.99
    assert cell(found, "rotated null", "D").auroc > 0.9
    # random patches have squares of eight colours, as many clusters as are asked for, and three names to two
    assert cell(found, "random patches", "S").auroc < 0.2
    assert cell(found, "random patches", "Q").auroc > 0.9


def test_units_of_one_colour_have_no_q_and_no_d(tmp_path):
    found = ablation(colours.study(tmp_path, ONE))
    assert cell(found, "rotated null", "Q").auroc == 0.5  # labels all alike: z is 0, and so is its null's
    assert cell(found, "rotated null", "Q").low == 0.5
    for components in ("S", "D", "SQD"):
        assert 0.2 < cell(found, "rotated null", components).auroc < 0.85
    assert cell(found, "random patches", "Q").auroc == 0
    assert cell(found, "random patches", "SQD").auroc < 0.05
    added = named(found, "real / rotated null, what Q adds to SD")
    assert added.value == pytest.approx(0, abs=1e-12)
    assert (added.low, added.high, added.p) == pytest.approx((0, 0, 1), abs=1e-12)


def test_differences_are_those_of_the_table(of_two_colours):
    _, found = of_two_colours
    for against in AGAINST:
        claim = named(found, f"real / {against}, what S adds to QD")
        expected = cell(found, against, "SQD").auroc - cell(found, against, "QD").auroc
        assert claim.value == pytest.approx(expected)
        assert claim.low <= claim.value <= claim.high
        claim = named(found, f"real / {against}, SQD, minimum less product")
        expected = cell(found, against, "SQD", "minimum").auroc - cell(found, against, "SQD").auroc
        assert claim.value == pytest.approx(expected)
    assert {claim.name: claim.paper for claim in found.claims if claim.paper} == {
        "units: AUROC real / rotated null, SQD, product": ".987"
    }


def test_without_labels_the_subsets_are_those_of_two_components(tmp_path):
    images = ImageSet(
        [f"square-{number}" for number in range(120)],
        lambda name: colours.square(int(name.removeprefix("square-"))),
        [str(number) for number in range(120)],
    )
    found = ablation(colours.study(tmp_path, TWO[:6], images))
    assert list(dict.fromkeys(found.table["components"])) == ["S", "D", "SD"]
    assert not any(claim.paper for claim in found.claims)


def test_each_layer_has_its_panels(tmp_path):
    found = ablation(study(tmp_path, layer=["2", "0"]))
    assert len(found.table) == 2 * 2 * 7 * 4
    titles = [panel.get_title("left") for panel in found.figure.axes]
    assert titles == [f"{layer}: real / {against}" for layer in ("2", "0") for against in AGAINST]

"""Breadth: classes matched with concepts, and an open vocabulary with better names for some of the classes."""

from itertools import combinations

import colours
import numpy as np
import pytest
import torch
from scipy import stats
from test_study import study

from psi_fast.errors import InputError
from psi_fast.experiments import breadth
from psi_fast.experiments.breadth import class_bank, class_concepts
from psi_fast.results import Bank

TWO = [{first: 1.0, second: 1.0} for first, second in combinations(colours.NAMES, 2)]
RIVALS = ("red", "green")
# all classes, pale names for two of them, and better ones for these outside the classes
WORDS = {name: {name: 1.0} for name in colours.NAMES if name not in RIVALS}
WORDS |= {"red": {"red": 1.0, "white": 0.6}, "green": {"green": 1.0, "black": 0.6}}
WORDS |= {"scarlet": {"red": 1.0}, "emerald": {"green": 1.0}, "pink": {"red": 1.0, "magenta": 1.0, "white": 1.0}}


def claim(found, name):
    (one,) = [one for one in found.claims if one.name == f"units: {name}"]
    return one


@pytest.fixture(scope="module")
def rivalled(tmp_path_factory):
    own = colours.study(tmp_path_factory.mktemp("rivals"), TWO, encoder=colours.ColourEncoder(WORDS))
    return own, breadth(own)


def test_clusters_are_named_outside_the_classes_where_a_better_word_is(rivalled):
    _, found = rivalled
    # each colour is one of 56 clusters of 28 units in 7 units, and red and green have better words
    assert found.table["clusters"].sum() == 56
    outside = claim(found, "clusters named outside the classes, open vocabulary")
    assert outside.value == pytest.approx(14 / 56)
    assert outside.low < outside.value < outside.high
    assert outside.count == 56
    assert claim(found, "clusters named as their class, open vocabulary").value == pytest.approx(42 / 56)
    assert claim(found, "clusters named as their class, class names").value == 1
    per_channel = [len(set(RIVALS) & set(unit)) for unit in TWO]
    np.testing.assert_array_equal(found.table["outside"], per_channel)


def test_the_same_patches_and_clusters_are_named_twice(rivalled):
    own, found = rivalled
    chosen = [own.text.names.index(name) for name in own.text.names if name in colours.NAMES]
    words = Bank(tuple(own.text.names[i] for i in chosen), own.text.embeddings[chosen])
    narrow, wide = own.evaluation(colours.LAYER, text=words).table, own.evaluation(colours.LAYER).table
    np.testing.assert_array_equal(narrow["S_z"], wide["S_z"])
    np.testing.assert_array_equal(found.table["D_z_classes"], narrow["D_z"])
    np.testing.assert_array_equal(found.table["D_z_open"], wide["D_z"])
    rho = claim(found, "rank correlation of PSI")
    assert rho.value == pytest.approx(stats.spearmanr(wide["log_psi"], narrow["log_psi"]).statistic)
    less = claim(found, "D_z, open less class names")
    assert less.value == pytest.approx((wide["D_z"] - narrow["D_z"]).mean())
    assert less.low < less.value < less.high
    assert claim(found, "PSI, open less class names").value == pytest.approx((wide["psi"] - narrow["psi"]).mean())


def test_clusters_of_a_class_without_a_concept_are_left_out(tmp_path):
    names = ("colour of nothing", *colours.NAMES[1:])  # no concept is called so
    own = colours.study(tmp_path, TWO, colours.image_set(class_names=names), encoder=colours.ColourEncoder(WORDS))
    found = breadth(own)
    assert found.table["of_a_known_class"].sum() == 56 - 7
    (one,) = [one for one in found.claims if one.name == "classes found among the concepts"]
    assert (one.value, one.count) == (7, 8)
    assert "7 of 8 classes are among the 11 concepts" in found.text
    assert claim(found, "clusters named outside the classes, open vocabulary").value == pytest.approx(14 / 56)


def test_classes_are_matched_by_name_synonym_and_key():
    concepts = ["Goldfish", "tailed frog, bell toad", "n02124075 Egyptian cat", "bell-pepper", "toad", "n07749582"]
    names = ["goldfish, Carassius auratus", "tailed frog", "whatever", "bell_pepper", "bell toad", "lemon", "crane"]
    keys = ["n01443537", "b", "n02124075", "d", "e", "n07749582", "n02012849"]
    assert class_concepts(names, keys, concepts) == [[0], [1], [2], [3], [1], [5], []]
    # the whole name before its synonyms: "crane" alone is not taken for each that has a crane among its synonyms
    assert class_concepts(["crane"], ["x"], ["crane, lifting device", "crane"]) == [[1]]
    assert class_concepts(["Cat, true cat"], ["x"], ["true cat", "CAT"]) == [[0, 1]]
    assert class_concepts(["jack-o'-lantern"], ["x"], ["jack o lantern", "jack-o-lantern"]) == [[0, 1]]
    assert class_concepts(["", ","], ["", ""], ["", "!"]) == [[], []]
    assert class_concepts(["class 3", "first class"], ["3", "x"], ["class 3", "3", "first class"]) == [[], [2]]


def test_a_text_head_goes_with_its_concepts():
    bank = Bank(("a", "b", "c"), torch.eye(3), 2 * torch.eye(3))
    found = class_bank(bank, [[2], [0]], ["c", "a"])
    assert found.names == ("a", "c")
    torch.testing.assert_close(found.embeddings, torch.eye(3)[[0, 2]])
    torch.testing.assert_close(found.head, 2 * torch.eye(3)[[0, 2]])


def test_bad_input_ends_in_one_line(tmp_path):
    images = colours.image_set(class_names=[f"n{number:08}" for number in range(8)])
    with pytest.raises(
        InputError, match=r"at least two classes among the concepts, found 0: classes such as 'n00000000'"
    ):
        breadth(colours.study(tmp_path, TWO, images))
    one = colours.image_set(class_names=["red", *(f"n{number:08}" for number in range(7))])
    with pytest.raises(InputError, match="found 1"):
        breadth(colours.study(tmp_path, TWO, one))
    with pytest.raises(InputError, match="all 8 concepts are classes of the images"):
        breadth(colours.study(tmp_path, TWO))


def test_the_figure_has_a_row_a_layer(tmp_path):
    own = study(tmp_path, layer=["2", "0"], encoder=colours_of_textures())
    axes = breadth(own).figure.axes
    assert len(axes) == 6
    assert axes[3].get_title("left").startswith("0: z of D")
    assert len(axes[3].lines[0].get_xdata()) == len(own.channels("0"))


def colours_of_textures():
    """The tiny encoder with two of the pictures' classes among its concepts."""
    import tiny

    return tiny.TinyEncoder(names=("stripes", "noise", "blue", "dark", "light"))

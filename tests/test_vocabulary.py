"""Concept lists: the two that ship and text files."""

from collections import Counter

import pytest

from psi_fast.errors import InputError, ModelError
from psi_fast.vocabulary import TEMPLATES, Vocabulary, imagenet_names, load_vocabulary


def test_open_1602_holds_1602_distinct_lower_case_concepts_of_ten_kinds():
    vocabulary = load_vocabulary("open-1602")
    assert len(vocabulary.concepts) == 1602
    assert len({concept.casefold() for concept in vocabulary.concepts}) == 1602
    assert all(concept == concept.lower().strip() for concept in vocabulary.concepts)
    counts = Counter(vocabulary.kinds)
    assert set(counts) == {
        *("objects", "animals", "scenes", "parts", "materials"),
        *("textures", "colours", "shapes", "patterns", "actions"),
    }
    assert min(counts.values()) >= 50


def test_open_1602_has_no_singular_beside_its_plural():
    concepts = set(load_vocabulary("open-1602").concepts)
    assert [c for c in concepts if c + "s" in concepts or c + "es" in concepts] == []


def test_imagenet_names_are_1000_and_distinct():
    pytest.importorskip("torchvision")
    names = imagenet_names()
    assert len(names) == 1000
    assert len({name.casefold() for name in names}) == 1000
    assert names[0] == "tench"
    assert names[999] == "toilet tissue"
    assert (names[134], names[517]) == ("crane bird", "construction crane")
    assert "corgi" in names[264]
    assert "cardigan" in names[474]
    vocabulary = load_vocabulary("imagenet")
    assert vocabulary.concepts == tuple(names)
    assert vocabulary.kinds is None


def test_overrides_replace_the_class_they_mean():
    weights = pytest.importorskip("torchvision.models").ResNet50_Weights.IMAGENET1K_V2
    published = weights.meta["categories"]
    expected = {134: "crane", 264: "Cardigan", 474: "cardigan", 517: "crane", 836: "sunglass", 837: "sunglasses"}
    for index, start in {**expected, 638: "maillot", 639: "maillot"}.items():
        assert published[index].startswith(start)
    changed = [i for i, (a, b) in enumerate(zip(published, imagenet_names(), strict=True)) if a != b]
    assert set(changed) <= {*expected, 638, 639}


def test_templates_take_one_concept_each():
    assert 7 <= len(TEMPLATES) <= 18
    assert len(set(TEMPLATES)) == len(TEMPLATES)
    assert all(template.count("{}") == 1 and "dog" in template.format("dog") for template in TEMPLATES)


def test_text_file_skips_comments_and_blank_lines(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeff# mine\n\n  red   apple \nÜber\n".encode())
    assert load_vocabulary(str(path)).concepts == ("red apple", "Über")
    assert load_vocabulary(str(path)).kinds is None


def test_text_file_with_kinds(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("[fruit]\napple\npear\n[colours]\nred\n")
    assert load_vocabulary(str(path)) == Vocabulary(str(path), ("apple", "pear", "red"), ("fruit", "fruit", "colours"))


def test_fingerprint_follows_concepts_and_order_not_the_name():
    assert Vocabulary("a", ("x", "y")).fingerprint == Vocabulary("b", ("x", "y")).fingerprint
    assert Vocabulary("a", ("x", "y")).fingerprint != Vocabulary("a", ("y", "x")).fingerprint
    assert Vocabulary("a", ("x", "y")).fingerprint != Vocabulary("a", ("xy",)).fingerprint


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no concepts"),
        (b"# only a comment\n", "holds no concepts"),
        (b"caf\xe9\n", "is not UTF-8 (byte 3)"),
        (b"apple\n\npear\nApple\n", "'Apple' twice, on lines 1 and 4"),
        (b"apple\n[fruit]\npear\n", "'apple' stands before the first [kind]"),
    ],
    ids=["empty", "comments", "latin-1", "duplicate", "kind-late"],
)
def test_bad_text_file_is_one_clear_line(tmp_path, content, says):
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_vocabulary(str(path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_vocabulary_names_the_nearest():
    with pytest.raises(ModelError) as caught:
        load_vocabulary("open-1603")
    assert "nearest: 'open-1602'" in str(caught.value)
    assert "\n" not in str(caught.value)

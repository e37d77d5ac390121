"""Concepts embedded once: the cache folder's banks have the bits of the tower, and no broken or foreign one is used."""

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from image_helpers import message
from safetensors import safe_open
from safetensors.torch import save_file
from test_score import assert_same_bits

from psi_fast.encoders.classifier import ClassifierEncoder
from psi_fast.errors import NotFiniteError
from psi_fast.progress import Progress
from psi_fast.text_banks import FOLDER, _checksum, concept_bank, head_bank
from psi_fast.vocabulary import Vocabulary

CPU = torch.device("cpu")
WORDS = Vocabulary("mine", ("red", "green", "blue"))


class Tower(tiny.TinyEncoder):
    """The tiny encoder with a text tower, which counts its runs."""

    precision = "float32"
    templates = ("a photo of a {}.", "{}")

    def __init__(self):
        super().__init__()
        self.runs = 0

    def prompts(self, vocabulary):
        return list(vocabulary.concepts if vocabulary else self._names), list(self.templates)

    def concepts(self, vocabulary, progress=None):
        self.runs += 1
        return super().concepts(vocabulary, progress)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("PSI_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def bank(tower, words=WORDS, mark="weights", device=CPU):
    return concept_bank(tower, words, mark, device, Progress(False))


def only_file(cache):
    (path,) = (cache / FOLDER).iterdir()
    return path


def test_a_second_run_reads_the_bits_of_the_first(cache):
    tower, later = Tower(), Tower()
    names, rows, warnings = bank(tower)
    assert (names, warnings, tower.runs) == (list(WORDS.concepts), [], 1)
    assert torch.equal(rows, tiny.TinyEncoder().concepts(WORDS)[1])
    found = bank(later)
    assert (found[0], found[2], later.runs) == (names, [], 0)
    assert torch.equal(found[1].view(torch.int32), rows.view(torch.int32))
    assert only_file(cache).suffix == ".safetensors"


@pytest.mark.parametrize(
    "changes",
    [
        {"mark": "other weights"},
        {"words": Vocabulary("mine", ("red", "blue", "green"))},
        {"words": Vocabulary("mine", ("red", "green"))},
        {"precision": "bfloat16"},
        {"templates": ("a photo of a {}.",)},
        {"versions": {"torch": "0.1"}},
        {"device_info": {"type": "cuda", "name": "other"}},
        {"FORMAT": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_decides_the_vectors_decides_the_file(changes, monkeypatch):
    bank(Tower())
    tower = Tower()
    for name in ("precision", "templates"):
        setattr(tower, name, changes.get(name, getattr(tower, name)))
    for name in ("versions", "device_info"):
        if name in changes:
            monkeypatch.setattr(f"psi_fast.text_banks.{name}", lambda *_, made=changes[name]: made)
    if "FORMAT" in changes:
        monkeypatch.setattr("psi_fast.text_banks.FORMAT", 2)
    bank(tower, **{name: value for name, value in changes.items() if name in ("mark", "words")})
    assert tower.runs == 1


def test_the_name_of_the_vocabulary_does_not(cache):
    bank(Tower())
    tower = Tower()
    bank(tower, replace(WORDS, name="other"))
    assert tower.runs == 0


def one_bit(path):
    held = bytearray(path.read_bytes())
    held[-1] ^= 1
    path.write_bytes(held)


def rewritten(path, change, checksum=None):
    """Other rows or another account, with a checksum that fits where one is asked for."""
    with safe_open(path, "pt") as file:
        metadata, rows = file.metadata(), file.get_tensor("text").clone()
    rows = change(rows, metadata).contiguous()
    if checksum:
        metadata["sha256"] = checksum(rows)
    save_file({"text": rows}, path, metadata)


def other_names(rows, metadata):
    about = json.loads(metadata["about"])
    metadata["about"] = json.dumps(about | {"concepts": ["red", "green", "grey"]}, sort_keys=True)
    return rows


SPOILT = {
    "one bit": one_bit,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "no bank": lambda path: path.write_text("something else"),
    "fewer rows": lambda path: rewritten(path, lambda rows, _: rows[:2], _checksum),
    "other shape": lambda path: rewritten(path, lambda rows, _: rows.reshape(3, 5, 2).transpose(1, 2).reshape(3, 10)),
    "doubles": lambda path: rewritten(path, lambda rows, _: rows.double(), _checksum),
    "no account": lambda path: rewritten(path, lambda rows, metadata: (metadata.clear(), rows)[1]),
    "other names": lambda path: rewritten(path, other_names),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_broken_file_is_made_anew(cache, spoil):
    rows = bank(Tower())[1]
    spoil(only_file(cache))
    tower = Tower()
    found = bank(tower)
    assert tower.runs == 1
    assert torch.equal(found[1], rows)
    if only_file(cache).is_file():
        assert found[2] == []
        bank(tower)
        assert tower.runs == 1  # and whole again
    else:
        assert "cannot be kept" in found[2][0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_without_the_right_to_write_is_a_warning(cache):
    cache.mkdir()
    cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "Permission denied" in bank(Tower())[2][0]


def test_a_cache_that_cannot_be_written_is_a_warning_in_the_manifest(cache, tmp_path):
    cache.mkdir()
    (cache / FOLDER).write_text("in the way")
    tower = Tower()
    rows, warnings = bank(tower)[1:]
    assert torch.equal(rows, tiny.TinyEncoder().concepts(WORDS)[1])
    scores = tiny.score(encoder=tower, channels=slice(0, 2))
    (said,) = (warning for warning in scores.manifest["warnings"] if "cannot be kept" in warning)
    assert said == warnings[0]
    assert str(cache / FOLDER) in said
    assert "PSI_FAST_CACHE" in said
    assert "\n" not in said


def test_scores_are_the_same_from_the_cache_and_from_the_tower():
    plain = tiny.score()
    towers = Tower(), Tower()
    made, read = (tiny.score(encoder=tower) for tower in towers)
    assert [tower.runs for tower in towers] == [1, 0]
    assert_same_bits(made.table, plain.table)
    assert_same_bits(read.table, plain.table)


def test_an_encoder_without_a_text_tower_is_not_kept(cache):
    names, _, warnings = bank(ClassifierEncoder(tiny.classifier()), words=None)
    assert (len(names), warnings) == (7, [])
    assert not cache.exists()


def test_a_text_head_is_kept_as_a_tower_is():
    class Head:
        name = "head"
        precision = "float32"
        runs = 0

        def embed(self, concepts, progress=None):
            self.runs += 1
            return torch.arange(1, 2.0 * len(concepts) + 1).reshape(-1, 2)

    head = Head()
    first, again = (head_bank(head, ["a", "b"], "weights", CPU, Progress(False)) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert head.runs == 1
    head_bank(head, ["b", "a"], "weights", CPU, Progress(False))
    assert head.runs == 2


def test_the_banks_of_open_clip_are_kept(tmp_path, cache):
    from test_open_clip import CLIP, write

    from psi_fast.encoders import load_encoder

    write(tmp_path / "clip", CLIP)
    encoder = load_encoder(f"open_clip:local-dir:{tmp_path / 'clip'}")
    runs, tower = [], encoder._model.encode_text
    encoder._model.encode_text = lambda tokens: (runs.append(len(tokens)), tower(tokens))[1]
    first, again = (bank(encoder, mark=encoder.fingerprint()) for _ in range(2))
    assert runs == [64]
    assert torch.equal(first[1], again[1])
    assert torch.equal(first[1], encoder.concepts(WORDS)[1])
    assert Path(only_file(cache)).stat().st_size < 10_000


class Spoiling(Tower):
    """A tower whose third concept has no direction in some precisions."""

    precision = "float16"

    def __init__(self, value, bad=("float16",)):
        super().__init__()
        self.value, self.bad = value, bad

    def concepts(self, vocabulary, progress=None):
        names, rows = super().concepts(vocabulary, progress)
        if self.precision in self.bad:
            rows[2] = self.value
        return names, rows

    def at_precision(self, dtype):
        self.precision = str(dtype).removeprefix("torch.")
        return self


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0])
def test_a_concept_that_overflows_in_half_precision_is_embedded_in_float32(cache, value):
    tower = Spoiling(value)
    _, rows, (said,) = bank(tower)
    assert said.startswith("the encoder runs in float32, because in float16: concepts: tiny-encoder")
    assert "'blue'" in said
    assert (tower.precision, tower.runs) == ("float32", 2)
    assert torch.equal(rows, tiny.TinyEncoder().concepts(WORDS)[1])
    only_file(cache)  # of float32 alone
    again = Spoiling(value)
    assert torch.equal(bank(again)[1], rows)
    assert again.runs == 1  # in half precision
    assert "float32" in bank(Spoiling(value))[2][0]


def test_a_run_says_so():
    scores = tiny.score(encoder=Spoiling(0.0), vocabulary="open-1602", channels=slice(0, 2))
    assert any("runs in float32" in warning for warning in scores.manifest["warnings"])
    assert scores.manifest["encoder_precision"] == "float32"


@pytest.mark.parametrize("value", [torch.nan, 0.0])
def test_a_concept_without_a_direction_is_an_error_and_never_kept(cache, value):
    text = message(bank, Spoiling(value, ("float16", "float32")), error=NotFiniteError)
    assert "'blue'" in text
    assert "tiny-encoder" in text
    assert not list(cache.rglob("*.*"))


@pytest.mark.parametrize("value", [torch.nan, 0.0])
def test_a_broken_bank_that_was_kept_is_made_anew(cache, value):
    rows = bank(Tower())[1]

    def spoil(held, _metadata):
        held[1] = value
        return held

    rewritten(only_file(cache), spoil, _checksum)
    assert torch.equal(bank(Tower())[1], rows)


@pytest.mark.parametrize("value", [torch.nan, 0.0])
def test_a_classifier_whose_class_has_no_direction_is_an_error(value):
    network = tiny.classifier()
    with torch.no_grad():
        network.module[-1].weight[3] = value
    assert "'class 3'" in message(bank, ClassifierEncoder(network), None, error=NotFiniteError)


def test_a_text_head_that_returns_nan_is_an_error(cache):
    class Head:
        name, precision = "sentence-head", "float32"

        def embed(self, concepts, progress=None):
            return torch.full((len(concepts), 2), torch.nan)

    text = message(head_bank, Head(), ["a", "b"], "weights", CPU, Progress(False), error=NotFiniteError)
    assert "sentence-head" in text
    assert "'a'" in text
    assert not cache.exists()

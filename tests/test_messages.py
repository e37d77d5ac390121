"""What the command says of common slips: one line with what was expected, what came and what to do."""

import sys

import pytest
import tiny
import torch
from image_helpers import message
from tiny import SETTINGS, one_line, run, score_flags

import psi_fast
from psi_fast.config import PSIConfig
from psi_fast.errors import ConfigError, ModelError
from psi_fast.flags import in_one_line
from psi_fast.images import open_images
from psi_fast.networks import load_network


@pytest.fixture
def told(pictures, tmp_path, capsys):
    """The one line that `psi-fast score` ends in on tiny things, with flags changed (None: left out) or added."""

    def call(*more, **changes):
        assert run(*score_flags(pictures, tmp_path / "run", **changes), *more) == 2
        assert not (tmp_path / "run").exists()
        return one_line(capsys)

    return call


def test_no_layer(told):
    text = told(layer=None, network="tiny:none_such")  # told before a network is loaded
    assert text == (
        "psi-fast: error: no layer is named: give one or more with --layer, as `psi-fast layers --network ...` lists them"
    )


def test_images_that_are_not_there(told):
    text = told(images="/nope")
    assert "no folder or zip at '/nope'" in text
    assert "check the path" in text


def test_an_encoder_of_no_family(told):
    text = told(encoder="clip:foo")
    assert "'clip:foo'" in text
    assert "open_clip:ARCH/TAG" in text


def test_a_network_without_its_family_is_told_where_it_is():
    text = message(load_network, "squeezenet1_1@none", error=ModelError)
    assert (
        text
        == "network 'squeezenet1_1@none' is not understood without a family; expected torchvision:squeezenet1_1@none"
    )


def test_a_network_that_two_families_have():
    pytest.importorskip("timm")
    assert message(load_network, "resnet50", error=ModelError).endswith(
        "expected torchvision:resnet50 or timm:resnet50"
    )
    assert message(load_network, "vit_base_patch16_224.mae", error=ModelError).endswith(
        "expected timm:vit_base_patch16_224.mae"
    )


CODE = {  # a module of a user's own -> what is said of it behind its name
    "def build():\n    raise RuntimeError('no\\nweights')": "raised RuntimeError (no weights) at {path}, line 2; mend it there",
    "def build():\n    return len(3)": "raised TypeError (object of type 'int' has no len()) at {path}, line 2; mend it there",
    "import nothing_there_xyz": "raised ModuleNotFoundError (No module named 'nothing_there_xyz') at {path}, line 1; mend it",
    "one = 1 / 0": "raised ZeroDivisionError (division by zero) at {path}, line 1; mend it there",
    "def build(:": "raised SyntaxError (invalid syntax (odd_code_{number}.py, line 1)); mend it there",
    "def build(depth):\n    pass": "must be a function without arguments",
}


@pytest.mark.parametrize("number", range(len(CODE)))
def test_code_of_a_users_own_that_raises_is_told_with_its_place(tmp_path, monkeypatch, number):
    path = tmp_path / f"odd_code_{number}.py"
    code, said = list(CODE.items())[number]
    path.write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    text = message(load_network, f"odd_code_{number}:build", error=ModelError)
    assert f"odd_code_{number}" in text
    assert said.format(path=path, number=number) in text


def test_unknown_weights_of_a_clip_name_the_closest_alone():
    pytest.importorskip("open_clip")
    from psi_fast.encoders import load_encoder

    text = message(load_encoder, "open_clip:ViT-B-32/laion2b_s34b", error=ModelError)
    assert "nearest: 'laion2b_s34b_b79k'" in text
    assert "commonpool" not in text
    assert "commonpool" in message(
        load_encoder, "open_clip:ViT-B-32/zzz", error=ModelError
    )  # where none is close, all are listed


def test_a_loader_is_no_dataset():
    loader = torch.utils.data.DataLoader(tiny.Pictures(8), batch_size=4)
    text = message(open_images, loader)
    assert "got a DataLoader" in text
    assert "pass its .dataset" in text


LINES = {
    'top_k = "many"': "top_k must be a whole number, got 'many'",
    "topk = 3": "unknown setting 'topk'; nearest: 'top_k'",
    "draws = 1": "draws must be at least 2, got 1",
    'device = "tpu"': "device must be one of auto, cpu, cuda, got 'tpu'",
    "device = 3": "device must be one of auto, cpu, cuda, got 3",
    'skip_unreadable = "yes"': "skip_unreadable must be true or false, got 'yes'",
    "progress = 3": "progress must be true or false, got 3",
    'max_images = "x"': "max_images must be a whole number, got 'x'",
    "max_images = true": "max_images must be a whole number, got True",
    "bank_side = 1.5": "bank_side must be a whole number, got 1.5",
    "out = 3": "out must be text, got 3",
    "layer = [true]": "layer must be the name of a layer or a list of names, got [True]",
}


@pytest.mark.parametrize("line", LINES)
def test_a_wrong_line_of_a_settings_file_names_file_and_key(told, tmp_path, line):
    path = tmp_path / "job.toml"
    path.write_text(line)
    assert f"in {path}: {LINES[line]}" in told("--config", path)


def test_settings_read_in_python_name_their_file(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text("band = 3")
    assert message(PSIConfig.from_toml, path, error=ConfigError).startswith(f"in {path}: band must be")


def test_numbers_name_layers_and_channels_in_a_settings_file(tmp_path, pictures):
    path = tmp_path / "job.toml"
    path.write_text("layer = [2]\nchannels = 3\n")
    given = {"--images": pictures, "--out": tmp_path / "run", **SETTINGS}
    parts = [part for flag, value in given.items() for part in (flag, value)]
    assert (
        run("score", "--config", path, "--network", "tiny:network", "--encoder", "classifier:tiny:classifier", *parts)
        == 0
    )
    assert psi_fast.load(tmp_path / "run").table[["layer", "channel"]].to_numpy().tolist() == [["2", 3]]


JOB = ("--network", "x", "--layer", "y", "--images", "z", "--encoder", "e", "--out", "o")
ALL = "score, merge, jobs, plan, experiment, layers, show, report, figure, demo, env"
FLAGS = {  # arguments -> the line
    ("score", *JOB, "--top-k", "many"): "expected --top-k INT, got 'many'; see `psi-fast score --help`",
    ("score", *JOB, "--top-k", "1.5"): "expected --top-k INT, got '1.5'; see `psi-fast score --help`",
    ("score", *JOB, "--max-images", "x"): "expected --max-images INT, got 'x'; see `psi-fast score --help`",
    ("score", *JOB, "--band", "a", "b"): "expected --band FLOAT FLOAT, got 'a', 'b'; see `psi-fast score --help`",
    (
        "score",
        *JOB,
        "--patch",
        "foo",
    ): "expected --patch {effective,theoretical,cell,image}|FLOAT, got 'foo'; see `psi-fast",
    (
        "score",
        *JOB,
        "--device",
        "gpu",
    ): "--device must be one of auto, cpu, cuda, got 'gpu'; nearest: 'cpu'; see `psi-fast",
    ("score", *JOB, "--text-nll", "rotated"): "unknown --text-nll; nearest: --text-null; see `psi-fast score --help`",
    ("score", *JOB, "more"): "unknown more; see `psi-fast score --help`",
    ("score", *JOB, "--seed"): "--seed needs a value, got fewer; see `psi-fast score --help`",
    ("score", "--config"): "--config needs a value, got fewer; see `psi-fast score --help`",
    ("score",): "psi-fast score needs --network, --images, --encoder, --out; see `psi-fast score --help`",
    (
        "layers",
        "--netwrk",
        "x",
    ): "psi-fast layers needs --network; unknown --netwrk; nearest: '--network'; see `psi-fast",
    ("show",): "psi-fast show needs PATH; see `psi-fast show --help`",
    ("show", "x", "--count", "few"): "expected --count INT, got 'few'; see `psi-fast show --help`",
    (
        "shw",
        "x",
    ): f"expected one of {ALL}, got 'shw'; nearest: 'show'; see `psi-fast --help`",
    (): f"expected one of {{{ALL}}}; see `psi-fast --help`",
    (
        "experiment",
        "ablation",
        *JOB,
        "--draws",
        "x",
    ): "expected --draws INT, got 'x'; see `psi-fast experiment ablation --help`",
}


@pytest.mark.parametrize("arguments", FLAGS, ids=lambda arguments: " ".join(arguments[-2:]))
@pytest.mark.parametrize("columns", [80, 45])
def test_wrong_flags_end_in_one_line(capsys, monkeypatch, arguments, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(*arguments) == 2
    assert one_line(capsys).startswith(f"psi-fast: error: {FLAGS[arguments]}")


def test_an_unknown_experiment_is_told_with_those_there_are(capsys):
    assert run("experiment", "seperation", *JOB) == 2
    text = one_line(capsys)
    assert "expected one of separation, ablation, " in text
    assert "got 'seperation'; nearest: 'separation'" in text


def test_a_box_of_another_kind_is_told_as_it_is():
    rows = (
        "╭─ Odd ───────────╮",
        "│ \x1b[1mSomething\x1b[0m is │",
        "│ odd here.      │",
        "│ ────────────── │",
        "│ Run x --help │",
        "╰────────────────╯",
    )
    box = "\n".join(rows)
    assert in_one_line(box) == "something is odd here"


def test_how_the_command_itself_ends_is_no_matter_of_its_flags(monkeypatch, capsys):
    def ended(*_, **__):
        sys.stderr.write("of my own\n")
        raise SystemExit(3)

    monkeypatch.setattr(psi_fast, "load", ended)
    assert run("show", "x") == 3
    assert capsys.readouterr().err == "of my own\n"


def test_the_help_of_experiments_is_not_indented(capsys):
    assert run("experiment", "--help") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "A table, a figure" in line]
    assert line.startswith("A table")

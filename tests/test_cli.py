"""`psi-fast score`: every bad input ends in one line and exit code 2, with nothing written."""

import dataclasses
import json
import re
import urllib.error
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import tiny
import torch
from tiny import one_line, run, score_flags

import psi_fast
from psi_fast.config import PSIConfig


@pytest.fixture
def score(pictures, tmp_path):
    """Runs `psi-fast score` on tiny things into tmp_path / "run", with flags changed (None: left out) or added."""

    def call(*more, **changes):
        return run(*score_flags(pictures, tmp_path / "run", **{"channels": "0:3"} | changes), *more)

    return call


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def config(folder):
    return manifest(folder)["config"]


def test_a_run_is_written_and_shown(score, tmp_path, capsys):
    assert score() == 0
    out, err = capsys.readouterr()
    told = re.findall(r"^ *\d+\.\d s  (.*)\n", err, re.MULTILINE)  # no bars where stderr is no terminal
    assert told[:2] == ["open images", "load encoder"]
    assert told[-3:] == ["embedding", "clusters", "nulls"]
    assert err.count("\n") == len(told) == len(set(told))
    squeezed = " ".join(out.split())
    assert "most polysemantic channels" in squeezed
    assert "3 channels: " in squeezed
    for word in ("significant", "dead", "degenerate", "mining", "total", "images at", "distinct crops"):
        assert word in squeezed
    assert str(tmp_path / "run") in "".join(out.split())
    scores = psi_fast.load(tmp_path / "run")
    assert scores.table["channel"].tolist() == [0, 1, 2]
    assert scores.manifest["warnings"] == ["9 draws give p >= 0.100, so no channel can be significant; use at least 20"]
    assert score() == 0  # the same run is shown again
    assert capsys.readouterr().out == out


def test_a_run_that_is_read_says_since_when_it_is_there_and_how_to_make_it_anew(score, tmp_path, capsys):
    def told():
        return [line for line in capsys.readouterr().err.splitlines() if not re.match(r" *\d+\.\d s  ", line)]

    assert score() == 0
    assert told() == []
    folder, made = tmp_path / "run", manifest(tmp_path / "run")["made"]
    assert abs(datetime.now().astimezone() - datetime.fromisoformat(made)) < timedelta(minutes=5)
    assert score() == 0
    (line,) = told()
    assert line.startswith(f"{folder} holds this very run, made {made}; it is read, not computed again: ")
    (named,) = re.findall("remove (.*) to make it anew", line)
    assert score("--no-progress") == 0
    assert capsys.readouterr().err == ""
    Path(named).unlink()
    assert score() == 0
    assert told() == []
    assert manifest(folder)["identity"]


def test_no_progress_is_silent(score, capsys):
    assert score("--no-progress") == 0
    assert capsys.readouterr().err == ""


BAD = {  # name -> (changed flags, parts of the message)
    "network family": ({"network": "torchvison:resnet18"}, ["'torchvison", "'torchvision'"]),
    "network": ({"network": "torchvision:resnet19@none"}, ["resnet19", "'resnet18'"]),
    "network of a package": ({"network": "efficientnet-lite:lite9"}, ["lite9", "nearest"]),
    "network function": ({"network": "tiny:netwrk"}, ["netwrk", "'network'"]),
    "network module": ({"network": "tinny:network"}, ["tinny"]),
    "network that is none": ({"network": "tiny:no_network"}, ["int"]),
    "network without family": ({"network": "resnet50"}, ["'resnet50'"]),
    "checkpoint": ({"network": "torchvision:resnet18@/no/such.pth"}, ["/no/such.pth"]),
    "layer": ({"network": "tiny:classifier", "layer": "66"}, ["'66'", "nearest", "'6'"]),
    "encoder family": ({"encoder": "openclip:ViT-B-32/x"}, ["'openclip:", "'open_clip'"]),
    "encoder network": ({"encoder": "classifier:efficientnet-lite:lite7"}, ["lite7", "nearest"]),
    "encoder without a linear layer": ({"encoder": "classifier:tiny:network"}, ["nn.Linear"]),
    "layer that changes its shape": ({"network": "tiny_changing:by_content", "layer": "4"}, ["'4'", "keeps its shape"]),
    "layer that depends on the batch": (
        {"network": "tiny_changing:by_batch", "layer": "4"},
        ["'4'", "keeps its shape"],
    ),
    "layer without a name": ({"layer": ""}, ["empty", "psi-fast layers"]),
    "images": ({"images": "/no/such/folder"}, ["/no/such/folder"]),
    "top_k": ({"top_k": "25"}, ["25", "24"]),
    "top_k too small": ({"top_k": "5"}, ["top_k", "5"]),
    "draws": ({"draws": "1"}, ["draws", "1"]),
    "seed": ({"seed": "-1"}, ["seed", "-1"]),
    "vocabulary": ({"vocabulary": "imagenett"}, ["imagenett", "'imagenet'"]),
    "vocabulary without text tower": ({"vocabulary": "open-1602"}, ["open-1602"]),
    "channels too far": ({"channels": "0:99999"}, ["99999", "6"]),
    "channels behind the last": ({"channels": "6:9"}, ["6"]),
    "channels in letters": ({"channels": "x:y"}, ["x:y"]),
    "channels of nothing": ({"channels": ""}, ["--channels"]),
    "channels upside down": ({"channels": "3:1"}, ["channels"]),
    "channels below zero": ({"channels": "-4:-1"}, ["-4"]),
    "max_images": ({"max_images": "0"}, ["max_images", "0"]),
    "patch": ({"patch": "1.5"}, ["patch", "1.5"]),
    "config file": ({"config": "/no/such.toml"}, ["/no/such.toml"]),
    "preset": ({"preset": "papr"}, ["papr", "'paper'"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(score, tmp_path, capsys, case):
    changes, parts = BAD[case]
    assert score(**changes) == 2
    text = one_line(capsys)
    for part in parts:
        assert part in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("band", [("0.9", "0.1"), ("0", "1.5"), ("0.5", "0.5"), ("-0.1", "0.4")])
def test_a_bad_band_is_one_line(score, tmp_path, capsys, band):
    assert score("--band", *band) == 2
    assert "band" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("score",),
        ("score", "--bogus", "3"),
        ("bogus",),
        ("show",),
        ("layers",),
        ("score", "--top-k", "many"),
        ("score", "--rotation", "round"),
        ("show", "x", "--count", "few"),
        ("score", "--config"),
    ],
)
def test_bad_flags_end_in_code_2(arguments, capsys):
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert err or out


@pytest.mark.parametrize("flag", [("--band", "a", "b"), ("--band", "0.5"), ("--device", "tpu"), ("--bogus", "1")])
def test_flags_of_the_wrong_kind_end_in_code_2_and_write_nothing(score, tmp_path, capsys, flag):
    assert score(*flag) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_cuda_without_a_gpu_is_one_line(score, tmp_path, capsys):
    assert score(device="cuda") == 2
    assert "no GPU" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_one_line(score, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert score(images=empty) == 2
    assert str(empty) in one_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("labelled", [True, False])
def test_an_undecodable_image_is_named_or_skipped_and_counted(score, tmp_path, capsys, labelled):
    root = tiny.write_pictures(tmp_path / "pictures", classes=labelled)
    broken = sorted(root.rglob("*.png"))[5]
    broken.write_bytes(broken.read_bytes()[:100])
    assert score(images=root) == 2
    text = one_line(capsys)
    assert broken.relative_to(root).as_posix() in text
    assert "skip" in text
    assert not (tmp_path / "run").exists()
    assert score("--skip-unreadable", images=root) == 0
    warning, few_draws, *no_labels = manifest(tmp_path / "run")["warnings"]
    assert len(no_labels) == (not labelled)
    assert all(text.startswith("PSI is made of S and D alone, as there are no labels") for text in no_labels)
    assert few_draws.startswith("9 draws give p >= 0.100")
    assert "skipped 1 unreadable image" in warning
    assert broken.name in warning
    assert manifest(tmp_path / "run")["images"] == 23
    assert "skipped 1 unreadable image" in " ".join(capsys.readouterr().out.split())


def test_too_few_images_left_by_skipping_is_one_line(score, tmp_path, capsys):
    root = tiny.write_pictures(tmp_path / "pictures", 12)
    next(root.rglob("*.png")).write_bytes(b"no image")
    assert score("--skip-unreadable", images=root) == 2
    assert "11 images" in one_line(capsys)


@pytest.mark.parametrize("patch", ["0.5", "effective", "theoretical", "image"])
def test_nan_from_the_network_is_one_line(score, tmp_path, capsys, patch):
    assert score(network="tiny:nan_network", patch=patch) == 2
    text = one_line(capsys)
    if patch in ("0.5", "image"):
        assert "channel 0" in text
        assert ".png" in text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_another_run_is_refused_and_untouched(score, tmp_path, capsys):
    assert score() == 0
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    assert score(seed="1") == 2
    assert str(tmp_path / "run") in one_line(capsys)
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "run").iterdir()} == before


def test_out_that_names_a_file_is_one_line(score, tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    assert score() == 2
    assert str(tmp_path / "run") in one_line(capsys)
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("top_k = = 3", "settings.toml"),
        ("topk = 12", "'top_k'"),
        ("top_k = 'many'", "top_k"),
        ("band = 3", "band"),
        ("draws = true", "draws"),
        ("[mining]\ntop_k = 12", "mining"),
        (b"\xff\xfe", "settings.toml"),
    ],
)
def test_a_bad_settings_file_is_one_line(score, tmp_path, capsys, text, part):
    path = tmp_path / "settings.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert score(config=path) == 2
    assert part in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_preset_and_settings_file_exclude_each_other(score, tmp_path, capsys):
    path = tmp_path / "settings.toml"
    path.write_text("draws = 9")
    assert score(config=path, preset="paper") == 2
    assert "--preset" in one_line(capsys)


def test_a_settings_file_gives_defaults_that_flags_override(score, tmp_path, capsys):
    path = tmp_path / "settings.toml"
    path.write_text('top_k = 14\ndraws = 11\ncenter = false\nband = [0, 0.75]\nrotation = "radial"\n')
    assert score(config=path, top_k=None) == 0
    found = config(tmp_path / "run")
    assert (found["top_k"], found["draws"], found["center"], found["rotation"]) == (14, 9, False, "radial")
    assert found["band"] == [0, 0.75]
    assert score("--center", config=path, top_k=None, out=tmp_path / "other") == 0
    assert config(tmp_path / "other")["center"] is True


def test_preset_paper(score, tmp_path):
    assert score(preset="paper") == 0
    found = config(tmp_path / "run")
    assert found["rotation"] == "independent"
    assert found["center"] is False
    assert found["top_k"] == 12


def test_flags_reach_the_settings(score, tmp_path):
    assert score("--exact", "--band", "0.1", "1.0", seed="7", distinctness="pairwise", text_pool="layer") == 0
    wanted = {"exact": True, "band": [0.1, 1.0], "seed": 7, "distinctness": "pairwise", "text_pool": "layer"}
    assert config(tmp_path / "run").items() >= wanted.items()


def test_max_images_takes_a_subset(score, tmp_path):
    assert score(max_images="16") == 0
    assert manifest(tmp_path / "run")["images"] == 16


def test_every_setting_is_a_flag_of_score(capsys):
    assert run("score", "--help") == 0
    flags = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    for field in dataclasses.fields(PSIConfig):
        name = field.name.replace("_", "-")
        assert {f"--{name}", f"--no-{name}"} & flags, field.name
    wanted = {"--network", "--layer", "--images", "--encoder", "--out", "--vocabulary", "--channels", "--max-images"}
    assert wanted | {"--skip-unreadable", "--device", "--no-progress", "--config", "--preset"} <= flags


def test_a_file_gives_the_whole_job_and_flags_override_it(tmp_path, pictures):
    file = tmp_path / "job.toml"
    lines = {
        "network": "tiny:network",
        "layer": ["2", "3"],
        "images": str(pictures),
        "encoder": "classifier:tiny:classifier",
    }
    lines |= {"out": str(tmp_path / "one"), "max_images": 20, "skip_unreadable": True, "progress": False}
    lines |= dataclasses.asdict(tiny.CONFIG)
    del lines["band"]  # None, which TOML has not
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()))
    assert run("score", "--config", file) == 0
    made = manifest(tmp_path / "one")
    assert (made["network"], made["layers"], made["images"]) == ("tiny", ["2", "3"], 20)
    assert made["config"]["draws"] == 9
    assert run("score", "--config", file, "--layer", "3", "--out", tmp_path / "other", "--draws", "7") == 0
    made = manifest(tmp_path / "other")
    assert (made["layers"], made["config"]["draws"]) == (["3"], 7)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('netwrok = "tiny:network"', "'netwrok'"),
        ("layer = [1.5]", "layer must be"),
        ("images = {}", "images must be"),
        ("network = [1]", "network must be"),
    ],
)
def test_a_job_file_with_a_wrong_line_ends_in_one_line(tmp_path, capsys, line, said):
    file = tmp_path / "job.toml"
    file.write_text(line)
    assert run("score", "--config", file) == 2
    assert said in one_line(capsys)


@pytest.mark.parametrize("network", ["torchvision:resnet18", "timm:resnet18.a1_in1k"])
@pytest.mark.parametrize("role", ["network", "encoder"])
def test_a_hub_out_of_reach_says_which_file_to_place_where(score, tmp_path, capsys, monkeypatch, network, role):
    if network.startswith("timm"):
        pytest.importorskip("timm")
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)

    def unreachable(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    assert score(**{role: f"classifier:{network}" if role == "encoder" else network}) == 2
    text = one_line(capsys)
    assert re.search(r"\.(pth|safetensors)\b", text)
    assert "/path/" in text
    assert "fetch" in text
    assert not (tmp_path / "run").exists()


def test_open_clip_weights_out_of_reach_name_the_file(score, tmp_path, capsys, monkeypatch):
    pytest.importorskip("open_clip")
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    assert score(encoder="open_clip:ViT-B-32/laion2b_s34b_b79k") == 2
    text = one_line(capsys)
    assert "open_clip" in text
    assert "fetch" in text
    assert not (tmp_path / "run").exists()


def test_a_network_name_that_looks_like_markup_is_printed_as_it_is(score, capsys):
    assert score(network="tiny:bracket_network") == 0
    assert "tiny[/b][red]" in capsys.readouterr().out

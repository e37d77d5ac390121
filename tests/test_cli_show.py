"""`psi-fast layers`, `show` and `env`, and the command in a process of its own."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace as Namespace

import pandas as pd
import pytest
import tiny
import torch
from tiny import SETTINGS, one_line, run

import psi_fast
from psi_fast.errors import StoreError
from psi_fast.experiments import outcome
from psi_fast.present import show_jobs, show_outcome
from psi_fast.progress import tell

TESTS = Path(__file__).parent
COMMAND = Path(sys.executable).with_name("psi-fast")


def command(*arguments, **options):
    """The command in a process of its own."""
    options = {"cwd": TESTS, "capture_output": True, "text": True, "timeout": 120} | options
    return subprocess.run([str(COMMAND), *map(str, arguments)], **options)


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """A finished run whose concepts and folder look like the markup of a terminal library."""
    folder = tmp_path_factory.mktemp("finished") / "a [b] run"
    code = run(
        "score", "--network", "tiny:network", "--layer", "2", "--images", pictures, "--encoder",
        "classifier:tiny:markup_classifier", "--out", folder, "--device", "cpu",
        *(part for pair in SETTINGS.items() for part in pair),
    )  # fmt: skip
    assert code == 0
    return folder


def test_layers_lists_names_shapes_and_channels(capsys):
    pytest.importorskip("efficientnet_lite_pytorch")
    assert run("layers", "--network", "efficientnet-lite:lite0") == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if " _conv_head " in line]
    assert "1280" in line.split()
    assert "1280 x 7 x 7" in line
    assert "Traceback" not in out


def test_layers_with_fields(capsys):
    assert run("layers", "--network", "tiny:attention_network", "--fields", "--device", "cpu") == 0
    out, err = capsys.readouterr()
    rows = {cells[0]: cells for line in out.splitlines() if (cells := line.split())}
    assert " ".join(rows["layer"][-4:]) == "theoretical px effective px"
    assert rows["0"][-6:-3] == ["8", "x", "8"]
    for layer in ("2.self_attn#heads", "2", "4"):
        assert "whole image" in " ".join(rows[layer]), layer
    assert rows["2.self_attn"][-5:] == ["a", "tuple", "1", "-", "-"]
    assert re.fullmatch(r" +0\.\d s  receptive fields\n", err)  # no bar where stderr is no terminal


def test_layers_says_why_a_field_is_the_whole_image(capsys):
    assert run("layers", "--network", "tiny:attention_network", "--fields", "--no-progress") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("theoretical px of ")]
    assert said == [
        "theoretical px of 2.self_attn#heads and 7 more: the field reaches the border of the 32 px input",
        "theoretical px of 3 and 1 more: it has no map of positions",
    ]


def test_show_says_why_a_patch_is_the_whole_image(tmp_path, capsys):
    folder = tmp_path / "run"
    tiny.score(tiny.attention_network(), ["0", "4"], config=replace(tiny.CONFIG, patch="cell"), out=folder)
    assert run("show", folder) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "patches of 8 px (cell) in 0, 32 px (cell: it has no map of positions) in 4 " in said


def test_layers_of_some_names_measures_no_others(capsys, monkeypatch):
    measured, plain = [], psi_fast.receptive_field.measure_field
    monkeypatch.setattr(
        "psi_fast.receptive_field.measure_field",
        lambda tap, *a, **k: (measured.append(tap.layer), plain(tap, *a, **k))[1],
    )
    wanted = ["--layer", "3", "--layer", "2.self_attn#heads"]
    assert run("layers", "--network", "tiny:attention_network", "--fields", "--no-progress", *wanted) == 0
    out, err = capsys.readouterr()
    names = [cells[0] for line in out.splitlines() if len(cells := line.split()) > 3 and line.startswith("  ")]
    assert names == ["layer", "2.self_attn#heads", "3"]
    assert set(measured) == {"2.self_attn#heads", "3"}
    assert err == ""
    assert run("layers", "--network", "tiny:attention_network", *wanted) == 0
    out = capsys.readouterr().out
    assert "theoretical" not in out
    assert "#heads" in out
    assert run("layers", "--network", "tiny:attention_network", "--layer", "2.linear3") == 2
    assert "nearest: '2.linear" in one_line(capsys)


def test_layers_names_neurons_residual_units_and_heads(capsys):
    assert run("layers", "--network", "tiny:attention_network") == 0
    lines = capsys.readouterr().out.splitlines()
    told = ["neurons of MLPs: 2.dropout", "units of the residual stream: 2", "attention heads: 2.self_attn#heads"]
    assert lines[-3:] == told
    assert run("layers", "--network", "tiny:attention_network", "--layer", "2") == 0
    assert "neurons" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("tiny:Net", "calls: relu runs several times .* before it, or the block around it"),
        (
            "torchvision:resnet18@none",
            "calls: layer1.0.relu and 7 more run several .* before them, or the block around them",
        ),
    ],
)
def test_layers_says_of_those_that_run_twice_what_to_take(capsys, network, said):
    assert run("layers", "--network", network) == 0
    assert re.search(f"{said}$", " ".join(capsys.readouterr().out.split()))


def test_layers_that_run_once_need_no_word(capsys):
    assert run("layers", "--network", "tiny:network") == 0
    assert "calls:" not in capsys.readouterr().out


def test_layers_of_an_unknown_network_is_one_line(capsys):
    assert run("layers", "--network", "efficientnet-lite:lite00") == 2
    assert "'lite0'" in one_line(capsys)


def test_show_prints_channels_counts_times_and_folder(finished, capsys):
    capsys.readouterr()
    assert run("show", finished) == 0
    out, err = capsys.readouterr()
    assert err == ""
    squeezed, dense = " ".join(out.split()), "".join(out.split())
    scores = psi_fast.load(finished)
    assert f"6 channels: {scores.significant()} significant" in squeezed
    assert f" {scores.flag_counts().get('unselective', 0)} unselective, " in squeezed
    assert "mining" in squeezed
    assert "total" in squeezed
    assert "".join(f"results: {finished}".split()) in dense
    order = [int(m) for m in re.findall(r"^\s+(\d+)\s+0?\.\d", out, re.MULTILINE)]
    assert order == scores.table.sort_values("log_psi", ascending=False)["channel"].tolist()
    assert run("show", finished, "--count", "2") == 0
    assert len(re.findall(r"^\s+(\d+)\s+0?\.\d", capsys.readouterr().out, re.MULTILINE)) == 2


def test_names_that_look_like_markup_are_printed_as_they_are(finished, capsys):
    capsys.readouterr()
    assert run("show", finished) == 0
    dense = "".join(capsys.readouterr().out.split())
    for name in set(psi_fast.load(finished).table["concepts"].explode()):
        assert "".join(f"{name} (".split()) in dense


HOSTILE = "\x1b[31mred\x1b]0;title\x07 \x9b2J \u202egone [bold]x"


def test_names_that_command_a_terminal_are_spelled_out(tmp_path, capsys, monkeypatch):
    """In the run folder of a stranger, who can write what they like."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    tiny.score(out=tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    held = json.loads(path.read_text())
    del held["checksums"]
    (layer,) = held["layers"]
    held |= {"network": HOSTILE, "warnings": [HOSTILE], "seconds": {HOSTILE: 1.0}}
    held["patch"][layer]["note"] = HOSTILE
    path.write_text(json.dumps(held))
    table = pd.read_parquet(tmp_path / "run" / "scores.parquet")
    table["concepts"] = [[HOSTILE] * len(own) for own in table["concepts"]]
    table.to_parquet(tmp_path / "run" / "scores.parquet")
    capsys.readouterr()
    assert run("show", tmp_path / "run") == 0
    assert harmless(capsys.readouterr().out, 4)


def test_texts_of_an_experiment_that_command_a_terminal_are_spelled_out(tmp_path, capsys):
    claim = outcome.Claim(HOSTILE, 0.5)
    manifest = {"warnings": [HOSTILE]}
    show_outcome(
        Namespace(text=f"# {HOSTILE}\n\n{HOSTILE}", claims=[claim], manifest=manifest, folder=tmp_path / HOSTILE)
    )
    assert harmless(capsys.readouterr().out, 5)


def test_lines_and_tables_that_command_a_terminal_are_spelled_out(capsys, monkeypatch):
    show_jobs(
        pd.DataFrame({"job": [HOSTILE], "state": ["failed"], "error": [HOSTILE], HOSTILE: [HOSTILE]}), Path(HOSTILE)
    )
    tell(HOSTILE)
    said = capsys.readouterr()
    assert harmless(said.out, 5)
    assert harmless(said.err, 1)
    assert "\x1b" not in str(StoreError(HOSTILE))


def harmless(text, times):
    """Whether what it shows of HOSTILE, so many times at least, gives no command; colours of our own do."""
    dense = re.sub(r"\x1b\[[\d;]*m", lambda own: "" if own[0] != "\x1b[31m" else own[0], text)
    assert re.sub(r"\s", "", dense).count(r"\x1b[31mred\x1b]0;title\x07") >= times
    return all(own.isprintable() or own == "\n" for own in dense)


@pytest.mark.parametrize("arguments", [("show", "/no/such/run"), ("show", str(TESTS))])
def test_show_of_no_run_is_one_line(capsys, arguments):
    assert run(*arguments) == 2
    assert arguments[1] in one_line(capsys)


def test_env_prints_versions(capsys):
    assert run("env") == 0
    out = capsys.readouterr().out
    assert re.search(rf"^torch {re.escape(torch.__version__.split('+')[0])}", out, re.MULTILINE)
    assert re.search(rf"^python {sys.version_info.major}\.{sys.version_info.minor}\.", out, re.MULTILINE)
    assert "cpu" in out


def test_env_lists_every_optional_package_that_a_user_installs(capsys, monkeypatch):
    found = importlib.metadata.version

    def version(package):
        if package == "webdataset":
            raise importlib.metadata.PackageNotFoundError(package)
        return "9.8.7" if package == "datasets" else found(package)

    monkeypatch.setattr("psi_fast.environment.metadata.version", version)
    assert run("env") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "datasets 9.8.7" in lines
    assert "webdataset not installed" in lines
    extras = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = [one for name, extra in extras.items() if name not in ("dev", "bench") for one in extra]
    names = [re.split("[=<>~;[ ]", one)[0] for one in needed if not one.startswith("psi-fast")]
    assert {"datasets", "braceexpand", "timm", "cuml-cu13"} <= set(names)
    assert set(names) <= {line.split()[0] for line in lines}


def test_the_installed_command_ends_with_code_2_and_one_line(tmp_path):
    if not COMMAND.exists():
        pytest.skip("the command is not installed beside this Python")
    result = command(
        "score", "--network", "tiny:netwrk", "--layer", "2", "--images", tmp_path, "--encoder", "x", "--out", tmp_path / "run",
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("psi-fast: error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["env", "show", "help"])
def test_a_reader_that_has_enough_causes_no_traceback(finished, what):
    arguments = {"env": ["env"], "show": ["show", str(finished)], "help": ["score", "--help"]}[what]
    process = subprocess.Popen(
        [sys.executable, "-c", f"from psi_fast.cli import main; main({arguments!r})"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TESTS,
    )  # fmt: skip
    process.stdout.close()  # as `head -0` does
    err = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=120)
    assert err == ""


def test_too_few_draws_are_told_beside_a_run(pictures, tmp_path, capsys):
    given = {**SETTINGS, "--draws": "21", "--images": pictures, "--out": tmp_path / "run", "--device": "cpu"}
    parts = [part for pair in given.items() for part in pair]
    job = ("--network", "tiny:network", "--layer", "2", "--encoder", "classifier:tiny:classifier")
    assert run("score", *job, *parts) == 0
    told = " ".join(capsys.readouterr().out.split())
    table = psi_fast.load(tmp_path / "run").table
    lowest = int((table["p"] == table["p"].min()).sum())
    assert table["p"].min() == 1 / 22
    assert (
        f"hint: no channel of 2 is significant with 21 draws: {lowest} of 6 have the smallest p there is, 1/22" in told
    )

"""Paths that the file system cannot look up: names too long, NUL characters and folders nobody may enter are one line."""

import os

import pytest
import tiny
from image_helpers import message

import psi_fast
from psi_fast import cli
from psi_fast.encoders import load_encoder
from psi_fast.encoders.text_head import load_text_head
from psi_fast.errors import ConfigError, PsiFastError
from psi_fast.experiments.study import Study
from psi_fast.images import open_images
from psi_fast.job import check_input
from psi_fast.networks import load_network
from psi_fast.paths import require_path
from psi_fast.planning.rates import require_rates
from psi_fast.vocabulary import load_vocabulary

NOBODY = 65534
JOB = {"network": "tiny:network", "layer": "2", "images": "x", "encoder": "classifier:tiny:classifier"}
CALLS = {
    "out": lambda path: tiny.score(out=path),
    "bank": lambda path: tiny.score(bank=path),
    "share": lambda path: tiny.score(share=path),
    "study": lambda path: Study(tiny.network(), "2", tiny.image_set(8), encoder=tiny.TinyEncoder(), out=path),
    "images": open_images,
    "parquet": lambda path: open_images(f"{path}/*.parquet"),
    "shards": lambda path: open_images(f"{path}/{{0..3}}.tar"),
    "vocabulary": load_vocabulary,
    "torchvision": lambda path: load_network(f"torchvision:resnet18@{path}.pth"),
    "timm": lambda path: load_network(f"timm:resnet18@{path}.pth"),
    "transformers": lambda path: load_network(f"transformers:{path}"),
    "open_clip's folder": lambda path: load_encoder(f"open_clip:local-dir:{path}"),
    "open_clip's file": lambda path: load_encoder(f"open_clip:ViT-B-32/{path}"),
    "text head": lambda path: load_text_head(f"sentence-transformers:{path}"),
    "settings": psi_fast.PSIConfig.from_toml,
    "run": psi_fast.load,
    "report": psi_fast.build_report,
    "report's out": lambda path: psi_fast.build_report("nothing", path),
    "jobs": lambda path: psi_fast.run_jobs([JOB], path),
    "rates": require_rates,
}
"""What a path is -> a call that looks at it."""


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"], ids=["long", "nul"])
@pytest.mark.parametrize("what", CALLS)
def test_what_cannot_be_looked_up_is_one_line(tmp_path, what, name):
    for package in {"timm": ["timm"], "parquet": ["datasets"], "text head": ["sentence_transformers"]}.get(what, []):
        pytest.importorskip(package)
    text = message(CALLS[what], str(tmp_path / name), error=PsiFastError)
    assert len(text.splitlines()) == 1
    assert "\0" not in text
    assert not list(tmp_path.iterdir())


@pytest.fixture
def locked(tmp_path):
    """A folder that this process may not enter."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o700)


@pytest.mark.parametrize("what", ["out", "share", "images", "run", "jobs", "rates", "torchvision"])
def test_a_folder_that_nobody_may_enter_is_one_line(locked, what):
    assert "ermission denied" in message(CALLS[what], str(locked / "a"), error=PsiFastError)


def test_what_is_not_there_may_be_looked_up(tmp_path):
    for path in (tmp_path, tmp_path / "a" / "b", tmp_path / "file" / "below"):
        (tmp_path / "file").touch()
        require_path("x", path)


LONG = "a" * 300


@pytest.mark.parametrize(
    "command",
    [
        ["show", LONG],
        ["merge", LONG],
        ["report", LONG],
        ["jobs", "run", LONG],
        ["figure", "seconds", LONG, "--out", "x.svg"],
    ],
)
def test_commands_on_a_name_too_long_end_in_one_line(capsys, command):
    assert tiny.run(*command) == 2
    assert "too long" in tiny.one_line(capsys)


def test_a_disk_that_fails_where_nobody_looked_is_one_line(capsys, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output\nerror", "/a\033[31m/b")

    monkeypatch.setattr(cli.psi_fast, "load", fail)
    assert tiny.run("show", "x") == 2
    assert tiny.one_line(capsys) == (
        "psi-fast: error: Input/output error: '/a\\x1b[31m/b'; check the path and its disk"
    )


@pytest.mark.parametrize("name", ["out", "bank", "share", "images", "network", "encoder", "vocabulary", "layer"])
def test_a_file_s_texts_hold_no_nul(name):
    assert "without NUL characters" in message(check_input, name, "/tmp/a\0b", error=ConfigError)


@pytest.mark.parametrize("path", ["a\\u0000b", LONG])
@pytest.mark.parametrize("command", ["run", "status"])
def test_a_batch_in_a_folder_that_cannot_be_is_one_line(tmp_path, capsys, command, path):
    said = "".join(f'{name} = "{own}"\n' for name, own in JOB.items())
    (tmp_path / "jobs.toml").write_text(f'out = "{path}"\n[[jobs]]\n{said}')
    assert tiny.run("jobs", command, tmp_path / "jobs.toml") == 2
    tiny.one_line(capsys)

"""A report's folder: whole or not there, never in place of anything else, and one line for what is wrong."""

import errno
import json
import os
import re
import resource
import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
import tiny
from image_helpers import message
from tiny import one_line, run, score_flags
from tiny_report import Read, scripts
from tiny_stored import move_pictures, two_layers, with_swaps

import psi_fast
from psi_fast import build_report
from psi_fast.errors import ConfigError, StoreError
from psi_fast.report import folder as module
from psi_fast.report import page


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_pictures(tmp_path_factory.mktemp("folder") / "pictures")


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A finished run, for reading only."""
    out = tmp_path_factory.mktemp("finished") / "run"
    options = {"encoder": "classifier:tiny:classifier", "config": tiny.CONFIG, "device": "cpu", "progress": False}
    psi_fast.score("tiny:network", ["2"], images, out=out, **options)
    return out


@pytest.fixture
def folder(finished, tmp_path):
    """A copy that a test may damage and write its report to."""
    return shutil.copytree(finished, tmp_path / "run")


def build(*folders, **options):
    return build_report(folders, **{"progress": False, "pictures": False} | options)


def snapshot(root):
    """Names and contents of everything below `root`."""
    return {path.relative_to(root): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def without(package, monkeypatch):
    found = module.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else found(name))


def full(*_args, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def largest_file(size):
    """Nothing may write a file of more bytes, as on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_report_is_one_folder_of_plain_files(folder):
    index = build(folder, pictures=True)
    assert index == folder / "report" / "index.html"
    held = snapshot(folder / "report")
    assert {path.suffix for path, content in held.items() if content is not None} == {
        ".html", ".js", ".css", ".json", ".txt", ".webp",
    }  # fmt: skip
    about = json.loads((folder / "report" / "report.json").read_text())
    assert about["runs"] == [json.loads((folder / "manifest.json").read_text())["identity"]]
    text = index.read_text(encoding="utf-8")
    for name in re.findall(r'(?:src|href)="((?:assets|data)/[^"]+)"', text):
        assert (folder / "report" / name).is_file(), name
    assert len(psi_fast.load(folder).table) == 6


def test_what_marks_a_report_comes_last(folder, monkeypatch):
    write_page = page.write_page

    def checked(own, *rest):
        write_page(own, *rest)
        assert sorted(path.name for path in own.iterdir()) == ["assets", "data", "index.html"]

    monkeypatch.setattr(page, "write_page", checked)
    assert (build(folder).parent / "report.json").exists()


def test_without_pictures_no_image_is_asked_for(folder):
    move_pictures(folder)
    report = Read(build(folder))
    assert report.index["layers"][0]["patches"] is report.index["runs"][0]["whole"] is None
    assert "tile" not in report.channels("2")[0]["patches"]
    assert "--images" in message(build, folder, pictures=True)


def test_two_builds_give_the_same_bytes(folder, tmp_path):
    first, second = (build(folder, out=tmp_path / name, pictures=True).parent for name in "ab")
    one, other = snapshot(first), snapshot(second)
    assert one.keys() == other.keys()
    dated = [path for path in one if path.name in ("index.html", "report.json")]
    assert [path for path in one if one[path] != other[path] and path not in dated] == []
    pages = [
        re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", b"", held[dated[0].with_name("index.html")]) for held in (one, other)
    ]
    assert pages[0] == pages[1]


def test_a_new_report_replaces_the_old_one(folder):
    report = build(folder).parent
    (report / "data" / "stale.js").write_text("old")
    before = sorted(path.name for path in folder.iterdir())
    assert build(folder).parent == report
    assert not (report / "data" / "stale.js").exists()
    assert sorted(path.name for path in folder.iterdir()) == before


def test_reports_of_several_runs_lie_beside_them(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "deep" / "other")
    assert build(folder, tmp_path / "deep" / "other") == tmp_path / "report" / "index.html"
    assert [own["name"] for own in Read(tmp_path / "report" / "index.html").index["runs"]] == ["run", "other"]


def test_relative_places_are_written_where_they_are(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    assert build(".").resolve() == folder / "report" / "index.html"
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    build(".", out="../link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "report.json").exists()


def _foreign(folder):
    (folder / "report").mkdir()
    (folder / "report" / "thesis.txt").write_text("mine")


def _foreign_json(folder):
    _foreign(folder)
    (folder / "report" / "report.json").write_text('{"coverage": 3}')


BAD = {  # what is done to the run folder, options, error, parts of the message
    "nothing there": (shutil.rmtree, {}, StoreError, ["no finished run", "psi-fast score"]),
    "unfinished": (lambda folder: (folder / "manifest.json").unlink(), {}, StoreError, ["no finished run"]),
    "older": (lambda folder: (folder / "distributions.safetensors").unlink(), {}, StoreError, ["older psi_fast"]),
    "a file is lost": (lambda folder: (folder / "patches.parquet").unlink(), {}, StoreError, ["patches.parquet"]),
    "foreign files": (_foreign, {}, StoreError, ["report", "no report of psi_fast", "--out"]),
    "foreign report.json": (_foreign_json, {}, StoreError, ["no report of psi_fast", "--out"]),
    "out is a file": (lambda folder: (folder / "report").write_text(""), {}, StoreError, ["is a file", "--out"]),
    "out is the run": (lambda folder: None, {"out": "."}, StoreError, ["holds the run", "--out"]),
    "out below a file": (lambda folder: None, {"out": "manifest.json/x"}, StoreError, ["Not a directory", "--out"]),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line_and_nothing_is_written(folder, case):
    damage, options, error, parts = BAD[case]
    damage(folder)
    before = snapshot(folder.parent)
    options = {name: folder / value for name, value in options.items()}
    said = message(build, folder, error=error, **options)
    for part in parts:
        assert part in said
    assert snapshot(folder.parent) == before


def test_a_report_that_holds_the_run_is_not_replaced(folder, tmp_path):
    report = build(folder, out=tmp_path / "all").parent
    inside = shutil.copytree(folder, report / "run")
    assert str(inside) in message(build, inside, out=report, error=StoreError)
    assert (inside / "manifest.json").exists()


def test_each_run_is_given_once(folder):
    assert "at least one run folder" in message(build)
    assert "once" in message(build, folder, folder / ".." / folder.name)


@pytest.mark.parametrize("package", ["jinja2", "markdown_it", "vl_convert"])
def test_a_missing_package_names_the_extra(folder, monkeypatch, package):
    without(package, monkeypatch)
    said = message(build, folder, error=ConfigError)
    assert package.replace("_", "-") in said
    assert 'pip install "psi-fast[report]"' in said
    assert not (folder / "report").exists()


def test_images_that_were_moved_are_given_by_the_user(images, tmp_path):
    here = shutil.copytree(images, tmp_path / "pictures")
    tiny.score(images=str(here), out=tmp_path / "run")
    there = here.rename(tmp_path / "elsewhere")
    said = message(build, tmp_path / "run", pictures=True)
    assert str(here) in said
    assert "--images" in said
    first = Read(build(tmp_path / "run", images=there, pictures=True))
    assert first.index["runs"][0]["whole"]
    (there / psi_fast.load(tmp_path / "run").patches["image"][0]).unlink()
    said = message(build, tmp_path / "run", images=there, pictures=True)
    assert "1 of the" in said
    assert first.index == Read(tmp_path / "run" / "report" / "index.html").index  # the first report stays


def test_images_of_a_dataset_are_given_again(tmp_path):
    tiny.score(images=tiny.Pictures(), out=tmp_path / "run")
    assert "--images" in message(build, tmp_path / "run", pictures=True)
    page = build(tmp_path / "run", images=tiny.Pictures(), pictures=True)
    assert Read(page).channels("2")[0]["patches"]["tile"]
    assert "come from a dataset" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("step", ["page.write_page", "folder.write_script", "folder.write_sheets", "folder._exchange"])
@pytest.mark.parametrize("how", [full, None])
def test_a_build_that_fails_leaves_everything_as_it_was(folder, monkeypatch, earlier, step, how):
    if earlier:
        build(folder)
    before = snapshot(folder)
    monkeypatch.setattr(f"psi_fast.report.{step}", how)  # None cannot be called: a TypeError
    if how:
        said = message(build, folder, pictures=True, error=StoreError)
        assert str(folder / "report") in said
        assert "No space left on device" in said
    else:
        with pytest.raises(TypeError):
            build(folder, pictures=True)
    assert snapshot(folder) == before


@pytest.mark.parametrize("size", [64, 50_000])
def test_a_full_disk_is_one_line_and_nothing_is_left(folder, tmp_path, size):
    build(folder, out=tmp_path / "other")  # what is kept in the cache is there
    before = snapshot(tmp_path)
    with largest_file(size):
        said = message(build, folder, out=tmp_path / "new" / "report", pictures=True, error=StoreError)
    assert "File too large" in said
    assert snapshot(tmp_path) == before


def test_what_a_killed_build_left_disturbs_nobody_and_goes(folder, images):
    def leave(name, age):
        (folder / name / "data").mkdir(parents=True)
        (folder / name / "data" / "index.js").write_text("half")
        stamp = os.stat(folder).st_mtime - age
        os.utime(folder / name, (stamp, stamp))

    leave(".psi-fast-99999998-report", 3600)
    leave(".psi-fast-99999999-report", 3 * 24 * 3600)
    build(folder)
    assert [path.name for path in folder.glob(".psi-fast-*")] == [".psi-fast-99999998-report"]  # it may still run
    (folder / "manifest.json").unlink()
    assert run(*score_flags(images, folder)) == 0
    assert list(folder.glob(".psi-fast-*")) == []
    assert (folder / "report" / "report.json").exists()


def test_a_run_without_labels_has_no_q_and_one_of_a_band_its_own_patches(tmp_path):
    images = tiny.write_pictures(tmp_path / "pictures", classes=False)
    config = replace(tiny.CONFIG, band=(0.2, 0.8))
    scores = tiny.score(images=str(images), config=config, out=tmp_path / "run")
    report = Read(build(tmp_path / "run", pictures=True))
    assert report.index["layers"][0]["components"] == "SD"
    assert report.table["Q_hat"] == report.table["Q_z"] == [None] * 6
    for channel, found in enumerate(report.channels("2")):
        assert set(found["nulls"]) == {"S", "D"}
        assert found["patches"]["label"] == [None] * 12
        assert all(one["classes"] == [] for one in found["clusters"])
        own = scores.patches.loc[scores.patches["channel"] == channel, "activation"]
        about = found["activations"]
        assert about["band"] == pytest.approx([own.min(), own.max()], rel=1e-3)
        assert about["low"] < about["band"][0] <= about["band"][1] < about["high"]


def test_channels_with_too_few_patches_have_no_score_to_show(tmp_path):
    images = tiny.write_pictures(tmp_path / "pictures", 40)
    tiny.score(images=str(images), out=tmp_path / "run", config=replace(tiny.CONFIG, band=(0.4, 0.5)))
    report = Read(build(tmp_path / "run", pictures=True))
    few = report.index["flags"].index("few_patches")
    assert all(own >> few & 1 for own in report.table["flags"])
    assert report.table["psi"] == report.table["log_psi"] == [None] * 6
    assert report.table["strip"] == [[]] * 6
    for found in report.channels("2"):
        assert len(found["patches"]["tile"]) == len(found["patches"]["x"]) == 4
        assert found["patches"]["silhouette"] == [None] * 4
        assert None not in found["patches"]["x"]
        assert (found["nulls"], found["clusters"]) == ({}, [])
        low, high = found["activations"]["band"]
        assert low <= high
    shares = {own["name"]: own["shares"] for own in report.index["layers"][0]["log_psi"]}
    assert shares["channels"] == shares["null draws"] == [0] * 48


def test_swaps_are_those_of_the_experiment(images, tmp_path, monkeypatch):
    details = two_layers(tmp_path / "run", images)
    row = 7
    found, table = with_swaps(details, row)
    monkeypatch.setattr(module, "open_details", lambda _: found)
    monkeypatch.setattr(page, "write_page", lambda folder, *_: (folder / "index.html").write_text(""))
    report = Read(build(tmp_path / "run"))
    swaps = [one["swaps"] for key in ("1", "3") for one in report.channels(key)]
    assert [place for place, own in enumerate(swaps) if own is not None] == [row]
    assert [own["condition"] for own in swaps[row]] == list("abcde")
    for name, column in (("value", "change_sd"), ("low", "low"), ("high", "high")):
        assert [own[name] for own in swaps[row]] == pytest.approx(table[column].tolist(), rel=6e-3)


def test_an_experiment_without_its_figure_is_one_line(folder):
    from psi_fast.experiments import Study, separation

    study = Study(
        "tiny:network", ["2"], json.loads((folder / "manifest.json").read_text())["source"], out=folder,
        encoder="classifier:tiny:classifier", config=tiny.CONFIG, device="cpu", progress=False,
    )  # fmt: skip
    place = separation(study).folder
    report = build(folder).parent
    assert (report / "data" / "e0" / "figure.svg").read_bytes() == (place / "figure.svg").read_bytes()
    (place / "figure.svg").unlink()
    said = message(build, folder, error=StoreError)
    assert "figure.svg" in said
    assert str(place) in said


# The command


def test_the_command_writes_a_report_and_says_where(folder, tmp_path, capsys):
    assert run("report", folder, "--out", tmp_path / "pages", "--no-pictures", "--no-progress") == 0
    out, err = capsys.readouterr()
    assert out == f"report: {tmp_path / 'pages' / 'index.html'}\n"
    assert err == ""
    assert "index" in scripts(tmp_path / "pages")
    assert run("report", folder, tmp_path / "none") == 2
    assert "no finished run" in one_line(capsys)
    assert run("report") == 2
    assert "at least one run folder" in one_line(capsys)


def test_the_command_finds_images_that_were_moved(folder, images, tmp_path, capsys):
    move_pictures(folder)
    assert run("report", folder, "--no-progress") == 2
    assert "--images" in one_line(capsys)
    assert run("report", folder, "--images", images) == 0
    assert "images" in capsys.readouterr().err


def test_a_score_ends_with_its_report(images, tmp_path, capsys):
    file = tmp_path / "job.toml"
    file.write_text("draws = 9\n")
    words = score_flags(images, tmp_path / "run", draws=None, config=file)
    assert run(*words, "--report") == 0
    assert f"report: {tmp_path / 'run' / 'report' / 'index.html'}" in capsys.readouterr().out.splitlines()
    report = Read(tmp_path / "run" / "report" / "index.html")
    assert report.index["layers"][0]["patches"]
    assert len(report.channels("2")[0]["nulls"]["S"]["counts"]) == 32
    assert run(*words) == 0
    assert "report: " not in capsys.readouterr().out


def test_a_report_is_no_line_of_a_job_file(images, tmp_path, capsys):
    file = tmp_path / "job.toml"  # which experiments read too
    file.write_text("report = true\n")
    assert run(*score_flags(images, tmp_path / "run", config=file)) == 2
    said = one_line(capsys)
    assert "'report'" in said
    assert "psi-fast score --help" in said


@pytest.mark.parametrize("command", ["score", "demo"])
def test_a_missing_package_is_told_before_any_work(images, tmp_path, capsys, monkeypatch, command):
    without("vl_convert", monkeypatch)
    monkeypatch.setattr("psi_fast.demo.run_demo", None)  # called, this would be a TypeError
    out = tmp_path / "run"
    words = [*score_flags(images, out), "--report"] if command == "score" else ["demo", "--out", out]
    assert run(*words) == 2
    assert "psi-fast[report]" in one_line(capsys)
    assert not out.exists()


def test_the_demo_ends_with_its_report(folder, capsys, monkeypatch):
    monkeypatch.setattr("psi_fast.demo.run_demo", lambda out, **_: psi_fast.load(out))
    assert run("demo", "--out", folder, "--no-progress") == 0
    assert f"report: {folder / 'report' / 'index.html'}" in capsys.readouterr().out.splitlines()
    assert (folder / "report" / "report.json").exists()

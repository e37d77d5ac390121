"""A file of jobs: what it may say, the names of its jobs, and one clear line for everything else."""

import re
from pathlib import Path

import pytest
from image_helpers import message

from psi_fast.errors import ConfigError
from psi_fast.jobs import LONGEST, NamedJob, code_in, name_jobs, read_jobs

DEFAULTS = """
[defaults]
network = "tiny:network"
layer = "2"
images = "pictures"
encoder = "classifier:tiny:classifier"
top_k = 12
k_max = 3
"""
JOB = {"network": "timm:a", "layer": "2", "images": "pictures", "encoder": "classifier:timm:a"}


def write(folder, text, name="grid.toml"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def names(*jobs):
    return [job.name for job in name_jobs([JOB | job for job in jobs])]


def test_a_grid_is_all_combinations_the_last_varying_fastest(tmp_path):
    file = write(tmp_path, f"{DEFAULTS}[grid]\nseed = [0, 1]\nencoder = ['open_clip:A/b', 'classifier:timm:a']\n")
    folder, jobs = read_jobs(file)
    assert folder == tmp_path / "grid"
    assert [(job.values["seed"], job.values["encoder"]) for job in jobs] == [
        (seed, encoder) for seed in (0, 1) for encoder in ("open_clip:A/b", "classifier:timm:a")
    ]
    assert [job.name for job in jobs] == [
        *("open_clip-A-b_seed-0", "classifier-timm-a_seed-0"),
        *("open_clip-A-b_seed-1", "classifier-timm-a_seed-1"),
    ]
    assert all(job.values["top_k"] == 12 for job in jobs)


def test_single_jobs_follow_the_grid_and_override_defaults(tmp_path):
    text = f"out = 'elsewhere'\n{DEFAULTS}[grid]\nseed = [0, 1]\n"
    text += "[[jobs]]\nname = 'wide'\ntop_k = 20\n[[jobs]]\nlayer = ['0', '2']\nchannels = '0:3'\n"
    folder, jobs = read_jobs(write(tmp_path, text))
    assert str(folder) == "elsewhere"
    assert [job.name for job in jobs] == [*("2_top_k-12_seed-0", "2_top_k-12_seed-1", "wide", "0-2_0-3_top_k-12")]
    assert [job.values["top_k"] for job in jobs] == [12, 12, 20, 12]
    assert jobs[2].name == "wide"
    assert "name" not in jobs[2].values


def test_single_jobs_need_no_grid_and_a_grid_no_jobs(tmp_path):
    assert len(read_jobs(write(tmp_path, f"{DEFAULTS}[[jobs]]\nseed = 3\n"))[1]) == 1
    assert len(read_jobs(write(tmp_path, f"{DEFAULTS}[grid]\nseed = [3]\n"))[1]) == 1


def test_arguments_are_those_of_score():
    job = NamedJob("x", JOB | {"layer": [0, "2"], "channels": 3, "band": [0.1, 0.9], "device": "cpu"})
    first, others = job.arguments()
    assert first == ("timm:a", ["0", "2"], "pictures")
    assert others["config"].band == (0.1, 0.9)
    assert others["channels"] == slice(3, 4)
    assert set(others) == {"encoder", "config", "channels", "device"}


def test_names_say_what_varies_and_nothing_else():
    assert names({}) == ["job"]
    assert names({"seed": 1}, {"seed": 2}) == ["seed-1", "seed-2"]
    assert names({"seed": 1}, {}) == ["seed-1", "job"]
    assert names({"layer": ["a", "b"]}, {"layer": "c"}) == ["a-b", "c"]
    assert names({"band": [0.1, 0.5]}, {"band": [0.2, 0.5]}) == ["band-0.1-0.5", "band-0.2-0.5"]


def test_names_that_would_be_the_same_are_told_apart():
    """Of values that differ only in letters that a name has not, or behind its last one."""
    for one, two in (("a/b", "a-b"), ("x" * LONGEST + "1", "x" * LONGEST + "2")):
        made = names({"images": one}, {"images": two})
        assert len(set(made)) == 2
        assert made == names({"images": one}, {"images": two})
        assert names({"images": two}, {"images": one}) == made[::-1]


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "", ".", "..", ".hidden", "a b", "x" * (LONGEST + 1), 3, "\x1b[31m", "é"]
)
def test_a_name_that_is_no_folders_is_refused(name):
    assert "a job's name must be" in message(name_jobs, [JOB | {"name": name}], error=ConfigError)


def test_two_jobs_of_one_name_are_refused():
    jobs = [JOB | {"name": "a", "seed": 1}, JOB | {"name": "a", "seed": 2}]
    assert "two jobs called 'a' differ; name one otherwise" in message(name_jobs, jobs, error=ConfigError)
    assert "are the same; leave one out" in message(name_jobs, [JOB, JOB], error=ConfigError)
    assert "are the same; leave one out" in message(name_jobs, [JOB | {"seed": 1}, JOB, JOB], error=ConfigError)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no job: give a [grid] of lists, or a [[jobs]] for each"),
        (DEFAULTS, "there is no job"),
        ("top_k = 3", "unknown 'top_k'; a file of jobs holds out, defaults, grid, jobs"),
        ("[grids]\nseed = [1]", "unknown 'grids'; nearest: 'grid'"),
        ("defaults = 3", "[defaults] must be a table of names and values, got 3"),
        ("grid = [1]", "[grid] must be a table"),
        ("jobs = 3", "jobs must be tables, each under [[jobs]], got 3"),
        ("jobs = [3]", "jobs must be tables"),
        ("out = 3", "out must name a folder, got 3"),
        ("out = ''", "out must name a folder"),
        (f"{DEFAULTS}[grid]\nseed = 3", "seed in [grid] must be a list of values, got 3"),
        (f"{DEFAULTS}[grid]\nseed = []", "seed in [grid] must be a list of values, got []"),
        (f"{DEFAULTS}[grid]\nseeds = [1]", "job 1: unknown setting 'seeds'; nearest: 'seed'"),
        (f"{DEFAULTS}[grid]\nseed = [1, 'x']", "job 2: seed must be a whole number, got 'x'"),
        (f"{DEFAULTS}[[jobs]]\nout = 'x'", "job 1: out is the batch's, not a job's; leave it out"),
        (f"{DEFAULTS}[[jobs]]\nshare = 'x'", "share is the batch's"),
        (f"{DEFAULTS}[[jobs]]\nprogress = true", "progress is the batch's"),
        (f"{DEFAULTS}[[jobs]]\nnetwork = 3", "job 1: network must be text, got 3"),
        (f"{DEFAULTS}[[jobs]]\nmax_images = 'x'", "max_images must be a whole number"),
        (f"{DEFAULTS}[[jobs]]\nchannels = 'a:b'", "channels must be first:stop, such as 0:256, got 'a:b'"),
        (f"{DEFAULTS}[[jobs]]\ndevice = 'tpu'", "device must be one of auto, cpu, cuda, got 'tpu'"),
        (f"{DEFAULTS}[[jobs]]\nk_max = 7", "top_k must be at least 2 * k_max"),
        (f"{DEFAULTS}[[jobs]]\nimages = 1979-05-27", "images must be text"),
        ("[[jobs]]\nnetwork = 'a:b'", "job 1: layer is missing; a job needs network, layer, images, encoder"),
        ("[grid", "cannot read settings from"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line_that_names_the_file(tmp_path, text, said):
    file = write(tmp_path, text)
    told = message(read_jobs, file, error=ConfigError)
    assert said in told
    assert str(file) in told


def test_a_file_that_is_none_and_one_without_an_ending(tmp_path):
    assert "cannot read settings" in message(read_jobs, tmp_path / "none.toml", error=ConfigError)
    file = write(tmp_path, f"{DEFAULTS}[[jobs]]\n", "jobs")
    assert "give out" in message(read_jobs, file, error=ConfigError)


@pytest.mark.parametrize(
    ("network", "encoder", "found"),
    [
        ("package.module:function", "open_clip:A/b", "package.module:function"),
        ("tiny:network", "open_clip:A/b", "tiny:network"),
        ("timm:resnet50", "classifier:os:getcwd", "os:getcwd"),
        ("timm:resnet50", "classifier:timm:resnet50", None),
        ("torchvision:resnet50@/a/path.pth", "open_clip:hf-hub:a/b", None),
        ("transformers:owner/name", "open_clip:local-dir:folder", None),
        ("efficientnet-lite:lite0", "classifier:efficientnet-lite:lite2", None),
        ("no network", "no encoder", None),
    ],
)
def test_what_calls_code(network, encoder, found):
    assert code_in(NamedJob("x", {"network": network, "encoder": encoder})) == found


def test_the_pages_example_is_what_it_says(tmp_path):
    page = (Path(__file__).resolve().parents[1] / "docs" / "jobs.md").read_text(encoding="utf-8")
    text = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert text is not None
    folder, jobs = read_jobs(write(tmp_path, text[1]))
    assert str(folder) == "runs/depth"
    assert len(jobs) == 2 * 3 * 3 + 1
    assert jobs[8].values["layer"] == ["layer1", "layer2"]
    assert jobs[-1].name == "paper"
    assert jobs[-1].values["top_k"] == 50
    assert all(code_in(job) is None for job in jobs)


def test_a_grid_of_too_many_jobs_is_refused_before_it_is_made(tmp_path):
    lists = "\n".join(f"{name} = [{', '.join(['20'] * 99)}]" for name in ("seed", "draws", "top_k", "n_init"))
    told = message(read_jobs, write(tmp_path, f"{DEFAULTS}[grid]\n{lists}"), error=ConfigError)
    assert "[grid] stands for 96,059,601 jobs, and a batch has 100,000 at most" in told

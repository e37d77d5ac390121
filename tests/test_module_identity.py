"""Networks with the same weights are another one where they compute something else, and the same one wherever they lie."""

import functools
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from torch import nn

import psi_fast
from psi_fast.module_identity import computation
from psi_fast.networks import load_network

TESTS = Path(__file__).parent


@dataclass
class Settings:
    scale: float = 1.0


class Act(nn.Module):
    """An activation that a test chooses, with something noted."""

    def __init__(self, function=torch.relu, **noted):
        super().__init__()
        self.function = function
        for name, value in noted.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.function(x)


class Other(Act):
    """The same under another name."""


def times(factor):
    return lambda x: factor * x


def buffered(value):
    made = Act()
    made.register_buffer("table", torch.tensor(value), persistent=False)
    return made


def hooked(function):
    made = Act()
    made.register_forward_hook(function)
    return made


def double(_module, _given, made):
    return 2 * made


def halve(_module, _given, made):
    return made / 2


ANOTHER = {
    "class": (Act, Other),
    "function": (lambda: Act(torch.relu), lambda: Act(torch.sigmoid)),
    "code of a function": (lambda: Act(lambda x: x + 1), lambda: Act(lambda x: x + 2)),
    "what a function holds": (lambda: Act(times(2)), lambda: Act(times(3))),
    "what a partial is given": (
        lambda: Act(functools.partial(torch.clamp, min=0)), lambda: Act(functools.partial(torch.clamp, min=1)),
    ),
    "number": (lambda: Act(scale=1.0), lambda: Act(scale=2.0)),
    "private number": (lambda: Act(_scale=1), lambda: Act(_scale=2)),
    "list": (lambda: Act(kept=[1, [2]]), lambda: Act(kept=[1, [3]])),
    "mapping": (lambda: Act(kept={"a": 1}), lambda: Act(kept={"a": 2})),
    "key": (lambda: Act(kept={"a": 1}), lambda: Act(kept={"b": 1})),
    "set": (lambda: Act(kept={1, 2}), lambda: Act(kept={1, 3})),
    "tensor": (lambda: Act(kept=torch.ones(3)), lambda: Act(kept=torch.zeros(3))),
    "buffer that is not saved": (lambda: buffered(1.0), lambda: buffered(2.0)),
    "configuration": (lambda: Act(kept=Settings(1.0)), lambda: Act(kept=Settings(2.0))),
    "hook": (lambda: hooked(double), lambda: hooked(halve)),
    "structure": (lambda: nn.Sequential(nn.ReLU(), nn.GELU()), lambda: nn.Sequential(nn.GELU(), nn.ReLU())),
    "argument of a library's layer": (lambda: nn.GELU("none"), lambda: nn.GELU("tanh")),
}  # fmt: skip


@pytest.mark.parametrize("what", ANOTHER)
def test_a_module_that_computes_something_else_is_another_one(what):
    one, other = ANOTHER[what]
    assert computation(one()) == computation(one())
    assert computation(one()) != computation(other())


def test_a_file_that_defines_a_class_is_part_of_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = "from torch import nn\nclass Net(nn.Linear):\n    def forward(self, x):\n        return {} * x\n"
    marks = []
    for factor in (1, 2):
        (tmp_path / "own_net.py").write_text(source.format(factor))
        told = "import torch, own_net; from psi_fast.module_identity import computation; print(computation(own_net.Net(2, 2)))"
        run = subprocess.run(
            [sys.executable, "-B", "-c", told], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        marks.append(run.stdout)
    assert marks[0] != marks[1]


def test_what_a_module_is_told_by_holds_itself():
    module = Act()
    module.kept = [module.__dict__, {"module": module}]
    module.kept.append(module.kept)
    assert computation(module) == computation(module)


class Awkward:
    """Whatever is asked of it needs more than is given."""

    def to_dict(self, more):
        return more


def test_objects_of_others_are_told_by_their_class():
    def made():
        return Act(kept={Awkward(): Awkward(), len: {Awkward()}}, objects=np.array([Awkward()]), lock=threading.Lock())

    assert computation(made()) == computation(made())


def test_where_it_lies_is_not_told():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), Act(device=torch.device("cpu"), lock=SimpleNamespace(a=1)))
    before = computation(module)
    module[1].device, module[1].lock = torch.device("meta"), SimpleNamespace(a=2)
    assert computation(module.to(memory_format=torch.channels_last).eval()) == before


def test_another_process_says_the_same():
    told = "from psi_fast.networks import load_network; print(load_network('torchvision:resnet18@none').fingerprint())"
    said = {
        subprocess.run(
            [sys.executable, "-c", told], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert said == {load_network("torchvision:resnet18@none").fingerprint()}


def test_twins_of_timm_are_two_networks():
    pytest.importorskip("timm")
    names = ("vit_base_patch32_clip_224", "vit_base_patch32_clip_quickgelu_224")
    one, other = (load_network(f"timm:{name}.openai@none") for name in names)
    assert all(torch.equal(a, b) for a, b in zip(one.module.parameters(), other.module.parameters(), strict=True))
    assert one.fingerprint() != other.fingerprint()


def made_with(function):
    network = tiny.network()
    network.module[2] = nn.Sequential(network.module[2], Act(function))
    return network


def upright():
    return made_with(torch.relu)


def upside_down():
    return made_with(torch.neg)


def test_jobs_of_such_networks_share_nothing(tmp_path, pictures):
    names = ("upright", "upside_down")
    given = {"layer": "2", "images": str(pictures), "encoder": "classifier:tiny:classifier"}
    given |= {"top_k": 12, "k_max": 3, "n_init": 1, "draws": 9, "patch": 0.5, "batch_size": 8, "precision": "float32"}
    jobs = [{**given, "name": name, "network": f"test_module_identity:{name}"} for name in names]
    psi_fast.run_jobs(jobs, tmp_path / "batch", allow_code=True, progress=False)
    found = [psi_fast.load(tmp_path / "batch" / name).table["max_activation"].to_numpy() for name in names]
    assert (found[0] >= 0).all()
    assert (found[1] < found[0]).any()
    assert (found[1] != found[0]).all()

"""Whatever a network raises at its first forward pass is one line with a remedy that fits."""

import pytest
import tiny
import torch
from image_helpers import message
from torch import nn

from psi_fast.activation_tap import ActivationTap, list_layers
from psi_fast.errors import ModelError
from psi_fast.networks import Network, load_network

CPU = torch.device("cpu")


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x, mask):
        return self.conv(x) * mask


class Raises(nn.Module):
    """Raises what it is given."""

    def __init__(self, error):
        super().__init__()
        self.conv, self.error = nn.Conv2d(3, 4, 3), error

    def forward(self, x):
        raise self.error


class FixedSize(nn.Module):
    """Takes one size of images, which it says by an assertion, as timm does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        assert x.shape[-1] == 48, "Input size (32) does not\nmatch model (48)."
        return self.conv(x)


class Precise(nn.Module):
    """Weights in double precision, and an input made to fit."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).double()

    def forward(self, x):
        return self.conv(x.double())


SIZE, FLOAT, ALONE = "net.preprocess = psi_fast.Preprocess(size=", "net.float()", "batch of images alone"
CASES = {
    "size of a linear layer": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), "mat1 and mat2", SIZE),
    "size asserted": (FixedSize, "does not match model", SIZE),
    "too small for its kernels": (lambda: nn.Conv2d(3, 4, 40), "Kernel size", SIZE),
    "half": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)).half(), "float16", FLOAT),
    "bfloat16": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)).bfloat16(), "bfloat16", FLOAT),
    "double": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)).double(), "float64", FLOAT),
    "an argument more": (TwoInputs, "missing 1 required positional argument: 'mask'", ALONE),
    "no forward": (lambda: nn.ModuleDict({"a": nn.Conv2d(3, 4, 3)}), "forward", "mend its forward"),
    "a key": (lambda: Raises(KeyError("pixel_values")), "KeyError: 'pixel_values'", "mend its forward"),
    "an attribute": (lambda: Raises(AttributeError("no\nlines")), "AttributeError: no lines", "mend its forward"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "call", [list_layers, lambda network: ActivationTap(network, "conv", CPU)], ids=["list", "tap"]
)
def test_an_error_of_the_network_is_one_line_with_its_remedy(case, call):
    make, said, remedy = CASES[case]
    network = Network(tiny.seeded(make), tiny.SMALL, "odd")
    network.module.add_module("conv", nn.Identity())
    training = [part.training for part in network.module.modules()]
    text = message(call, network, error=ModelError)
    assert text.startswith("odd cannot run on images of [3, 32, 32] (")
    assert said in text
    assert remedy in text
    assert [part.training for part in network.module.modules()] == training


def test_double_weights_that_work_are_taken():
    assert ActivationTap(Network(Precise(), tiny.SMALL, "precise"), "conv", CPU).channels == 4


@pytest.fixture(scope="module")
def exported():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    return torch.export.export(module, (torch.zeros(1, 3, 32, 32),))


@pytest.mark.parametrize(
    "make", [lambda e: e, lambda e: e.module(), torch.export.unflatten], ids=["program", "module", "parts"]
)
@pytest.mark.parametrize("inside", [False, True])
def test_what_torch_export_made_is_refused(exported, make, inside):
    made = make(exported)
    if inside:
        if not isinstance(made, nn.Module):
            return
        made = nn.Sequential(made)
    text = message(load_network, made, error=ModelError)
    assert "torch.export" in text
    assert "the nn.Module that it was exported from" in text


def test_a_traced_graph_of_modules_is_taken():
    module = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    assert ActivationTap(load_network(module), "0", CPU).channels == 4

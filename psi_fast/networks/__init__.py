"""Network specs: from a name to a module, its weights, and how images are fed to it."""

import importlib
import inspect
import traceback
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn

from psi_fast.checkpoints import one_line
from psi_fast.errors import ModelError, PsiFastError, nearest
from psi_fast.networks import efficientnet_lite, timm, torchvision, transformers
from psi_fast.networks.network import Network, require
from psi_fast.paths import path_errors
from psi_fast.preprocess import Preprocess

__all__ = ["Network", "calls_code", "load_network", "require"]

_FAMILIES = {
    "efficientnet-lite": efficientnet_lite.load,
    "torchvision": torchvision.load,
    "timm": timm.load,
    "transformers": transformers.load,
}


def load_network(spec: str | nn.Module | Network, trust_checkpoint: bool = False) -> Network:
    """The network that `spec` names.

    Parameters
    ----------
    spec
        - `efficientnet-lite:lite0` to `lite4`: ImageNet weights from their packages.
        - `torchvision:NAME`, `torchvision:NAME@WEIGHTS` (a name of its weights enum), `torchvision:NAME@none` (seeded
          random weights), `torchvision:NAME@/path.pth` (a state_dict, .pth or .safetensors). Without weights of its own
          the preprocess is that of the default weights.
        - `timm:NAME`, `timm:NAME@none`, `timm:NAME@/path.safetensors`, with timm's own preprocess.
        - `transformers:OWNER/NAME` of the model hub or `transformers:/path/to/folder` as save_pretrained makes it, fed as
          its image processor does; `transformers:MODEL_TYPE@none` (such as vit@none: its default config), or @none behind
          an id or a folder, for seeded random weights. A config that names an image classifier gives that, any other the
          model without a head; of two towers the one for images is taken.
        - `package.module:function`, called without arguments, giving an nn.Module or a Network.
        - an nn.Module: fed by its attribute `preprocess` when that is a Preprocess, else as ImageNet networks mostly are
          (shorter side to 256 px, the centre 224 px, ImageNet's mean and deviation).
        - a Network, returned as it is.
    trust_checkpoint
        Read a checkpoint that the spec names by its path, or a folder's, also where it is a pickle, and so run what code it
        holds. What comes from a hub is read as weights alone, whether or not this is given.

    Raises
    ------
    ModelError
        For an unknown family, network or weights (with the nearest names), a missing package, a file that cannot be
        read or does not fit, a hub that cannot be reached (with the file to fetch), or what TorchScript or torch.export made.
    """
    with path_errors(f"network {spec!r}" if isinstance(spec, str) else "a network", ModelError):
        network = _load(spec, trust_checkpoint)
    for name, part in cast(Iterable[tuple[str, nn.Module]], network.module.named_modules()):
        where = f" in {name!r}" if name else ""
        if isinstance(part, torch.jit.ScriptModule):
            raise ModelError(
                f"{network.name} is TorchScript{where}, which runs its layers as one compiled graph, so none of them can be "
                "read; give the nn.Module that it was scripted or traced from"
            )
        if _is_exported(part):
            raise ModelError(f"{network.name} comes from torch.export{where}, {_EXPORTED}")
    return network


def calls_code(spec: str) -> bool:
    """Whether `spec` is package.module:function, which is imported and called, and no family's."""
    family, colon, rest = spec.partition(":")
    return bool(colon) and family not in _FAMILIES and rest.isidentifier()


_EXPORTED = "which keeps one graph in place of the layers' own code; give the nn.Module that it was exported from"


def _is_exported(thing: object) -> bool:
    """Whether it is an ExportedProgram, or a module made from one."""
    return any(kind.__module__.startswith("torch.export.") for kind in type(thing).__mro__)


def _load(spec: str | nn.Module | Network, trust_checkpoint: bool) -> Network:
    if isinstance(spec, Network):
        return spec
    if isinstance(spec, nn.Module):
        return _from_module(spec, type(spec).__name__)
    if _is_exported(spec):
        raise ModelError(f"a {type(spec).__name__} of torch.export cannot be read layer by layer, {_EXPORTED}")
    if not isinstance(spec, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # of what callers gave
        raise ModelError(f"a network is a spec, an nn.Module or a Network, got {type(spec).__name__}")
    family, colon, rest = spec.partition(":")
    if colon and rest and family in _FAMILIES:
        return _FAMILIES[family](spec, rest, trust_checkpoint)
    if calls_code(spec):
        return _from_function(spec, family, rest)
    known = [
        f"{name}:{spec}"
        for name, has in (("torchvision", torchvision.has), ("timm", timm.has))
        if has(spec.split("@")[0])
    ]
    if known:
        raise ModelError(f"network {spec!r} is not understood without a family; expected {' or '.join(known)}")
    raise ModelError(
        f"network {spec!r} is not understood; expected efficientnet-lite:NAME, torchvision:NAME, timm:NAME, "
        f"transformers:OWNER/NAME or package.module:function{nearest(family, _FAMILIES)}"
    )


def _takes_nothing(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):  # ValueError: a builtin tells no signature
        return False
    return True


def _user_error(what: str, error: Exception) -> ModelError:
    """What a user's own code raised, and the last line of it that ran."""
    if isinstance(error, SyntaxError):  # tells its line itself
        where = ""
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f" at {last.filename}, line {last.lineno}"
    return ModelError(f"{what} raised {type(error).__name__} ({one_line(error)}){where}; mend it there")


def _from_module(module: nn.Module, name: str) -> Network:
    own = getattr(module, "preprocess", None)
    return Network(module, own if isinstance(own, Preprocess) else Preprocess(size=224, resize=256), name)


def _from_function(spec: str, package: str, function: str) -> Network:
    if not all(part.isidentifier() for part in [*package.split("."), function]):
        raise ModelError(
            f"network {spec!r} is not understood; families are {', '.join(_FAMILIES)}, or package.module:function"
        )
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{package}.".startswith(
            f"{error.name}."
        ):  # found, but something it imports is not
            raise _user_error(f"importing {package!r} for {spec!r}", error) from error
        raise ModelError(
            f"no network family or importable module {package!r} for {spec!r}{nearest(package, _FAMILIES)}; families are "
            f"{', '.join(_FAMILIES)}; make a module of your own importable by installing it or by PYTHONPATH"
        ) from error
    except Exception as error:  # a user's code, which raises what it likes
        raise _user_error(f"importing {package!r} for {spec!r}", error) from error
    if not callable(getattr(module, function, None)):
        raise ModelError(f"{package} has no function {function!r}{nearest(function, dir(module))}")
    try:
        made = getattr(module, function)()
    except TypeError as error:
        if not _takes_nothing(getattr(module, function)):
            raise ModelError(f"{spec} must be a function without arguments: {one_line(error)}") from error
        raise _user_error(f"calling {spec!r}", error) from error
    except PsiFastError:
        raise
    except Exception as error:
        raise _user_error(f"calling {spec!r}", error) from error
    if isinstance(made, Network):
        return made
    if not isinstance(made, nn.Module):
        raise ModelError(f"{spec} gave a {type(made).__name__}, expected an nn.Module or a psi_fast Network")
    return _from_module(made, spec)

"""timm's networks."""

import importlib
import importlib.util
from typing import Any

from torch import nn

from psi_fast.checkpoints import hub_error, load_weights, one_line, require_hub_file
from psi_fast.errors import ModelError, nearest
from psi_fast.networks.network import Network, is_path, named, require, seeded, split_weights, triple
from psi_fast.preprocess import Preprocess


def load(spec: str, rest: str, trust_checkpoint: bool) -> Network:
    timm = require("timm", '"psi-fast[timm]"', spec)
    name, weights_name = split_weights(rest)
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
    if weights_name and weights_name != "none" and not is_path(weights_name):
        raise ModelError(f"weights in {spec!r} must be @none or @/path; timm's own are named {architecture}.TAG")
    if weights_name:
        with seeded():
            module = timm.create_model(name, pretrained=False)
        if weights_name != "none":
            load_weights(module, weights_name, f"timm:{name}", trust_checkpoint)
    else:
        module = _timm_pretrained(spec, name, timm)
    settings = timm.data.resolve_model_data_config(module)
    _, height, width = settings["input_size"]
    if height != width:
        raise ModelError(f"{spec} takes {height} x {width} images, expected a square input; choose another network")
    preprocess = Preprocess(
        height,
        max(height, int(height / settings["crop_pct"])),
        triple(settings["mean"]),
        triple(settings["std"]),
        "bilinear" if settings["interpolation"] == "bilinear" else "bicubic",
    )
    return named(spec, module, preprocess, weights_name, classes=getattr(module, "num_classes", 0))


def has(name: str) -> bool:
    """Whether timm is installed and has a network of that name."""
    if importlib.util.find_spec("timm") is None:
        return False
    return importlib.import_module("timm").is_model(name.partition(".")[0])


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

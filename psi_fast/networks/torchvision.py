"""torchvision's classifiers."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from psi_fast.checkpoints import checkpoint_errors, load_weights, one_line
from psi_fast.errors import ModelError, nearest
from psi_fast.networks.network import Network, is_path, named, seeded, split_weights, triple
from psi_fast.preprocess import Preprocess


def load(spec: str, rest: str, trust_checkpoint: bool) -> Network:
    from torchvision import models

    name, weights_name = split_weights(rest)
    names = models.list_models(module=models)
    if name not in names:
        raise ModelError(f"unknown network {spec!r}: torchvision has no classifier {name!r}{nearest(name, names)}")
    choices = models.get_model_weights(name)
    if weights_name == "none" or is_path(weights_name):
        preset = choices["DEFAULT"].transforms()
        with seeded():
            module = models.get_model(name, weights=None)
        if weights_name != "none":
            load_weights(module, weights_name, f"torchvision:{name}", trust_checkpoint)
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
        triple(preset.mean),
        triple(preset.std),
        preset.interpolation.value,
    )
    return named(spec, module, preprocess, weights_name, classes=1000)


def has(name: str) -> bool:
    """Whether torchvision has a classifier of that name."""
    from torchvision import models

    return name in models.list_models(module=models)


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

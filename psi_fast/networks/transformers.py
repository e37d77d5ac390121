"""Vision models of Hugging Face transformers."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from psi_fast.checkpoints import TRUST, hub_error, one_line, read_weights, require_hub_file
from psi_fast.errors import ModelError, nearest
from psi_fast.networks.network import Network, require, seeded, triple
from psi_fast.preprocess import Preprocess

_SETTINGS = ("config.json", "preprocessor_config.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_INTERPOLATIONS: dict[Any, Literal["bilinear", "bicubic"]] = {
    2: "bilinear",  # as PIL numbers it
    3: "bicubic",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}
_CONVNEXT_SQUASHES_FROM = 384
"""px; ConvNextImageProcessor cuts the centre of smaller inputs only."""
_UNLIKE = 0.015
"""Mean difference, in standard deviations of the picture, from which two ways to feed a network count as different."""


def load(spec: str, rest: str, trust_checkpoint: bool) -> Network:
    """`rest` is a hub id, a folder as save_pretrained makes it, either with @none behind it, or MODEL_TYPE@none."""
    transformers = require("transformers", '"psi-fast[transformers]"', spec)
    name, random = rest.removesuffix("@none"), rest.endswith("@none")
    if "@" in name and not Path(name).is_dir():
        raise ModelError(f"weights in {spec!r} must be @none; other weights are a folder, transformers:/path/to/folder")
    with _in_one_line(transformers, spec):
        if random and "/" not in name and not Path(name).is_dir():
            config, folder = _config_of_type(transformers, name, spec), None
        else:
            folder = _folder(name, spec, weights=not random, pickled=trust_checkpoint)
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.model_type == "vit_mae":
            raise ModelError(
                f"{spec} drops and shuffles patches at random in each forward pass, so its positions mean nothing; "
                "use the same weights from timm, such as timm:vit_base_patch16_224.mae"
            )
        source = None if random else folder
        with seeded():
            module, warnings = _module(transformers, config, source, spec)
        if folder is not None and (folder / "preprocessor_config.json").is_file():
            processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
            preprocess = _preprocess(processor, spec)
        elif random:
            preprocess = _at_its_size(config)
        else:
            raise ModelError(f"{folder} has no preprocessor_config.json, which says how {spec} is fed; add it")
    if random:
        return Network(module, preprocess, spec, warnings=[f"random weights ({spec})"])
    classifies = "ForImageClassification" in type(module).__name__
    return Network(module, preprocess, spec, _class_names(config.id2label) if classifies else None, warnings)


def _config_of_type(transformers: Any, name: str, spec: str) -> Any:
    known = list(transformers.CONFIG_MAPPING.keys())
    if name not in known:
        raise ModelError(
            f"unknown network {spec!r}: transformers has no model type {name!r}{nearest(name, known)}; "
            "or give OWNER/NAME of the model hub, or a folder"
        )
    return transformers.AutoConfig.for_model(name)


def _folder(name: str, spec: str, weights: bool, pickled: bool) -> Path:
    """The folder that `name` is, whose weights may be `pickled`, or the hub's files of that id in the hub's cache."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
            raise ModelError(
                f"{spec!r} names no folder; expected transformers:OWNER/NAME of the model hub, transformers:/path/to/folder "
                "or transformers:MODEL_TYPE@none, such as transformers:vit@none"
            )
        folder = _fetched(name, spec, weights)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json; expected a folder as save_pretrained makes it")
    found = [filename for filename in _PICKLES if (folder / filename).is_file()]
    if weights and not _holds_safetensors(folder) and not (pickled and found):
        why = f"; {found[0]} is refused, since a pickle can hold code: save it" if found else "; save it"
        trust = f", or {TRUST}" if found else ""
        raise ModelError(f"{folder} has no {_WEIGHTS[0]}{why} with save_pretrained, which writes safetensors{trust}")
    return folder


def _holds_safetensors(folder: Path) -> bool:
    return any((folder / filename).is_file() for filename in _WEIGHTS)


def _trusted_state(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a folder in which they are pickled, in one file or, as an index tells, in several."""
    whole, index = (folder / filename for filename in _PICKLES)
    if whole.is_file():
        return read_weights(whole, trust_checkpoint=True)
    files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if outside := [name for name in files if Path(name).name != name]:
        raise ModelError(f"{index} names {outside[0]!r}, which is no file of its folder; save the model again")
    return {key: value for name in sorted(files) for key, value in read_weights(folder / name, True).items()}


def _fetched(repository: str, spec: str, weights: bool) -> Path:
    import huggingface_hub

    needed = _WEIGHTS if weights else _SETTINGS[:1]
    instead = f"transformers:/path/to/folder, a folder that also holds its {' and '.join(_SETTINGS)}"
    require_hub_file(repository, needed, spec, instead)
    files = [*_SETTINGS, *_WEIGHTS, "model-*.safetensors"] if weights else [*_SETTINGS]
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=files))
    except (OSError, ValueError) as error:
        raise hub_error(repository, needed, spec, instead, one_line(error)) from error


def _module(transformers: Any, config: Any, folder: Path | None, spec: str) -> tuple[nn.Module, list[str]]:
    """The classifier, or the model without a head, or of two towers the one for images; and what it lacks."""
    names = [name for name in config.architectures or () if "ForImageClassification" in name]
    kind = getattr(transformers, names[0], None) if names else None
    missing: list[str] = []
    if folder is not None:
        if _holds_safetensors(folder):
            reader, weights = kind or transformers.AutoModel, {"pretrained_model_name_or_path": folder}
        else:  # transformers itself reads no pickle, and AutoModel takes a folder alone
            reader = kind or transformers.MODEL_MAPPING[type(config)]
            weights = {"pretrained_model_name_or_path": None, "state_dict": _trusted_state(folder)}
        module, info = reader.from_pretrained(
            **weights,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
        missing = sorted(info["missing_keys"])
    elif kind is not None:
        module = kind(config)
    else:
        module = transformers.AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
    if (
        kind is None
        and hasattr(config, "vision_config")
        and isinstance(getattr(module, "vision_model", None), nn.Module)
    ):
        module = module.vision_model
        missing = [key.removeprefix("vision_model.") for key in missing if key.startswith("vision_model.")]
    if module.main_input_name != "pixel_values":
        raise ModelError(f"{spec} is a {type(module).__name__}, which takes {module.main_input_name}, expected images")
    listed = f"{', '.join(missing[:3])}{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}"
    if any("pooler" not in key for key in missing):
        raise ModelError(f"the weights in {folder} do not fit {type(module).__name__}: they lack {listed}")
    return module, [f"random weights, since {spec} has none for them: {listed}"] if missing else []


def _class_names(labels: dict[int, str]) -> list[str] | None:
    """The names of a classifier's outputs by their number; None for placeholders."""
    placeholders = all(re.fullmatch(r"LABEL_\d+", name) for name in labels.values())
    if placeholders or sorted(labels) != list(range(len(labels))):
        return None
    return [labels[index] for index in range(len(labels))]


def _at_its_size(config: Any) -> Preprocess:
    """For random weights without an image processor's settings: as ImageNet networks mostly are fed."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None) or 224
    side = size if isinstance(size, int) else size[0]
    return Preprocess(side, side * 8 // 7)


def _preprocess(processor: Any, spec: str) -> Preprocess:
    """What the image processor does, as a Preprocess; checked on a picture, since processors have settings of their own."""
    kind = type(processor).__name__
    size, cut = dict(processor.size or {}), None
    if getattr(processor, "do_center_crop", False):
        cut = _side(dict(processor.crop_size))
    share = getattr(processor, "crop_pct", None)
    side, squash = _side(size), True
    if set(size) == {"shortest_edge"}:
        side, squash = int(size["shortest_edge"]), False
        if share and cut is None and side >= _CONVNEXT_SQUASHES_FROM:
            squash = True
        elif share:
            cut, side = cut or side, int(side / share)
        elif cut is None:
            side = None
    resample = getattr(processor, "resample", None)
    interpolation = _INTERPOLATIONS.get(getattr(resample, "value", resample))
    if not processor.do_resize or side is None or interpolation is None or (cut or side) > side:
        raise ModelError(
            f"the image processor of {spec} ({kind}: size {size}, crop {cut}, do_resize {processor.do_resize}, resample "
            f"{resample}) does not make squares by a bilinear or bicubic resize and a centre crop within it; {_INSTEAD}"
        )
    # (x f - mean) / std for x in 0..255, with f = 1/255 in all but a few
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    preprocess = Preprocess(
        cut or side,
        side,
        triple(value / factor for value in mean),
        triple(value / factor for value in std),
        interpolation,
        squash,
    )
    difference = _difference(preprocess, processor)
    if difference > _UNLIKE:
        raise ModelError(
            f"the image processor of {spec} ({kind}) does more than resize, cut and normalise: a picture fed by psi_fast "
            f"differs from its own by {difference:.3g} standard deviations; {_INSTEAD}"
        )
    return preprocess


_INSTEAD = "load the model yourself and give it an attribute `preprocess` of type psi_fast.Preprocess"


def _side(size: dict[str, Any]) -> int | None:
    return int(size["height"]) if set(size) == {"height", "width"} and size["height"] == size["width"] else None


def _difference(preprocess: Preprocess, processor: Any) -> float:
    """Mean difference between a smooth picture fed by either, in standard deviations; inf where the shapes differ.

    The processor's cut may begin a pixel before: where an odd number of lines is cut away, libraries round differently.
    """
    height, width = preprocess.resize + 61, 2 * preprocess.resize + 30
    noise = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    picture = nn.functional.interpolate(noise, (height, width), mode="bilinear").mul(255).byte()
    theirs = processor(images=[picture[0]], return_tensors="pt")["pixel_values"]
    ours = preprocess(picture.permute(0, 2, 3, 1))
    if theirs.shape != ours.shape:
        return torch.inf
    side = preprocess.size
    apart = [
        (theirs[:, :, y:, x:] - ours[:, :, : side - y, : side - x]).abs().mean() for y in range(2) for x in range(2)
    ]
    return float(min(apart) / ours.std())


@contextmanager
def _in_one_line(transformers: Any, spec: str) -> Iterator[None]:
    """Without the library's own reports and bars; whatever it raises becomes a ModelError of one line."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # of the library, of huggingface_hub and of safetensors, with no base in common
        raise ModelError(
            f"{spec} cannot be loaded by transformers {transformers.__version__} ({one_line(error)})"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

"""What the commands that work on a network and images take: one definition of every option, for flags and TOML files."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from psi_fast.config import PSIConfig
from psi_fast.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Job:
    """The inputs of `psi_fast.score` and of a `Study`, as the command line has them."""

    network: str
    """efficientnet-lite:lite0, torchvision:resnet50[@WEIGHTS|@none|@/path.pth], timm:NAME[@none|@/path],
    transformers:OWNER/NAME, transformers:/path/to/folder, transformers:vit@none or package.module:function."""
    layer: tyro.conf.UseAppendAction[list[str]]
    """Module whose channels are scored, or NAME#heads for the heads of an attention module; `psi-fast layers` lists them.
    Give it again for more layers, which are then read in one pass."""
    images: str
    """Tiny-ImageNet as a folder or zip, an ImageFolder, a folder of images, a Hugging Face dataset (owner/name[@split], a
    .parquet or .arrow file, a pattern such as "data/*.parquet", a folder of parquet files or a saved one, with @split behind
    it where it has several), or WebDataset shards (a .tar, a pattern such as "shard-{000000..000099}.tar", a folder of
    them), or scikit-image:tiles, the tiles of photographs that the demo takes."""
    encoder: str
    """open_clip:ARCH/TAG, open_clip:ARCH/CHECKPOINT, open_clip:hf-hub:ORG/NAME, open_clip:local-dir:FOLDER or
    classifier:NETWORK."""
    out: Path
    """Run folder to write; one that holds this very run is shown instead."""
    vocabulary: str | None = None
    """imagenet, open-1602 or a text file with one concept a line; default: the encoder's own."""
    text_head: str | None = None
    """sentence-transformers:NAME-OR-FOLDER, a model of text alone that gives the distances among concepts; with
    --distinctness pairwise only."""
    channels: str | None = None
    """Range first:stop of channels to score; default: all."""
    max_images: int | None = None
    """Use an evenly spread, seeded subset of so many images."""
    skip_unreadable: bool = False
    """Leave out images that cannot be decoded, and count them."""
    bank: str | None = None
    """Folder that keeps decoded images for other runs; default: psi_fast's cache folder. stream: keep none, and decode images
    when they are needed (./stream is a folder of that name)."""
    bank_side: int | None = None
    """Side in px that images are kept at; default: what network and encoder resize to, at most."""
    share: str | None = None
    """Folder that keeps mined patches and embeddings for other runs, which take from it what they have in common."""
    trust_checkpoint: bool = False
    """Read local checkpoints also where they are pickles, and so run what code they hold; only for files of someone you trust."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    progress: bool = True
    """Show progress on stderr: bars on a terminal, else a line a stage."""
    settings: tyro.conf.OmitArgPrefixes[PSIConfig] = field(default_factory=PSIConfig)
    """Settings of the method."""

    @classmethod
    def inputs(cls) -> list[str]:
        """Names of the fields beside the settings."""
        return [own.name for own in dataclasses.fields(cls) if own.name != "settings"]

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of `psi_fast.score` and `Study`."""
        given = {name: getattr(self, name) for name in self.inputs()}
        first = tuple(given.pop(name) for name in ("network", "layer", "images"))
        return first, given | {"config": self.settings, "channels": channel_slice(self.channels)}


def check_input(name: str, value: Any) -> None:
    """Refuse what a TOML file can give an input of a Job that is of another type."""
    kind = get_type_hints(Job)[name]
    number = isinstance(value, int) and not isinstance(value, bool)
    if get_origin(kind) is Literal:
        fits, wanted = value in get_args(kind), f"one of {', '.join(get_args(kind))}"
    elif kind is bool:
        fits, wanted = isinstance(value, bool), "true or false"
    elif int in get_args(kind):
        fits, wanted = number, "a whole number"
    elif name == "layer":  # those of an nn.Sequential are numbers
        values = value if isinstance(value, list) else [value]
        fits, wanted = all(type(one) in (str, int) for one in values), "the name of a layer or a list of names"
    else:
        fits, wanted = isinstance(value, str) or (name == "channels" and number), "text"
    if not fits:
        raise ConfigError(f"{name} must be {wanted}, got {value!r}")
    if any("\0" in str(one) for one in (value if isinstance(value, list) else [value])):
        raise ConfigError(f"{name} must be {wanted}, without NUL characters, got {value!r}")


def check_values(values: Mapping[str, Any]) -> None:
    """Refuse what a TOML file says of a job that is no input and no setting, or has a value that does not fit."""
    settings = list(PSIConfig().to_dict())
    names = [*Job.inputs(), *settings]
    for name, value in values.items():
        if name not in names:
            raise ConfigError(f"unknown setting {name!r}{nearest(name, names)}; see `psi-fast score --help`")
        if name not in settings:
            check_input(name, value)
    PSIConfig.from_dict({name: value for name, value in values.items() if name in settings})


def channel_slice(text: str | int | None) -> slice | None:
    """The channels that "first:stop", or a number for one of them, stands for."""
    if text is None:
        return None
    first, colon, stop = str(text).partition(":")
    try:
        return (
            slice(int(first) if first else None, int(stop) if stop else None)
            if colon
            else slice(int(first), int(first) + 1)
        )
    except ValueError as error:
        raise ConfigError(f"--channels must be first:stop, such as 0:256, got {text!r}") from error

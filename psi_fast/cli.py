"""The command psi-fast."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import psi_fast
from psi_fast.config import PSIConfig, read_toml
from psi_fast.environment import keep_freed_memory
from psi_fast.errors import ConfigError, PsiFastError, nearest

Settings = tyro.conf.OmitArgPrefixes[PSIConfig]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; any PsiFastError ends in one line on stderr and exit code 2."""
    keep_freed_memory()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"psi-fast {metadata.version('psi-fast')}")  # noqa: T201
        return
    try:
        arguments, base = _base_settings(arguments)
        tyro.extras.subcommand_cli_from_dict(
            _commands(base),
            prog="psi-fast",
            description="Calibrated polysemanticity scores for every channel of a vision network.",
            args=arguments,
        )
    except PsiFastError as error:
        print(f"psi-fast: error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from error
    except BrokenPipeError:  # the reader, `head` for instance, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _base_settings(arguments: list[str]) -> tuple[list[str], PSIConfig]:
    """The arguments without --preset and --config FILE.toml, and the settings these make the defaults of the other flags.

    What a file says beside settings, such as the network, becomes flags in front of the others, which override them.
    """
    if arguments[:1] != ["score"]:
        return arguments, PSIConfig()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    parser.add_argument("--config")
    found, rest = parser.parse_known_args(arguments)
    if found.preset and found.config:
        raise ConfigError("give either --preset or --config, not both")
    if not found.config:
        return rest, PSIConfig.preset(found.preset or "default")
    values = read_toml(found.config)
    inputs = [name for name in signature(_commands(PSIConfig())["score"]).parameters if name != "settings"]
    names = [*inputs, *PSIConfig().to_dict()]
    for name in values:
        if name not in names:
            raise ConfigError(
                f"unknown setting {name!r} in {found.config}{nearest(name, names)}; see `psi-fast score --help`"
            )
    if any(argument.partition("=")[0] == "--layer" for argument in rest):  # it would be added to the file's layers
        values.pop("layer", None)
    flags = [flag for name in inputs if name in values for flag in _flags(name, values.pop(name))]
    return [*rest[:1], *flags, *rest[1:]], PSIConfig.from_dict(values)


def _flags(name: str, value: Any) -> list[str]:
    """The flags that say the same as `name = value` in a TOML file."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    values = value if name == "layer" and isinstance(value, list) else [value]
    if not all(isinstance(one, (str, int)) for one in values):
        raise ConfigError(f"{name} must be text, a number, or for layer a list of names, got {value!r}")
    return [part for one in values for part in (f"--{flag}", str(one))]


def _commands(base: PSIConfig) -> dict[str, Callable[..., Any]]:
    def score(
        *,
        network: str,
        layer: tyro.conf.UseAppendAction[list[str]],
        images: str,
        encoder: str,
        out: Path,
        vocabulary: str | None = None,
        text_head: str | None = None,
        channels: str | None = None,
        max_images: int | None = None,
        skip_unreadable: bool = False,
        bank: str | None = None,
        bank_side: int | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        progress: bool = True,
        settings: Settings = base,
    ) -> None:
        """Score a layer's channels from images and write a run folder.

        Besides the flags below, --preset {default,paper} or --config FILE.toml set the defaults: lines such as `top_k = 50`
        for settings, and `network = "timm:resnet50"` or `layer = ["layer3", "layer4"]` for the rest.

        Args:
            network: efficientnet-lite:lite0, torchvision:resnet50[@WEIGHTS|@none|@/path.pth], timm:NAME[@none|@/path],
                transformers:OWNER/NAME, transformers:/path/to/folder, transformers:vit@none or package.module:function.
            layer: Module whose channels are scored, or NAME#heads for the heads of an attention module; `psi-fast layers`
                lists them. Give it again for more layers, which are then read in one pass.
            images: Tiny-ImageNet as a folder or zip, an ImageFolder, a folder of images, a Hugging Face dataset
                (owner/name[@split], a .parquet or .arrow file, a saved folder), or WebDataset shards (a .tar, a pattern
                such as "shard-{000000..000099}.tar", a folder of them).
            encoder: open_clip:ARCH/TAG, open_clip:ARCH/CHECKPOINT, open_clip:hf-hub:ORG/NAME, open_clip:local-dir:FOLDER or
                classifier:NETWORK.
            out: Run folder to write; one that holds this very run is shown instead.
            vocabulary: imagenet, open-1602 or a text file with one concept a line; default: the encoder's own.
            text_head: sentence-transformers:NAME-OR-FOLDER, a model of text alone that gives the distances among concepts;
                with --distinctness pairwise only.
            channels: Range first:stop of channels to score; default: all.
            max_images: Use an evenly spread, seeded subset of so many images.
            skip_unreadable: Leave out images that cannot be decoded, and count them.
            bank: Folder that keeps decoded images for other runs; default: psi_fast's cache folder. stream: keep none, and
                decode images when they are needed (./stream is a folder of that name).
            bank_side: Side in px that images are kept at; default: what network and encoder resize to, at most.
            device: Where to compute.
            progress: Show progress bars, where stderr is a terminal.
            settings: Settings of the method.
        """
        from psi_fast.present import show_scores

        scores = psi_fast.score(
            network,
            layer,
            images,
            encoder=encoder,
            vocabulary=vocabulary,
            text_head=text_head,
            config=settings,
            channels=_channel_slice(channels),
            device=device,
            out=out,
            progress=progress,
            max_images=max_images,
            skip_unreadable=skip_unreadable,
            bank=bank,
            bank_side=bank_side,
        )
        show_scores(scores, out)

    return {"score": score, "layers": layers, "show": show, "demo": demo, "env": env}


def layers(
    *, network: str, fields: bool = False, device: Literal["auto", "cpu", "cuda"] = "auto", progress: bool = True
) -> None:
    """List a network's layers: name, type, output shape and channels.

    Args:
        network: As for `psi-fast score`.
        fields: Measure each layer's receptive field (width x height in px of the network's input): theoretical, what can
            change a unit at all, and effective, the square that holds 90 % of the squared gradient. Takes seconds a layer.
        device: Where to measure.
        progress: Show a progress bar, where stderr is a terminal.
    """
    from psi_fast.activation_tap import list_layers
    from psi_fast.environment import pick_device
    from psi_fast.networks import load_network
    from psi_fast.present import show_layers
    from psi_fast.progress import Progress
    from psi_fast.receptive_field import measure_fields

    where = pick_device(device)
    loaded = load_network(network)
    listed = list_layers(loaded)
    if not fields:
        show_layers(listed)
        return
    measured = measure_fields(loaded, [layer.name for layer in listed], where, Progress(progress))
    show_layers(listed, measured)


def show(folder: Annotated[Path, tyro.conf.Positional], *, count: int = 15) -> None:
    """Show a finished run: its most polysemantic channels, counts and timings.

    Args:
        folder: Run folder.
        count: Channels to show.
    """
    from psi_fast.present import show_scores

    show_scores(psi_fast.load(folder), folder, count)


def demo(*, out: Path = Path("runs/demo"), progress: bool = True) -> None:
    """Score EfficientNet-Lite0's last convolution on scikit-image's photographs; needs no download beyond packages.

    Args:
        out: Run folder to write; a finished demo in it is shown instead.
        progress: Show progress bars, where stderr is a terminal.
    """
    from psi_fast.demo import run_demo
    from psi_fast.present import show_scores

    show_scores(run_demo(out, progress=progress), out)


def env() -> None:
    """Show versions and devices, for a bug report."""
    from psi_fast.present import show_environment

    show_environment()


def _channel_slice(text: str | None) -> slice | None:
    if text is None:
        return None
    first, colon, stop = text.partition(":")
    try:
        return (
            slice(int(first) if first else None, int(stop) if stop else None)
            if colon
            else slice(int(first), int(first) + 1)
        )
    except ValueError as error:
        raise ConfigError(f"--channels must be first:stop, such as 0:256, got {text!r}") from error

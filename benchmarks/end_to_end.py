"""A whole run, stage by stage: images to scores through a real architecture, with the time and the memory of each stage.

    python benchmarks/end_to_end.py                     # on a GPU: 100,000 images, ResNet-50's layer4, ViT-B/32, 1000 draws
    python benchmarks/end_to_end.py --count 2000 --encoder classifier:efficientnet-lite:lite2 --draws 200 --patch image

Weights are random unless they install with a package: they serve for timing, not for findings. More images than there are
become turned, mirrored and negative ones, of which no two are alike. "from the bank" is the sum without decoding and without
loading networks.
"""

import argparse
import csv
import json
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import open_clip
import torch
from harness import RESULTS, commit, device_name, say, versions
from PIL import Image, ImageOps

import psi_fast
from psi_fast.environment import keep_freed_memory, pick_device
from psi_fast.image_set import ImageSet
from psi_fast.images import open_images

VIT = "ViT-B-32"
TURNS = [None, *Image.Transpose][:8]
COLUMNS = (
    *("run", "commit", "device", "threads", "versions", "network", "layer", "encoder", "images", "channels", "top_k"),
    *("draws", "crops", "precision", "stage", "seconds", "peak_memory_mib"),
)
PREPARING = ("open images", "load encoder", "concepts", "decoding", "trial of precisions")


def multiplied(images: ImageSet, count: int) -> ImageSet:
    """`count` images: those there are, then the same turned, mirrored and negative."""
    most = 2 * len(TURNS) * len(images)
    if count > most:
        raise SystemExit(f"--count is {count}, and {len(images)} images give {most} at most")

    def read(name: str) -> Image.Image:
        number = int(name)
        variant, row = divmod(number, len(images))
        image = images.load(row)
        turn = TURNS[variant % len(TURNS)]
        image = image if turn is None else image.transpose(turn)
        return ImageOps.invert(image) if variant >= len(TURNS) else image

    labels = None if images.labels is None else [int(images.labels[number % len(images)]) for number in range(count)]
    stamps = [f"{images.fingerprint} {number}" for number in range(count)]
    return ImageSet(
        [str(number) for number in range(count)], read, stamps, labels=labels, class_names=images.class_names
    )


def random_vit(folder: Path) -> str:
    """The spec of ViT-B/32 with seeded random weights, kept in `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(VIT, pretrained=None)
    path = folder / "random.pt"
    torch.save(model.state_dict(), path)
    return f"open_clip:{VIT}/{path}"


def main(arguments: list[str] | None = None) -> None:
    """Run, print the stages and add them to the file of this device."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--images", type=Path, default=Path("../shared/data/tiny-imagenet-200-val.zip"))
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--network", default="torchvision:resnet50@none")
    parser.add_argument("--layer", default="layer4")
    parser.add_argument("--encoder", help="default: ViT-B/32 with random weights")
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--patch", default="effective")
    parser.add_argument("--batch-size", type=int, default=256, help="on a GPU")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, help="CSV to add rows to; default: end_to_end.csv among the results")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    device = pick_device(options.device)
    source = open_images(options.images)
    images = (
        multiplied(source, options.count)
        if options.count > len(source)
        else open_images(options.images, max_images=options.count)
    )
    with TemporaryDirectory() as folder:
        encoder = options.encoder or random_vit(Path(folder))
        config = psi_fast.PSIConfig(
            top_k=options.top_k, draws=options.draws, patch=options.patch, batch_size=options.batch_size
        )
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        scores = psi_fast.score(
            options.network, options.layer, images, encoder=encoder, config=config, device=device.type, bank=folder
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    found = scores.manifest
    stages = found["seconds"]
    stages |= {
        "from the bank": sum(seconds for name, seconds in stages.items() if name not in PREPARING),
        "all": sum(stages.values()),
    }
    about = {
        "run": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "network": options.network,
        "layer": options.layer,
        "encoder": options.encoder or f"open_clip:{VIT} with random weights",
        "images": found["images"],
        "channels": found["channels"],
        "top_k": options.top_k,
        "draws": options.draws,
        "crops": found["distinct_crops"],
        "precision": f"{found['forward_passes']}; encoder {found['encoder_precision']}",
    }
    out = options.out or RESULTS / "end_to_end.csv"
    new = not out.exists()
    with out.open("a", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            rows.writeheader()
        rows.writerows(
            about | {"stage": name, "seconds": round(seconds, 3), "peak_memory_mib": round(peak)}
            for name, seconds in stages.items()
        )
    say(json.dumps(about | {"seconds": stages, "peak_memory_mib": round(peak)}, indent=2))


if __name__ == "__main__":
    main()

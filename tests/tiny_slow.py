"""A run in a process of its own that writes its state after every batch and takes its time, so that it can be killed."""

import os
import time
from dataclasses import replace
from types import SimpleNamespace

import tiny
from forks import serve
from torch import nn

import psi_fast
from psi_fast import embedding, shelf
from psi_fast.image_set import ImageSet

FILES = ("scores.parquet", "patches.parquet", "embeddings.safetensors", "distributions.safetensors")


class Slow(nn.Module):
    """Sleeps whenever it runs."""

    def __init__(self, inner, seconds, dies=None):
        super().__init__()
        self.inner = inner
        # in an object, so that how slow it is does not make it another network
        self.held = SimpleNamespace(seconds=seconds, dies=dies, home=os.getpid())

    def forward(self, x):
        time.sleep(self.held.seconds)
        if self.held.dies and os.getpid() != self.held.home and not os.path.exists(self.held.dies):
            open(self.held.dies, "x").close()
            os._exit(1)
        return self.inner(x)


class Encoder(tiny.TinyEncoder):
    """Sleeps for every batch; with `fails` its half precision overflows on the last images' crops."""

    precision = "bfloat16"

    def __init__(self, seconds=0.0, fails=False):
        super().__init__()
        self.seconds, self.fails = seconds, fails

    def at_precision(self, dtype):
        self.precision = str(dtype).removeprefix("torch.")
        return self

    def encode(self, batch):
        time.sleep(self.seconds)
        found = super().encode(batch)
        if self.precision == "bfloat16":
            found = found.bfloat16().float()
            if self.fails:
                red = (batch[:, 0] > 0.98).flatten(1).all(1) & (batch[:, 1:] < -0.98).flatten(1).all(1)
                found[red] = float("inf")
        return found


def score(
    out,
    seconds=0.0,
    *,
    labels=True,
    band=None,
    layers=("0", "2"),
    red=(),
    fails=False,
    share=None,
    workers=None,
    dies=None,
):
    """Scores of tiny's network; `seconds` is what each batch of images or crops takes longer.

    dies : a file that does not exist; the first other process that works on images makes it, and ends
    """
    images: ImageSet = tiny.image_set(96, labelled=labels, red=red)
    network = tiny.network()
    network.module[0] = Slow(network.module[0], seconds, dies)
    layers = [name.replace("0", "0.inner") for name in layers]
    network.name = "tiny"
    encoder = Encoder(seconds, fails)
    config = replace(tiny.CONFIG, band=band)
    found = psi_fast.score(
        network, layers, images, encoder=encoder, config=config, device="cpu", out=out, progress=False, share=share,
        workers=workers,
    )  # fmt: skip
    return found, encoder


def network():
    """tiny's network, slow, for the command."""
    found = tiny.network()
    found.module[0] = Slow(found.module[0], 0.05)
    return found


def run(out, seconds, case, cluster=None):
    """`score`, by workers of the Ray cluster of that address if there is one."""
    if cluster:
        case["workers"] = psi_fast.RayWorkers(cluster, 2, device="cpu")
    score(out, seconds, **case)
    return 0


if __name__ == "__main__":
    shelf.EVERY, shelf.SHARE, embedding.PART = 0.0, float("inf"), 16
    serve(run)

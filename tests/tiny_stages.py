"""Runs in processes of their own that tell of each step and take their time, so that a test can stop them in any stage."""

import functools
import inspect
import os
import time
from pathlib import Path

import tiny
from forks import serve
from test_text_banks import Tower

import psi_fast
from psi_fast import channel_parts, cli, crops, image_bank, mining, nulls, shelf, store, text_banks

FILES = store.FILES
PAUSE = 0.01
"""Seconds that a step takes."""
STAGES = ("concepts", "decoding", "mining", "embedding", "clusters", "nulls", "files")


def score(out, images):
    """A run of two layers with all stages, its squares beside `out`."""
    return psi_fast.score(
        tiny.network(), ["0", "2"], str(images), encoder=Tower(), config=tiny.CONFIG, device="cpu", out=out,
        bank=Path(out).parent / "banks", progress=False,
    )  # fmt: skip


def tell_steps(marks):
    """Have every stage write a line to the file `marks` at each of its steps, before and behind what it does there."""
    file = os.open(marks, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def step(stage):
        os.write(file, f"{stage}\n".encode())
        time.sleep(PAUSE)

    def called(module, name, stage):
        real = getattr(module, name)

        @functools.wraps(real)
        def telling(*arguments, **others):
            step(stage)
            found = real(*arguments, **others)
            step(stage)
            return found

        @functools.wraps(real)
        def telling_each(*arguments, **others):
            for item in real(*arguments, **others):
                step(stage)
                yield item

        setattr(module, name, telling_each if inspect.isgeneratorfunction(real) else telling)

    def written(module, name, stage):
        real = getattr(module, name)

        def telling(path, write):
            def write_and_tell(place):
                write(place)
                step(stage)  # written, but not under its name

            real(path, write_and_tell)
            step(stage)

        setattr(module, name, telling)

    called(image_bank, "squared", "decoding")
    called(Tower, "concepts", "concepts")
    called(mining, "activations", "mining")
    called(crops, "prepared", "embedding")
    called(channel_parts, "cluster_patches", "clusters")
    called(nulls, "_blocks", "nulls")
    written(store, "write_whole", "files")
    written(text_banks, "write_shared", "concepts")


def run(order):
    """What a process does, and its exit code."""
    if "cache" in order:
        os.environ["PSI_FAST_CACHE"] = order["cache"]
    if "marks" in order:
        tell_steps(order["marks"])
    if "argv" not in order:
        shelf.EVERY, shelf.SHARE = 0.0, float("inf")
        score(order["out"], order["images"])
        return 0
    with open(order["stderr"], "w") as own, open(os.devnull, "w") as nowhere:
        os.dup2(own.fileno(), 2)
        os.dup2(nowhere.fileno(), 1)
    try:
        cli.main(order["argv"])
    except SystemExit as stop:
        return stop.code or 0
    return 0


if __name__ == "__main__":
    store.code_fingerprint = lambda experiments=False: "this code"
    serve(run)

"""Finished runs of tiny things, for what reads them."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import tiny

from psi_fast import store
from psi_fast.details import open_details

LAYERS = ["1", "3"]
DEAD = 6
"""Row of channel 1 of layer "3"."""


def two_layers(folder, images):
    """A run of two layers, of which the second has a dead channel, on the images of a folder."""
    tiny.score(tiny.conv_network(tiny.Kill(1)), LAYERS, str(images), out=folder)
    return open_details(folder)


def with_swaps(details, row, count=5):
    """The same run with a table of patch-swap for one channel."""
    layer, channel = details.scores.table.loc[row, ["layer", "channel"]]
    rng = np.random.default_rng(0)
    change = rng.normal(size=count)
    table = pd.DataFrame(
        {
            "layer": layer, "channel": channel, "hosts": 16, "condition": list("abcde"), "change_sd": change,
            "low": change - 0.3, "high": change + 0.1,
        }
    )  # fmt: skip
    found = replace(details)
    found.__dict__["experiments"] = [type("Outcome", (), {"name": "patch-swap", "table": table})]
    return found, table


def seal(folder):
    """Write the checksums of a run whose files a test has changed."""
    path = folder / store.MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest[store.CHECKSUMS] = {name: store._checksum(folder / name) for name in store.FILES}
    manifest[store.CHECKSUMS][store.MANIFEST] = store._seal(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def move_pictures(folder):
    """Have a run believe that its images, a folder `pictures`, lie elsewhere."""
    path = folder / store.MANIFEST
    path.write_text(path.read_text(encoding="utf-8").replace("pictures", "gone"), encoding="utf-8")
    seal(folder)

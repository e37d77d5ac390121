"""What a report's folder holds, read back without a browser."""

import json
import re
from functools import cache

import numpy as np
from PIL import Image


def scripts(folder):
    """What each script below data/ hands to the page, by the name it gives; every file is read."""
    found = {}
    for path in sorted((folder / "data").rglob("*.js")):
        name, text = re.fullmatch(r'psiFast\.receive\("([^"]+)",(.*)\);\n', path.read_text(encoding="ascii")).groups()
        assert name == path.relative_to(folder / "data").with_suffix("").as_posix()
        assert "<" not in text
        found[name] = json.loads(text)
    return found


class Read:
    """A report: `index`, `table` and, of each layer, its channels with what their files say."""

    def __init__(self, page):
        self.folder = page.parent
        self.data = scripts(self.folder)
        self.index, self.table = self.data["index"], self.data["table"]

    def layer(self, key):
        """What the index says of a layer."""
        return next(own for own in self.index["layers"] if own["key"] == key)

    def channels(self, key):
        """The channels of a layer in order; images and classes by name instead of by number."""
        layer, found = self.layer(key), []
        for i, first in enumerate(layer["shards"]):
            part = self.data[f"{layer['folder']}/channels-{i:03d}"]
            assert part["first"] == first == len(found)
            for one in part["channels"]:
                names = {
                    "image": [part["images"][name] for name in one["patches"]["image"]],
                    "label": [part["labels"][name] if name >= 0 else None for name in one["patches"]["label"]],
                }
                found.append(one | {"patches": one["patches"] | names})
        assert len(found) == layer["channels"]
        return found

    def tile(self, sheets, name, place, number):
        """A tile's pixels [side, side, 3], float: `number` in the sheet of the channel (or picture) `place`.

        `sheets` is what the index says of them, `name` where they lie below data/, such as l0/patches.
        """
        sheet = max(i for i, first in enumerate(sheets["firsts"]) if first <= place)
        pixels = self._sheet(f"{name}-{sheet:03d}.webp")
        side, (line, column) = sheets["tile"], divmod(number, sheets["columns"])
        assert pixels.shape[1] == side * sheets["columns"]
        return pixels[line * side : (line + 1) * side, column * side : (column + 1) * side]

    @cache  # noqa: B019  # as long as the tests last
    def _sheet(self, name):
        with Image.open(self.folder / "data" / name) as image:
            return np.asarray(image.convert("RGB"), dtype=float)

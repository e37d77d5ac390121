"""Networks, an encoder and images small enough that a run takes a second; importable as specs such as `tiny:network`."""

import re
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import nn

import psi_fast
from psi_fast import Network, Preprocess, PSIConfig, cli
from psi_fast.image_bank import open_bank
from psi_fast.image_set import ImageSet
from psi_fast.progress import Progress

PREPROCESS = Preprocess(size=32, resize=32, interpolation="bilinear")
CONFIG = PSIConfig(top_k=12, k_max=3, n_init=1, draws=9, patch=0.5, batch_size=8, precision="float32")
EFFECTIVE = replace(CONFIG, patch="effective")
SMALL = Preprocess(size=32, resize=36)
SETTINGS = {
    "--top-k": "12",
    "--k-max": "3",
    "--n-init": "1",
    "--draws": "9",
    "--patch": "0.5",
    "--batch-size": "8",
    "--precision": "float32",
}
"""CONFIG as flags of the command."""
LAYER = "2"
"""The map that most tests mine: 6 channels on 16 x 16 positions."""

SCORE_COLUMNS = [
    *(
        "layer",
        "channel",
        "psi",
        "log_psi",
        "p",
        "q",
        "k",
        "cluster_sizes",
        "concepts",
        "max_activation",
        "selectivity",
    ),
    *("random_percentile", "flags", "components"),
    *(name + suffix for name in "SQD" for suffix in ("", "_null_mean", "_null_sd", "_z", "_hat", "_p")),
    "S_z_independent",
    *("clarity", "polysemanticity", "monosemanticity", "class_selectivity"),
]
PATCH_COLUMNS = ["layer", "channel", "rank", "image", "box", "activation", "label", "cluster"]


class Quantise(nn.Module):
    """Rounds to multiples of 1/4, so that ties abound."""

    def forward(self, x):
        return (x * 4).round() / 4


class Shift(nn.Module):
    """Adds a number to every channel."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x + self.by


class Bfloat16(nn.Module):
    """Loses the bits that bfloat16 lacks, so that values a rank apart tie."""

    def forward(self, x):
        return x.bfloat16()


class Kill(nn.Module):
    """Makes one channel the same everywhere."""

    def __init__(self, channel, value=0.0):
        super().__init__()
        self.channel, self.value = channel, value

    def forward(self, x):
        x = x.clone()
        x[:, self.channel] = self.value
        return x


class Poisoned(nn.Module):
    """A convolution, "body"; `value` in one position of one channel for images that are plain red, in layer "poison"."""

    class Put(nn.Module):
        """Puts the value where the mask says."""

        def __init__(self, value, channel):
            super().__init__()
            self.value, self.channel = value, channel

        def forward(self, x, red):
            x = x.clone()
            x[:, self.channel, 3, 4] = torch.where(red, self.value, x[:, self.channel, 3, 4])
            return x

    def __init__(self, value, channel):
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.poison = self.Put(value, channel)

    def forward(self, x):
        red = (x[:, 0] > 1.9) & (x[:, 1] < -1.9) & (x[:, 2] < -1.7)
        return self.poison(self.body(x), red.flatten(1).all(1))


class Tokens(nn.Module):
    """[B, C, H, W] -> [B, 1 + H * W, C], the mean as a class token in front."""

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        return torch.cat((x.mean(1, keepdim=True), x), 1)


class Mean(nn.Module):
    """[B, T, C] -> [B, C]."""

    def forward(self, x):
        return x.mean(1)


class Boom(nn.Module):
    """Counts its runs, and raises once armed."""

    def __init__(self):
        super().__init__()
        self.runs = 0
        self.armed = False

    def forward(self, x):
        self.runs += 1
        if self.armed:
            raise LookupError("boom")
        return x


class Net(nn.Module):
    """A small network with every case: a map, a layer run twice, a tuple, a vector, work behind, a swallowing except."""

    def __init__(self):
        super().__init__()
        self.before = Boom()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.pair = nn.LSTM(8, 5, batch_first=True)
        self.behind = Boom()
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        try:
            x = self.relu(self.norm(self.conv(self.before(x))))
        except KeyError:
            x = x.new_zeros(len(x), 6, 16, 16)
        x = self.relu(self.conv2(self.drop(x)))
        self.pair(x.flatten(2).transpose(1, 2))
        return self.head(self.behind(x).mean((2, 3)))


def seeded(make, seed=0):
    """`make()` with weights that depend on the seed alone, and the caller's generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def conv_network(*behind, name="tiny", width=6):
    """Two convolutions, then `behind`; LAYER is the second convolution, "3" the first module behind it."""

    def make():
        return nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, width, 3, stride=2, padding=1), *behind
        )

    return Network(seeded(make), PREPROCESS, name)


def network():
    """A network with maps only."""
    return conv_network(nn.ReLU())


def attention_network():
    """A patch convolution "0", tokens with one in front "1", a transformer's layer "2", the mean "3" and a vector "4"."""

    def make():
        attention = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True, norm_first=True)
        return nn.Sequential(nn.Conv2d(3, 6, 8, 8), Tokens(), attention, Mean(), nn.Linear(6, 4))

    return Network(seeded(make), PREPROCESS, "tiny-attention")


def dead_network():
    """Layer "3" has a channel that never varies."""
    return conv_network(Kill(1, 0.5))


def poisoned_network(value=torch.nan, channel=2):
    """Layer "poison" is `value` in one channel for a plain red image."""
    return Network(seeded(lambda: Poisoned(value, channel)), PREPROCESS, "poisoned")


def nan_network():
    """Every parameter is NaN."""
    made = network()
    for parameter in made.module.parameters():
        nn.init.constant_(parameter, torch.nan)
    return made


def bracket_network():
    """A network whose name looks like the markup of a terminal library."""
    made = network()
    made.name = "tiny[/b][red]"
    return made


def no_network():
    """What a function that makes no network gives."""
    return 3


def classifier_module():
    """A classifier of 7 classes that ends in a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(144, 7),
    )


def classifier():
    """The classifier as a network, for the encoder spec `classifier:tiny:classifier`."""
    return Network(seeded(classifier_module, 1), PREPROCESS, "tiny-classifier")


def markup_classifier():
    """The classifier with class names that look like markup."""
    made = classifier()
    made.class_names = ["[red]", "[/red]", "a [b", "c]", "[link=x]", "[[", "[/]"]
    return made


class TinyEncoder:
    """Patch means through a fixed matrix; counts what it is asked to do."""

    name = "tiny-encoder"
    preprocess = Preprocess(8, 8, (0.5,) * 3, (0.5,) * 3, "bilinear")

    def __init__(self, spoil=None, names=("red", "green", "blue", "dark", "light")):
        self.warnings = []
        self.encoded, self.batches = 0, []
        self._spoil = spoil
        self._names = list(names)
        generator = torch.Generator().manual_seed(5)
        self._weight = torch.randn(192, 10, generator=generator)
        self._text = torch.randn(len(self._names), 10, generator=generator)

    def encode(self, batch):
        self.encoded += len(batch)
        self.batches.append(len(batch))
        result = torch.stack([row.flatten() @ self._weight for row in batch])  # row by row: no bit depends on the batch
        if self._spoil is not None:
            red = (batch[:, 0] > 0.98).flatten(1).all(1) & (batch[:, 1:] < -0.98).flatten(1).all(1)
            result[red] = self._spoil
        return result

    def concepts(self, vocabulary, progress=None):
        if vocabulary is None:
            return self._names, self._text
        generator = torch.Generator().manual_seed(6)
        return list(vocabulary.concepts), torch.randn(len(vocabulary.concepts), 10, generator=generator)

    def fingerprint(self):
        return "tiny"

    def to(self, device):
        return self


def picture(number, size=(40, 34)):
    """A picture whose class is `number % 4`: stripes, squares, a gradient or noise, with some noise everywhere."""
    rng = np.random.default_rng(1000 + number)
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    period = 3 + rng.integers(4)
    base = (
        (x // period) % 2,
        ((x // period) + (y // period)) % 2,
        (x + y) / (size[0] + size[1]),
        rng.random((size[1], size[0])),
    )[number % 4]
    colour = 0.4 + 0.6 * rng.random(3)
    pixels = 255 * (0.85 * base[..., None] * colour + 0.15 * rng.random((size[1], size[0], 3)))
    return Image.fromarray(pixels.astype(np.uint8))


def sizes(number):
    """Width and height of picture `number`, not all alike."""
    return ((40, 34), (33, 50), (32, 32), (47, 41), (64, 36))[number % 5]


def image_set(count=40, labelled=True, red=()):
    """`count` pictures as an ImageSet, those numbered in `red` plain red."""

    def read(name):
        number = int(name.removeprefix("picture-"))
        if number in red:
            return Image.new("RGB", sizes(number), (255, 0, 0))
        return picture(number, sizes(number))

    names = [f"picture-{i}" for i in range(count)]
    classes = ["stripes", "squares", "gradient", "noise"]
    labels = [i % 4 for i in range(count)] if labelled else None
    stamps = [f"{i} red" if i in red else str(i) for i in range(count)]
    return ImageSet(names, read, stamps, labels=labels, class_names=classes if labelled else None)


def bank(images, side=32):
    """The images decoded."""
    return open_bank(images, side, side=side, progress=Progress(False))


class Pictures:
    """The pictures as a map-style dataset of (image, label)."""

    def __init__(self, count=40):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        return picture(index, sizes(index)), index % 4


def write_pictures(root, count=24, classes=True):
    """The pictures below `root`, a folder a class, or all in one folder."""
    for i in range(count):
        path = root / (f"class{i % 4}" if classes else ".") / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, sizes(i)).save(path)
    return root


def score(model=None, layer=LAYER, images=None, **changes):
    options = {"encoder": TinyEncoder(), "config": CONFIG, "device": "cpu", "progress": False} | changes
    return psi_fast.score(model or network(), layer, images if images is not None else image_set(), **options)


def score_flags(images, out, /, **changes):
    """`psi-fast score` on tiny things as words, with flags changed (None: left out) or added."""
    flags = {
        "--network": "tiny:network",
        "--layer": "2",
        "--images": images,
        "--encoder": "classifier:tiny:classifier",
        "--out": out,
        "--device": "cpu",
        **SETTINGS,
    }
    flags |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return ["score", *(part for flag, value in flags.items() if value is not None for part in (flag, value))]


def run(*arguments):
    """Exit code of the command, run in this process."""
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def one_line(capsys):
    out, err = capsys.readouterr()
    *stages, error, end = err.split("\n")
    assert all(re.fullmatch(r" *\d+\.\d s  [a-z][a-z -]*", line) for line in stages), err
    assert error.startswith("psi-fast: error: ")
    assert (out, end) == ("", "")
    return error

"""Concept names that a text encoder turns into the concept bank."""

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from psi_fast.errors import InputError, ModelError, nearest

_BUILT_IN = ("imagenet", "open-1602")

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of {}.",
    "a close-up photo of a {}.",
    "a cropped photo of a {}.",
    "a blurry photo of a {}.",
    "a small picture of a {}.",
    "a bright photo showing {}.",
    "a dark photo showing {}.",
    "a detail that shows {}.",
    "part of an image with {}.",
    "an image of something {}.",
)
"""Prompts with a place for one concept, for CLIP encoders.

An encoder embeds all of them and averages, so that no single wording decides. The concepts are textures, colours and
actions as well as objects, hence the wordings without an article; crops around a receptive field are often small,
blurred or a detail of a thing, hence those that say so.
"""

# torchvision's names that are the same but for case, or that name the wrong thing on their own; by class index.
_SAYS_WHICH = {
    134: "crane bird",
    264: "Cardigan Welsh corgi",
    474: "cardigan sweater",
    517: "construction crane",
    638: "maillot",
    639: "tank suit",
    836: "sunglass lens",
    837: "pair of sunglasses",
}


@dataclass(frozen=True)
class Vocabulary:
    """Named concepts in a fixed order; `kinds` gives the kind of each (such as textures) if the source does."""

    name: str
    concepts: tuple[str, ...]
    kinds: tuple[str, ...] | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the concepts in order; its name, which picks the templates, is told apart beside it."""
        return hashlib.sha256("\n".join(self.concepts).encode("utf-8")).hexdigest()


def load_vocabulary(spec: str) -> Vocabulary:
    """The vocabulary called `spec`.

    Parameters
    ----------
    spec : str
        "imagenet" (the 1000 class names), "open-1602" (1602 concepts of ten kinds: objects, animals, scenes, parts,
        materials, textures, colours, shapes, patterns, actions), or the path of a UTF-8 text file with one concept a
        line. In a file, lines that start with '#' and blank lines are ignored, and a line such as [colours] gives the
        kind of the lines after it.

    Raises
    ------
    ModelError
        `spec` is neither a known name nor a file.
    InputError
        The file is empty, not UTF-8, holds a concept twice (upper and lower case count as the same), or has concepts
        before its first kind.
    """
    if spec == "imagenet":
        return Vocabulary(spec, tuple(imagenet_names()))
    if spec == "open-1602":
        text = resources.files("psi_fast").joinpath("data/open_1602.txt").read_text(encoding="utf-8")
        return Vocabulary(spec, *_parse(text, spec))
    path = Path(spec)
    try:
        there = path.is_file()
    except OSError as error:  # a name too long, a folder that cannot be entered
        raise InputError(f"cannot read vocabulary file {spec!r}: {error.strerror}") from error
    if not there:
        raise ModelError(
            f"vocabulary {spec!r} is neither {' nor '.join(map(repr, _BUILT_IN))} nor a text file"
            f"{nearest(spec, _BUILT_IN)}; pass a file with one concept a line"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a byte-order mark first
    except UnicodeDecodeError as error:
        raise InputError(f"vocabulary file {spec!r} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read vocabulary file {spec!r}: {error.strerror}") from error
    return Vocabulary(spec, *_parse(text, spec))


def imagenet_names() -> list[str]:
    """The 1000 ImageNet-1k class names in the order of classifier outputs, distinct even without upper case.

    They come from the metadata that torchvision publishes with its weights; no weights are loaded.
    """
    # slow to import, and needed for this vocabulary only
    from torchvision.models import ResNet50_Weights  # pyright: ignore[reportMissingTypeStubs]

    names = list(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])
    for index, name in _SAYS_WHICH.items():
        names[index] = name
    return names


def numbered(number: int | str) -> str:
    """What a class is called of which only the number is known."""
    return f"class {number}"


def is_numbered(name: str) -> bool:
    """Whether `numbered` gave the name, which then tells nothing of the class."""
    return re.fullmatch(r"class -?\d+", name) is not None


def _parse(text: str, source: str) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    concepts: list[str] = []
    kinds: list[str | None] = []
    first_line: dict[str, int] = {}
    kind = None
    for number, raw in enumerate(text.splitlines(), start=1):
        line = " ".join(raw.split())
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            kind = line[1:-1].strip()
            continue
        key = line.casefold()
        if key in first_line:
            raise InputError(
                f"vocabulary {source!r} holds {line!r} twice, on lines {first_line[key]} and {number}; remove one"
            )
        first_line[key] = number
        concepts.append(line)
        kinds.append(kind)
    if not concepts:
        raise InputError(f"vocabulary {source!r} holds no concepts; write one concept a line")
    known = [k for k in kinds if k is not None]
    if known and len(known) < len(kinds):
        raise InputError(f"vocabulary {source!r}: {concepts[0]!r} stands before the first [kind]; move it below one")
    return tuple(concepts), tuple(known) if known else None

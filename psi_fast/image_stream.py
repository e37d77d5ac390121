"""Images decoded when they are needed and kept nowhere, for sets whose bank would fit on no disk."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch

from psi_fast.image_bank import Rows, Squares, from_square, side_for, squared
from psi_fast.image_set import ImageSet
from psi_fast.prefetch import prefetch

STREAM = "stream"
"""What `bank` is given for this."""
AHEAD = 64
"""Images that are decoded before they are asked for, at most."""


class ImageStream:
    """What an ImageBank is to mining and crops, without the bank: the same squares, decoded anew in each pass.

    Attributes
    ----------
    sizes : [N, 2] int64
        Width and height of the originals in px; 0 for an image that was not decoded yet.
    side : int
        Side of the squares in px.
    """

    def __init__(self, images: ImageSet, side: int) -> None:
        self.sizes = np.zeros((len(images), 2), dtype=np.int64)
        self.side = side
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def walk(self, parts: Sequence[Rows]) -> Generator[tuple[Squares, Rows], None, None]:
        """For each part of the images, squares that hold it, and its rows in them.

        Images are decoded in threads, in order, at most `AHEAD` early; one that the next part needs as well is kept for it,
        so parts sorted by image decode each once.

        Raises
        ------
        InputError
            An image cannot be decoded.
        """
        new = (row for _, rows in self._plan(parts) for row in rows)
        with closing(prefetch(self._square, new, ahead=AHEAD)) as squares:
            held: dict[int, np.ndarray] = {}
            for (kept, added), rows in zip(self._plan(parts), parts, strict=True):
                held = {row: held[row] for row in kept} | {row: next(squares) for row in added}
                order = sorted(held)
                place = slice(None) if isinstance(rows, slice) else np.searchsorted(order, rows)
                yield Squares(np.stack([held[row] for row in order])), place  # pyright: ignore[reportReturnType]  # as `rows`

    def read(self, rows: slice | np.ndarray, device: torch.device) -> torch.Tensor:
        """The images `rows` on `device`, uint8 [B, S, S, 3]."""
        parts = [np.arange(len(self))[rows]]
        ((squares, places),) = self.walk(parts)
        return squares.read(places, device)

    def to_image(self, boxes: np.ndarray, of: np.ndarray) -> np.ndarray:
        """Boxes [..., 4] (x0, y0, x1, y1) in px of the squares as boxes of the originals `of` [...], float64 in their px."""
        unknown = np.unique(of[(self.sizes[of] == 0).any(-1)]).tolist()
        with closing(prefetch(self._square, unknown, ahead=AHEAD)) as squares:
            for _ in squares:
                pass
        return from_square(boxes, self.side, self.sizes[of])

    def _plan(self, parts: Sequence[Rows]) -> Iterator[tuple[list[int], list[int]]]:
        """For each part, the images that the part before has as well, and the others; each ascending and once."""
        before: set[int] = set()
        for rows in parts:
            now = range(*rows.indices(len(self))) if isinstance(rows, slice) else np.unique(rows).tolist()
            yield [row for row in now if row in before], [row for row in now if row not in before]
            before = set(now)

    def _square(self, row: int) -> np.ndarray:
        image = self._images.load(row)
        self.sizes[row] = image.size
        return squared(image, self.side)


def open_stream(images: ImageSet, largest: int, *, side: int | None = None) -> ImageStream:
    """The images as a stream of squares; `largest` and `side` as for `open_bank`.

    Raises
    ------
    InputError
        An image cannot be decoded.
    ConfigError
        `side` is out of range.
    """
    return ImageStream(images, side_for(images, largest, side))

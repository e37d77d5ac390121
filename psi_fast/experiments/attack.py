"""Small changes of an image's pixels that move its patch in the encoder's space and leave a channel's activation alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from psi_fast.activation_tap import ActivationTap
from psi_fast.encoders import Encoder, SmoothEncoder
from psi_fast.errors import InputError, NotFiniteError
from psi_fast.preprocess import Preprocess

AT_ONCE = 8
"""Images of one gradient: few enough that activations stay in a processor's cache."""
RESTORING = 4
"""Last steps, which do nothing but bring the activation back."""
NEAR = 0.02
"""How far below a map's maximum, relative to it, places move with it: one lowered alone would leave the next one up."""


@dataclass(frozen=True)
class Sight:
    """A channel and an encoder as gradients see them: in float32, through resizing that does not round to whole numbers.

    tap, channel : the unit; a tap of float32
    encoder : the space that patches lie in; one that gradients can be taken through
    preprocess : how the encoder is fed
    """

    tap: ActivationTap
    channel: int
    encoder: SmoothEncoder
    preprocess: Preprocess

    def map(self, pixels: torch.Tensor) -> torch.Tensor:
        """The channel's map [B, P] float32 of images [B, S, S, 3] float32 within 0..255; called inside `with self.tap`."""
        return self.tap(self.tap.network.preprocess.smooth(pixels))[:, self.channel]

    def embedded(self, pixels: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
        """Unit embeddings [B, d] float32 of the patches [B, 4] int64 of such images."""
        crops = [
            self.preprocess.smooth(image[None, y0:y1, x0:x1])
            for image, (x0, y0, x1, y1) in zip(pixels, boxes.tolist(), strict=True)
        ]
        return normalize(self.encoder.encode_smooth(torch.cat(crops)), dim=1)

    def measured(self, pixels: torch.Tensor, boxes: np.ndarray) -> dict[str, torch.Tensor]:
        """Embeddings `rows` [K, d] of the patches and the channel's `map` [K, P], float32 on the CPU.

        Raises
        ------
        NotFiniteError
            An embedding or an activation is not finite.
        """
        rows, maps = [], []
        with self.tap, torch.no_grad():
            for start in range(0, len(pixels), AT_ONCE):
                part = slice(start, start + AT_ONCE)
                shown = pixels[part].to(self.tap.device)
                rows.append(self.embedded(shown, boxes[part]).cpu())
                maps.append(self.map(shown).cpu())
        found = {"rows": torch.cat(rows), "map": torch.cat(maps)}
        if not all(part.isfinite().all() for part in found.values()):
            raise NotFiniteError(
                f"adversarial: an embedding or an activation of channel {self.channel} of {self.tap.layer} is not finite in "
                "float32; check the weights of network and encoder"
            )
        return found


@dataclass(frozen=True)
class Attack:
    """What is attacked, and how hard.

    sight : the unit whose activation stays, and the space that patches move in
    centre : [d] float32 that is subtracted from unit embeddings, 0 without centring
    direction : [d] float32, where patches go, or away from
    budget : largest change of a pixel's value, whose range is 0..255
    steps : gradients of the embedding per image; RESTORING more of the activation follow
    """

    sight: Sight
    centre: torch.Tensor
    direction: torch.Tensor
    budget: float
    steps: int

    def __call__(self, pixels: torch.Tensor, boxes: np.ndarray, aims: np.ndarray, held: torch.Tensor) -> torch.Tensor:
        """The images, changed.

        Parameters
        ----------
        pixels : [K, S, S, 3] float32 within 0..255
        boxes : [K, 4] int64 (x0, y0, x1, y1), each image's patch in px; nothing outside it changes
        aims : [K] float32, 1 to go along `direction` and -1 to go against it
        held : [K] float32, the activation that stays: the maximum of the map that `Sight.measured` has

        Returns
        -------
        torch.Tensor
            [K, S, S, 3] float32 within 0..255 on the CPU, not rounded. Images do not depend on one another.
        """
        found = []
        with self.sight.tap, torch.inference_mode(False), torch.enable_grad():
            for start in range(0, len(pixels), AT_ONCE):
                part = slice(start, start + AT_ONCE)
                found.append(self._changed(pixels[part], boxes[part], aims[part], held[part]))
        return torch.cat(found)

    def _changed(self, pixels: torch.Tensor, boxes: np.ndarray, aims: np.ndarray, held: torch.Tensor) -> torch.Tensor:
        """The same for as many images as go at once.

        Every step goes along the sign of the gradient of the embedding, then to where the activation, by its own gradient, is
        as before (a Gauss-Newton step on the constraint), then back into the budget. Steps get shorter.
        """
        clean = pixels.to(self.sight.tap.device)
        inside = _inside(boxes, clean)
        aim, held = (part.to(clean.device) for part in (torch.from_numpy(aims), held))

        def moved(shown: torch.Tensor) -> torch.Tensor:
            rows = normalize(self.sight.embedded(shown, boxes) - self.centre.to(shown.device), dim=1)
            return aim * (rows @ self.direction.to(shown.device))

        change = torch.zeros_like(clean)
        for step in range(self.steps + RESTORING):
            move = torch.zeros_like(clean)
            if step < self.steps:
                pace = 2 * self.budget * (self.steps - step) / (self.steps * (self.steps + 1))
                move = 1.25 * pace * _gradient(moved, clean + change)[1].sign() * inside
            value, pull = self._peak(clean + change, held if step >= self.steps else None)
            drift = value - held + _inner(pull * inside, move)
            # pixels that would leave the budget, or the range of pixels, cannot help to bring the activation back
            wanted = change + move - drift[:, None, None, None] * pull
            free = inside * (wanted.abs() <= self.budget) * (clean + wanted >= 0) * (clean + wanted <= 255)
            free = torch.where(_inner(pull * free, pull)[:, None, None, None] > 0, free, inside)
            back = pull * free / _inner(pull * free, pull).clamp_min(1e-12)[:, None, None, None]
            change = (change + move - drift[:, None, None, None] * back).clamp(-self.budget, self.budget)
            change = (clean + change).clamp(0, 255) - clean
        return (clean + change).cpu()

    def _peak(self, shown: torch.Tensor, held: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The activations [B] of images, and gradients [B, ...] along which they change, with all places near the maximum.

        The nearer the activations are to those that are held [B], the fewer places take part: in the end the largest alone.
        """
        shown = shown.detach().requires_grad_()
        maps = self.sight.map(shown)
        value = maps.detach().amax(1)
        width = NEAR * value.abs()
        if held is not None:
            width = width.minimum((value - held).abs() / 2)
        weights = ((maps.detach() - value[:, None]) / width.clamp_min(1e-12)[:, None]).softmax(1)
        return value, torch.autograd.grad((weights * maps).sum(), shown)[0]


def smooth_encoder(encoder: Encoder) -> SmoothEncoder:
    """The encoder itself, if gradients can be taken through it.

    Raises
    ------
    InputError
        They cannot.
    """
    if not isinstance(encoder, SmoothEncoder):
        raise InputError(
            f"adversarial patches take gradients through the encoder, and {encoder.name} has no method encode_smooth(batch) "
            "that lets them through; add one, or use a classifier: or open_clip: encoder"
        )
    return encoder


def _gradient(
    function: Callable[[torch.Tensor], torch.Tensor], shown: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [B] of the images [B, ...], and each one's gradient [B, ...]."""
    shown = shown.detach().requires_grad_()
    value = function(shown)
    return value.detach(), torch.autograd.grad(value.sum(), shown)[0]


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products [B] of each image's pixels."""
    return (a * b).flatten(1).sum(1)


def _inside(boxes: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """1 in each image's box and 0 elsewhere, [B, S, S, 1] float32."""
    x0, y0, x1, y1 = torch.from_numpy(boxes).to(like.device).T[:, :, None, None]
    rows, columns = (
        torch.arange(like.shape[1], device=like.device)[shape] for shape in ((None, slice(None), None), (None, None))
    )
    return ((rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)).float()[..., None]

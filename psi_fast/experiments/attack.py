"""Small changes of an image's pixels that move its patch in the encoder's space and leave a channel's activation alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from psi_fast.activation_tap import ActivationTap
from psi_fast.encoders import Encoder, SmoothEncoder
from psi_fast.errors import InputError
from psi_fast.preprocess import Preprocess

AT_ONCE = 8
"""Images of one gradient: few enough that activations stay in a processor's cache."""
RESTORING = 2
"""Last steps, which do nothing but bring the activation back."""


@dataclass(frozen=True)
class Attack:
    """What is attacked, and how hard.

    tap, channel : the unit whose activation stays
    encoder : the space that patches move in; one that gradients can be taken through
    centre : [d] float32 that is subtracted from unit embeddings, 0 without centring
    direction : [d] float32, where patches go, or away from
    budget : largest change of a pixel's value, whose range is 0..255
    steps : gradients per image before RESTORING more
    """

    tap: ActivationTap
    channel: int
    encoder: SmoothEncoder
    preprocess: Preprocess
    centre: torch.Tensor
    direction: torch.Tensor
    budget: float
    steps: int

    def __call__(
        self, pixels: torch.Tensor, boxes: np.ndarray, positions: np.ndarray, aims: np.ndarray
    ) -> torch.Tensor:
        """The images, changed.

        Parameters
        ----------
        pixels : [K, S, S, 3] uint8
        boxes : [K, 4] int64 (x0, y0, x1, y1), each image's patch in px; nothing outside it changes
        positions : [K] int64, where the activation is held
        aims : [K] float32, 1 to go along `direction` and -1 to go against it

        Returns
        -------
        torch.Tensor
            [K, S, S, 3] uint8 on the CPU. Images do not depend on one another.
        """
        found = []
        with self.tap, torch.inference_mode(False), torch.enable_grad():
            for start in range(0, len(pixels), AT_ONCE):
                part = slice(start, start + AT_ONCE)
                found.append(self._changed(pixels[part], boxes[part], positions[part], aims[part]))
        return torch.cat(found)

    def _changed(
        self, pixels: torch.Tensor, boxes: np.ndarray, positions: np.ndarray, aims: np.ndarray
    ) -> torch.Tensor:
        """The same for as many images as go at once.

        Every step goes along the sign of the gradient of the embedding, then to where the activation, by its own gradient, is
        as before (a Gauss-Newton step on the constraint), then back into the budget. Steps get shorter.
        """
        clean = pixels.to(self.tap.device).float()
        inside = _inside(boxes, clean)
        aim, place = (torch.from_numpy(part).to(clean.device) for part in (aims, positions))
        rows = torch.arange(len(clean), device=clean.device)

        def activation(shown: torch.Tensor) -> torch.Tensor:
            return self.tap(self.tap.network.preprocess.smooth(shown))[rows, self.channel, place]

        def moved(shown: torch.Tensor) -> torch.Tensor:
            return aim * (self._embedded(shown, boxes) @ self.direction.to(clean.device))

        with torch.no_grad():
            start = activation(clean)
        change = torch.zeros_like(clean)
        for step in range(self.steps + RESTORING):
            move = torch.zeros_like(clean)
            if step < self.steps:
                pace = 2 * self.budget * (self.steps - step) / (self.steps * (self.steps + 1))
                move = 1.25 * pace * _gradient(moved, clean + change)[1].sign() * inside
            value, pull = _gradient(activation, clean + change)
            drift = value - start + _inner(pull * inside, move)
            # pixels that would leave the budget, or the range of pixels, cannot help to bring the activation back
            wanted = change + move - drift[:, None, None, None] * pull
            free = inside * (wanted.abs() <= self.budget) * (clean + wanted >= 0) * (clean + wanted <= 255)
            free = torch.where(_inner(pull * free, pull)[:, None, None, None] > 0, free, inside)
            back = pull * free / _inner(pull * free, pull).clamp_min(1e-12)[:, None, None, None]
            change = (change + move - drift[:, None, None, None] * back).clamp(-self.budget, self.budget)
            change = (clean + change).clamp(0, 255) - clean
        return (clean + change).round().to(torch.uint8).cpu()

    def _embedded(self, shown: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
        """Unit centred embeddings [B, d] of the patches."""
        crops = [
            self.preprocess.smooth(image[None, y0:y1, x0:x1])
            for image, (x0, y0, x1, y1) in zip(shown, boxes.tolist(), strict=True)
        ]
        found = normalize(self.encoder.encode_smooth(torch.cat(crops)), dim=1)
        return normalize(found - self.centre.to(found.device), dim=1)


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

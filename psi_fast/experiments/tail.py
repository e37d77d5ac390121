"""A network's copy from one layer on: what reaches the layer is computed once, and what follows can be trained."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from typing import Any

import torch
from torch import nn

from psi_fast.attention_heads import HEADS
from psi_fast.errors import InputError
from psi_fast.networks import Network
from psi_fast.unit_layout import layout_of

BLANK = 32
"""Side in px of the blank images that run in front of the layer, where the network takes such."""
EXACT = 1e-3
"""Largest difference of the logits, in their standard deviations."""


class _Stop(BaseException):
    """Ends a forward pass at the layer; no Exception, so that a network's own `except Exception` lets it pass."""


class Tail:
    """A copy of a network, of which the layer and what follows it are computed from what reaches the layer.

    The layers in front run on blank images, as few and small as the network takes, and their output is not used: the layer is
    given what `reach` found for real images. The copy is in eval mode throughout: batch norms keep their statistics.

    Parameters
    ----------
    network, layer, device
        The network is left as it is.
    images : [n, 3, S, S] float32
        Some preprocessed images, on which this must give the network's own logits.

    Attributes
    ----------
    parameters : list of nn.Parameter
        Those that the logits depend on behind what reaches the layer; no others require a gradient.
    outputs : int
        Logits of the network.

    Raises
    ------
    InputError
        The network does not end in logits [B, M], the layer takes other than one tensor, or the logits depend on the
        image in another way than through the layer.
    """

    def __init__(self, network: Network, layer: str, device: torch.device, images: torch.Tensor) -> None:
        if layer.endswith(HEADS):
            raise InputError(f"{layer} stands for heads inside a module; name the module itself to train it")
        self._where = f"layer {layer} of {network.name}"
        self._module = copy.deepcopy(network.module).to(device).eval().requires_grad_(False)
        self._target = self._module.get_submodule(layer)
        images = images.to(device)
        with torch.no_grad():
            expected = self._module(images)
        if not isinstance(expected, torch.Tensor) or expected.ndim != 2 or expected.shape[1] < 2:
            shape = list(expected.shape) if isinstance(expected, torch.Tensor) else type(expected).__name__
            raise InputError(
                f"{network.name} must end in logits [B, classes] to be trained, got {shape}; give a classifier"
            )
        self.outputs = expected.shape[1]
        self._blank, self._one = self._least_blanks(images, expected)
        self.parameters = self._behind(images)

    def reach(self, images: torch.Tensor) -> torch.Tensor:
        """What reaches the layer [B, ...] of preprocessed images [B, 3, S, S]; call it without gradients."""
        held: list[Any] = []

        def stop(*inputs: Any, **keywords: Any) -> None:
            held.append((inputs, keywords))
            raise _Stop

        with self._instead(lambda _own: stop), suppress(_Stop):
            self._module(images)
        (inputs, keywords) = held[0]
        if len(inputs) != 1 or keywords or not isinstance(inputs[0], torch.Tensor) or len(inputs[0]) != len(images):
            raise InputError(
                f"{self._where} must be called with one tensor that has a row an image, to be trained behind it; choose "
                "another layer"
            )
        return inputs[0]

    def __call__(self, reached: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's activations [B, C, P] and the logits [B, M] for what reaches the layer [B, ...]."""
        seen: list[torch.Tensor] = []

        def relay(own: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
            def forward(*_inputs: Any) -> torch.Tensor:
                seen.append(own(reached))
                return seen[0].clone()  # modules behind may work in place

            return forward

        blank = torch.zeros(1 if self._one else len(reached), 3, self._blank, self._blank, device=reached.device)
        with self._instead(relay):
            logits = self._module(blank)
        return layout_of(tuple(seen[0].shape[1:])).to_positions(seen[0]), logits

    def _least_blanks(self, images: torch.Tensor, expected: torch.Tensor) -> tuple[int, bool]:
        """Side of the smallest blank images with which the logits are the network's own, and whether one of them is enough."""
        with torch.no_grad():
            reached = self.reach(images)
            for side, one in product(sorted({min(BLANK, images.shape[2]), images.shape[2]}), (True, False)):
                self._blank, self._one = side, one
                with suppress(RuntimeError, ValueError, AssertionError, IndexError):  # such images do not fit
                    _, logits = self(reached)
                    if logits.shape == expected.shape and torch.allclose(
                        logits, expected, rtol=0, atol=EXACT * float(expected.std())
                    ):
                        return side, one
        raise InputError(
            f"the logits of {self._where.partition(' of ')[2]} depend on the image in another way than through "
            f"{self._where.partition(' of ')[0]}, such as a connection around it; choose a layer that all passes through"
        )

    def _behind(self, images: torch.Tensor) -> list[nn.Parameter]:
        """The parameters that the logits depend on when the layer's input is given."""
        with torch.no_grad():
            reached = self.reach(images[:2])
        self._module.requires_grad_(True)
        with torch.enable_grad():
            logits = self(reached)[1].sum()
        if logits.requires_grad:
            logits.backward()
        found = [parameter for parameter in self._module.parameters() if parameter.grad is not None]
        self._module.requires_grad_(False)
        for parameter in found:
            parameter.requires_grad_(True).grad = None
        if not found:
            raise InputError(
                f"{self._where} and what follows it have no parameters to train; choose a layer in front of it"
            )
        return found

    @contextmanager
    def _instead(self, make: Callable[[Callable[..., torch.Tensor]], Callable[..., Any]]) -> Iterator[None]:
        """The layer's forward replaced by what `make` makes of it."""
        before = vars(self._target).get("forward")
        self._target.forward = make(self._target.forward)
        try:
            yield
        finally:
            if before is None:
                del self._target.forward
            else:
                self._target.forward = before

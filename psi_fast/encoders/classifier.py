"""A classifier as an encoder: what goes into its last layer, and that layer's rows as the concepts."""

from typing import Self

import torch
from torch import nn

from psi_fast.activation_tap import ActivationTap, JointTap, class_head
from psi_fast.errors import ModelError
from psi_fast.forward import Pace, channels_last, fast_precision, name_of
from psi_fast.networks import Network, load_network
from psi_fast.progress import Progress
from psi_fast.vocabulary import Vocabulary, numbered


class ClassifierEncoder:
    """Penultimate features of a classifier, aligned with its class vectors.

    The logits are products of the two, so an image lies near the class vectors of what it shows. There is no text
    tower: the concepts are the classes. The last layer is an nn.Linear, or a 1 x 1 convolution whose outputs are averaged
    over positions (SqueezeNet, timm's resnetv2), for which the features are averaged as well.

    Parameters
    ----------
    network
        A network or a spec for `load_network`. It is put on the encoder's device and stays there.
    trust_checkpoint
        As for `load_network`.

    Attributes
    ----------
    precision : str
        The dtype of the forward pass on the present device: float16, bfloat16 or float32.
    """

    def __init__(self, network: str | nn.Module | Network, trust_checkpoint: bool = False) -> None:
        self._network = load_network(network, trust_checkpoint)
        self.name = f"classifier:{self._network.name}"
        self.preprocess = self._network.preprocess
        self.warnings = list(self._network.warnings)
        self._layer = class_head(self._network)
        self._asked: torch.dtype | None = None
        self.to(torch.device("cpu"))

    def encode(self, batch: torch.Tensor) -> torch.Tensor:
        """Penultimate features float32 [B, d] of preprocessed crops [B, 3, size, size]; not normalised."""
        with self._tap, torch.inference_mode():
            return self._tap(batch).mean(2)

    def encode_smooth(self, batch: torch.Tensor) -> torch.Tensor:
        """As `encode`, in float32 and with gradients to the crops."""
        with JointTap([self._tap], Pace()) as tap:
            return tap(batch)[0].mean(2)

    def concepts(
        self, vocabulary: Vocabulary | None, progress: Progress | None = None
    ) -> tuple[list[str], torch.Tensor]:
        """The class names [P] and the last layer's rows, float32 [P, d] on the CPU.

        Raises
        ------
        ModelError
            When `vocabulary` asks for other concepts than the classes.
        """
        if vocabulary is not None:
            self.require_own(vocabulary)
        rows = self._network.module.get_parameter(f"{self._layer}.weight").detach()
        rows = rows.flatten(1).float().cpu().clone()  # a 1 x 1 convolution's are [P, d, 1, 1]
        return self._names(), rows

    def require_own(self, vocabulary: Vocabulary) -> None:
        """Raises a ModelError when `vocabulary` asks for other concepts than the classes, in their order."""
        names = self._names()
        if vocabulary.concepts != tuple(names):
            raise ModelError(
                f"{self.name} has no text tower: its concepts are its own {len(names)} classes, so vocabulary "
                f"{vocabulary.name!r} cannot be embedded; leave the vocabulary out or use an open_clip encoder"
            )

    def _names(self) -> list[str]:
        classes = self._network.module.get_parameter(f"{self._layer}.weight").shape[0]
        return self._network.class_names or [numbered(index) for index in range(classes)]

    def fingerprint(self) -> str:
        """sha256 (hex) over the network's weights and preprocess."""
        return self._network.fingerprint()

    def at_precision(self, dtype: torch.dtype) -> Self:
        """The encoder itself, its forward passes now in `dtype` on any device."""
        self._asked = dtype
        return self.to(self._device)

    def to(self, device: torch.device) -> Self:
        """The encoder itself, its network now on `device`."""
        self._device = torch.device(device)
        dtype = self._asked or fast_precision(self._device)
        self.precision = name_of(dtype)
        module = self._network.module
        module.to(self._device)
        module.to(memory_format=channels_last(module))
        self._tap = ActivationTap(self._network, self._layer, self._device, at="input", pace=Pace(dtype))
        return self

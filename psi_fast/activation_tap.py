"""Reading a network's layers: which there are, and what one of them outputs. The only module that registers hooks."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import nn

from psi_fast.attention_heads import HEADS, Heads, find_heads, heads_of, one_a_head
from psi_fast.errors import ModelError, nearest
from psi_fast.forward import Pace, autocast, channels_last, in_slices, name_of
from psi_fast.trial_forward import frozen, moved, told, trial_forward, where_read
from psi_fast.unit_layout import Layout, layout_of

if TYPE_CHECKING:
    from psi_fast.networks import Network


@dataclass(frozen=True)
class LayerInfo:
    """One layer of a network as one image went through it."""

    name: str
    """Name of the module, as in `named_modules`; with "#heads" behind it for the heads of an attention module."""
    type: str
    """Its class."""
    shape: tuple[int, ...]
    """Output shape without the batch."""
    channels: int
    """Units it has by the layout rule of `ActivationTap`; 0 when it is refused."""
    calls: int
    """Times it runs in one forward pass; a layer that runs more than once cannot be tapped."""
    refused: str = ""
    """Why its output cannot be tapped, such as "a tuple"; empty when it can."""


class _Stop(BaseException):
    """Ends a forward pass at the tapped layer; no Exception, so that a network's own `except Exception` lets it pass."""


class ActivationTap:
    """Activations of one layer, one [C, P] matrix per image, with no work done behind that layer.

    Layout: in a map [B, C, H, W] axis 1 is the channel. In tokens [B, T, C] the last axis is, and the largest square
    g * g <= T with at most 8 tokens in front of it is the grid; without one every token stands for the whole image.
    In a vector [B, C] there is one position. A map whose two equal sides are axes 1 and 2 (Swin's [B, H, W, C]) is
    read with the channel last; it cannot be told from [B, C, H, W] when C = H = W. Tokens behind the patch
    tokens are not recognised. What an attention module holds for each head, queries [B, heads, T, d] or maps
    [B, heads, T, T], has no positions and is refused.

    The layer `NAME#heads` is the heads of the attention module NAME as tokens [B, T, heads]: how much head h writes into
    the residual stream at a token, the Euclidean norm of W_h z_h with z_h the head's output and W_h its columns of the
    output projection, without the bias. The pass ends before the projection.

    Use as a context: inside, the network is in eval mode on `device` with frozen parameters; afterwards, also after an
    error, training flags, requires_grad, hooks and device are as before. Gradients with respect to the input flow
    wherever the caller has them enabled. With gradients off on a CPU the batch goes through in slices of
    `psi_fast.forward.Pace.size` images, so that a result does not depend on the batch it came in.

    Parameters
    ----------
    network
        The network and how to feed it.
    layer
        A name from `list_layers`.
    device
        Where to run. The network is moved there inside the context.
    at
        Read the layer's output (the default) or its first input.
    pace
        How the forward passes run; the default is float32.

    Attributes
    ----------
    channels : int
        Units of the layer (C).
    grid : tuple[int, int] or None
        (H, W) of a map, (g, g) of square tokens, None for a vector or tokens without a square.
    prefix : int
        Tokens in front of the grid; position `prefix + row * W + column` is the grid's (row, column).
    positions : int
        Positions per image (P).

    Raises
    ------
    ModelError
        For an unknown layer, one that runs other than once in a forward pass, one whose output is no floating-point
        tensor of 2 to 4 dimensions with one row per image, or a network that cannot run on its own preprocess size.
    """

    def __init__(
        self,
        network: "Network",
        layer: str,
        device: torch.device,
        at: Literal["output", "input"] = "output",
        pace: Pace | None = None,
    ) -> None:
        modules = dict(network.module.named_modules())
        self._heads = find_heads(network.module, layer, network.name) if layer.endswith(HEADS) else None
        if not layer:
            raise ModelError(
                f"the layer's name is empty, which stands for {network.name} as a whole; name one of its modules, as "
                "`psi-fast layers` lists them"
            )
        if not self._heads and layer not in modules:
            known = [name + HEADS for name, part in modules.items() if heads_of(part)] if "#" in layer else modules
            raise ModelError(
                f"layer {layer!r} not found in {network.name}{nearest(layer, known)}; list layers with `psi-fast layers`"
            )
        self.network = network
        self.layer = layer
        self.device = torch.device(device)
        self.pace = pace or Pace()
        self._at = at
        self._target = self._heads.source if self._heads else modules[layer]
        self._seen: list[Any] = []
        self._open = 0
        self._cleanup = ExitStack()
        self._memory_format = channels_last(network.module)
        self._shape, layout = self._examine()
        self.channels, self.grid, self.prefix = layout.channels, layout.grid, layout.prefix
        self.positions = layout.to_positions(torch.empty(1, *self._shape)).shape[2]
        self._to_positions = layout.to_positions

    def __enter__(self) -> Self:
        if not self._open:
            self._cleanup = _opened([self])
        self._open += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._open -= 1
        if not self._open:
            self._cleanup.close()

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Activations of a preprocessed batch.

        Parameters
        ----------
        batch
            [B, 3, size, size] float32, any device, normalised as the network's preprocess does.

        Returns
        -------
        torch.Tensor
            [B, C, P] float32 on the tap's device; P = H * W row-major, T or 1. NaN and inf are passed on.
        """
        if not self._open:
            raise RuntimeError("an ActivationTap is called inside `with tap:`")
        return _read([self], batch, self.pace)[0]

    def _taken(self, count: int) -> torch.Tensor:
        """What the last forward pass of `count` images left here, as [B, C, P] float32."""
        output = self._seen.pop() if self._seen else None
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else None
        if output is None or shape != (count, *self._shape):
            raise ModelError(
                f"layer {self.layer!r} of {self.network.name} gave {shape} for {count} images, "
                f"expected {(count, *self._shape)} as for the first ones; choose a layer whose output keeps its shape"
            )
        return self._to_positions(output).float()

    def _hook(self, then: Callable[[], None] | None = None) -> torch.utils.hooks.RemovableHandle:
        def see(value: Any) -> None:
            self._seen.append(value)
            if then is not None:
                then()
                # the pass goes on to other layers, which may work on this one's output in place
                self._seen[-1] = value.clone() if isinstance(value, torch.Tensor) else value

        if self._heads:
            norms = self._heads.reader(self.layer)
            return self._target.register_forward_pre_hook(
                lambda _module, inputs, keywords: see(norms(inputs, keywords)), with_kwargs=True
            )
        if self._at == "input":
            return self._target.register_forward_pre_hook(lambda _module, inputs: see(inputs[0] if inputs else None))
        return self._target.register_forward_hook(lambda _module, _inputs, output: see(output))

    def _examine(self) -> tuple[tuple[int, ...], Layout]:
        """Shape of one image's output and its layout, from two blank images through the whole network."""
        handle = self._hook()
        try:
            trial_forward(self.network, torch.zeros)
            seen = list(self._seen)
        finally:
            handle.remove()
            self._seen.clear()
        where = f"layer {self.layer!r} of {self.network.name}"
        if len(seen) != 1:
            raise ModelError(
                f"{where} runs {len(seen)} times in one forward pass, expected once; choose a layer with 1 in the "
                "column `calls` of `psi-fast layers`"
            )
        output = seen[0]
        if refused := _refused(output, 2, self.layer, self.network.module):
            heads = f", or {self.layer}{HEADS} for its heads" if not self._heads and heads_of(self._target) else ""
            raise ModelError(
                f"{where} gives {refused}, expected one floating-point tensor [2, C, H, W], [2, T, C] or [2, C] for 2 images; "
                f"choose another layer, or one inside it{heads}"
            )
        shape = tuple(output.shape[1:])
        return shape, layout_of(shape)


class JointTap:
    """Activations of several layers of one network from one forward pass, which ends behind the last of them.

    Use as a context, as an `ActivationTap`.

    Parameters
    ----------
    taps
        One a layer, all of one network on one device.
    pace
        How the forward passes run, whatever the taps say; the default is float32.
    """

    def __init__(self, taps: Sequence[ActivationTap], pace: Pace | None = None) -> None:
        self.taps = tuple(taps)
        self.pace = pace or Pace()
        self.device = self.taps[0].device
        if len({(id(tap.network), tap.device) for tap in self.taps}) > 1:
            raise ValueError("taps are read together only where they are of one network on one device")
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        self._cleanup = _opened(self.taps)
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def __call__(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Activations [B, C, P] float32 of each tap's layer, in the taps' order, for a batch as `ActivationTap` takes it."""
        return _read(self.taps, batch, self.pace)


def _opened(taps: Sequence[ActivationTap]) -> ExitStack:
    """The taps' network frozen and moved to their device, hooked so that a forward pass ends when all have seen theirs."""
    network = taps[0].network

    def end() -> None:
        if all(tap._seen for tap in taps):
            raise _Stop

    with ExitStack() as stack:
        stack.enter_context(frozen(network.module))
        stack.enter_context(moved(network, taps[0].device))
        for tap in taps:
            stack.callback(tap._hook(end).remove)
        return stack.pop_all()


def _read(taps: Sequence[ActivationTap], batch: torch.Tensor, pace: Pace) -> list[torch.Tensor]:
    """One forward pass of the batch, through opened taps."""
    first, layers = taps[0], [tap.layer for tap in taps]
    network = first.network

    def forward(rows: torch.Tensor) -> list[torch.Tensor]:
        for tap in taps:
            tap._seen.clear()
        with suppress(_Stop), told(network.name, lambda error: where_read(network, layers, rows, error)):
            network.module(rows)
        return [tap._taken(len(rows)) for tap in taps]

    batch = batch.to(first.device)
    memory_format = pace.memory_format or first._memory_format
    with autocast(first.device, pace.dtype):
        if first.device.type == "cpu" and not torch.is_grad_enabled():
            return in_slices(forward, batch, pace.size, memory_format)
        return forward(batch.contiguous(memory_format=memory_format))


def list_layers(network: "Network") -> list[LayerInfo]:
    """Every module of `network` that outputs a tensor, in the order they first finish, seen on one blank image.

    Of a tuple, list or mapping (a model output of transformers), which cannot be tapped, the first tensor's shape is told.
    The network itself, as the unnamed module, is left out; heads that can be read are listed as NAME#heads. Its state is as
    before afterwards.
    """
    found: dict[str, LayerInfo] = {}

    def add(name: str, kind: str, output: Any) -> None:
        tensor = _first_tensor(output)
        if name in found:
            found[name] = replace(found[name], calls=found[name].calls + 1)
        elif tensor is not None:
            shape, refused = tuple(tensor.shape[1:]), _refused(output, 1, name, network.module)
            found[name] = LayerInfo(name, kind, shape, 0 if refused else layout_of(shape).channels, 1, refused)

    def record(name: str, module: nn.Module) -> Callable[..., None]:
        return lambda _module, _inputs, output: add(name, type(module).__name__, output)

    def record_heads(name: str, module: nn.Module, heads: Heads) -> Callable[..., None]:
        norms = heads.reader(name)

        def see(_module: nn.Module, inputs: Any, keywords: Any) -> None:
            with suppress(ModelError):  # of attention that `reader` does not understand
                tensor = norms(inputs, keywords)
                if len(tensor) == 1:  # windows have more rows than there are images
                    add(name + HEADS, type(module).__name__, tensor)

        return see

    with ExitStack() as stack:
        for name, module in network.module.named_modules():
            if name:
                stack.callback(module.register_forward_hook(record(name, module)).remove)
            if name and (heads := heads_of(module)):
                see = record_heads(name, module, heads)
                stack.callback(heads.source.register_forward_pre_hook(see, with_kwargs=True).remove)
        trial_forward(network, torch.zeros, count=1)
    return list(found.values())


def final_linear(network: "Network") -> str:
    """Name of the nn.Linear whose output is the network's own output.

    Raises
    ------
    ModelError
        When there is none: the head is a convolution, an average of heads, or is followed by other work.
    """
    return _head(network, (nn.Linear,), "an nn.Linear")


def class_head(network: "Network") -> str:
    """Name of the module whose rows are the class vectors: as `final_linear`, or a 1 x 1 convolution.

    The mean over a convolution's positions, with a ReLU in front of it or without one, is the network's own output.

    Raises
    ------
    ModelError
        When there is none: the head is another convolution, an average of heads, or is followed by other work.
    """
    return _head(network, (nn.Linear, nn.Conv2d), "an nn.Linear or a 1 x 1 convolution")


def _head(network: "Network", kinds: tuple[type[nn.Module], ...], what: str) -> str:
    last: list[tuple[str, torch.Tensor]] = []

    def record(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: last.append((name, output.clone()))  # a ReLU may work in place

    def noise(*shape: int, device: torch.device | None) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device)

    with ExitStack() as stack:
        for name, module in network.module.named_modules():
            if name and isinstance(module, kinds):
                stack.callback(module.register_forward_hook(record(name)).remove)
        result = _first_tensor(trial_forward(network, noise))
    if not last or result is None or result.ndim != 2 or not _gives(network, *last[-1], result):
        raise ModelError(
            f"{network.name} does not end in {what} that gives its [B, classes] output, so it has no class vectors to "
            "compare with; use a classifier that does, such as efficientnet-lite:lite2 or torchvision:resnet50"
        )
    return last[-1][0]


def _gives(network: "Network", name: str, output: torch.Tensor, result: torch.Tensor) -> bool:
    """Whether the network's `result` is the `output` of its module `name`, of a 1 x 1 convolution its mean."""
    module = network.module.get_submodule(name)
    if isinstance(module, nn.Linear):  # nan in the weights is told of by the name of its class
        return output.shape == result.shape and torch.allclose(output, result, rtol=0, atol=0, equal_nan=True)
    if not isinstance(module, nn.Conv2d) or (module.kernel_size, module.groups) != ((1, 1), 1):
        return False
    means = (output.mean((2, 3)), output.relu().mean((2, 3)))
    return any(
        mean.shape == result.shape and torch.allclose(mean, result, rtol=1e-4, atol=1e-5, equal_nan=True)
        for mean in means
    )


def _refused(output: Any, count: int, layer: str, module: nn.Module) -> str:
    """What is wrong with the output of `layer` in `module` for `count` images; empty when it can be tapped."""
    if not isinstance(output, torch.Tensor):
        return f"a {type(output).__name__}"
    if not output.is_floating_point():
        return f"whole numbers ({name_of(output.dtype)})" if output.dtype != torch.bool else "truth values (bool)"
    if not 2 <= output.ndim <= 4:
        return f"{output.ndim} dimensions"
    if len(output) != count:
        return f"{len(output)} rows for {count} image{'s'[: count > 1]}"
    return "a matrix for each head" if one_a_head(tuple(output.shape[1:]), layer, module) else ""


def _first_tensor(output: Any) -> torch.Tensor | None:
    if isinstance(output, Mapping):
        return next((value for value in output.values() if isinstance(value, torch.Tensor)), None)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) and output.ndim >= 1 else None

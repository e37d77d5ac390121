"""A network run once on made-up images: in eval mode, its state as before afterwards, its errors as one clear line."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from psi_fast.checkpoints import one_line
from psi_fast.errors import DeviceMemoryError, ModelError, PsiFastError
from psi_fast.forward import name_of
from psi_fast_kernels._chunks import out_of_memory

if TYPE_CHECKING:
    from psi_fast.networks import Network


MORE_MEMORY = "lower batch_size, free memory of the device, or choose another one (--device)"


def trial_forward(network: "Network", make: Callable[..., torch.Tensor], count: int = 2) -> Any:
    """Output of the whole network for `count` made-up images, where its parameters are.

    Raises
    ------
    ModelError
        The network raises anything, or lies on several devices.
    """
    size = network.preprocess.size
    images = make(count, 3, size, size, device=home(network))
    try:
        with frozen(network.module), torch.no_grad():
            return network.module(images)
    except ModelError:  # from a hook
        raise
    except Exception as error:
        raise ModelError(
            f"{network.name} cannot run on images of [3, {size}, {size}] ({type(error).__name__}: {one_line(error)}); "
            f"{_remedy(network, error)}"
        ) from error


@contextmanager
def told(who: str, where: Callable[[Exception], str]) -> Iterator[None]:
    """Turns whatever a network or an encoder, `who`, raises in the middle of a run into a ModelError of one line.

    `where` says of the error on what it was raised.
    """
    try:
        yield
    except PsiFastError:  # from a hook
        raise
    except Exception as error:
        kind, remedy = ModelError, "mend its forward, or leave out the images that it cannot take"
        if out_of_memory(error):
            kind, remedy = DeviceMemoryError, MORE_MEMORY
        raise kind(f"{who} raised {type(error).__name__} ({one_line(error)}){where(error)}; {remedy}") from error


@contextmanager
def memory_told(what: str, remedy: str = MORE_MEMORY) -> Iterator[None]:
    """Turns the error of an allocation within into one line: on `what` it was raised, and the `remedy`."""
    try:
        yield
    except PsiFastError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise DeviceMemoryError(
            f"{what}: the device's memory does not suffice ({one_line(error)}); {remedy}"
        ) from error


def halved(batch_size: int, step: Callable[[int], int], error: DeviceMemoryError) -> int:
    """Half of a batch that did not fit into the device's memory; raises the error where that changes no `step` of it."""
    half = max(1, batch_size // 2)
    if step(half) == step(batch_size):
        raise error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    warnings.warn(f"out of memory with {batch_size} at once; going on with {half}", stacklevel=2)
    return half


def where_read(network: "Network", layers: Sequence[str], batch: torch.Tensor, error: Exception) -> str:
    """On what a network raised while its layers were read."""
    part = _raised_in(network, error)
    return (
        f"{f' in its module {part!r}' if part else ''} on a batch of {list(batch.shape)} while "
        f"{'layer' if len(layers) == 1 else 'layers'} {', '.join(layers)} {'was' if len(layers) == 1 else 'were'} read"
    )


def _raised_in(network: "Network", error: Exception) -> str:
    """Name of the innermost of the network's modules that the error came through; empty where that is the network itself."""
    names = {id(module): name for name, module in network.module.named_modules()}
    found, frames = "", error.__traceback__
    while frames is not None:
        found = names.get(id(frames.tb_frame.f_locals.get("self")), found)
        frames = frames.tb_next
    return found


def _remedy(network: "Network", error: Exception) -> str:
    """What to do about an error of the network's own."""
    if isinstance(error, torch.OutOfMemoryError):
        return "free memory of the GPU"
    dtypes = {parameter.dtype for parameter in network.module.parameters() if parameter.is_floating_point()}
    if other := dtypes - {torch.float32}:
        names = " and ".join(sorted(map(name_of, other)))
        return f"its weights are {names} and it is fed float32: give net.float(), and choose its speed by `precision`"
    if isinstance(error, TypeError) and "argument" in str(error):
        return "it is called with a batch of images alone: wrap it in an nn.Module whose forward takes nothing else"
    size = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)
    if isinstance(error, size) and not isinstance(error, NotImplementedError):
        return (
            "if it takes images of another size, give the module an attribute `preprocess` of type psi_fast.Preprocess: "
            "net.preprocess = psi_fast.Preprocess(size=..., resize=...)"
        )
    return "mend its forward, which is called with a batch of images alone"


def home(network: "Network") -> torch.device | None:
    """Where the network's parameters and buffers are; None when it has none."""
    devices = {tensor.device for tensor in (*network.module.parameters(), *network.module.buffers())}
    if len(devices) > 1:
        raise ModelError(f"{network.name} is spread over {sorted(map(str, devices))}; move it to one device")
    return devices.pop() if devices else None


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Eval mode without parameter gradients; every flag is put back afterwards."""
    training = [(part, part.training) for part in module.modules()]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        module.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for part, flag in training:
            part.training = flag
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def moved(network: "Network", device: torch.device) -> Iterator[None]:
    """The network on `device`, and back where it was afterwards."""
    before = home(network)
    try:
        network.module.to(device)
        yield
    finally:
        if before is not None:
            network.module.to(before)

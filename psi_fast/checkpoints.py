"""Weights: read without running code, loaded strictly, fingerprinted, and named when a hub is out of reach."""

import hashlib
import pickle
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from psi_fast.errors import ModelError

_PROBE_SECONDS = 2.0
TRUST = "give --trust-checkpoint (trust_checkpoint=True in Python) if you trust whoever made it"
"""What lets a pickle be read, which runs the code that it holds."""
_UNREADABLE = (
    struct.error,
    AssertionError,
    EOFError,
    RuntimeError,
    OSError,
    KeyError,
    ValueError,
    IndexError,
    TypeError,
)
"""What torch and safetensors raise on files that are damaged or of another kind, beside errors of their own."""


@contextmanager
def checkpoint_errors(path: str | Path, trusted: bool = False) -> Iterator[None]:
    """Turns what reading the checkpoint `path` can raise into a ModelError of one line.

    What is `trusted` may run code, which raises what it likes.
    """
    from safetensors import SafetensorError

    known = (Exception,) if trusted else (pickle.UnpicklingError, SafetensorError, *_UNREADABLE)
    try:
        yield
    except known as error:
        if not trusted and holds_code(error):
            raise refused(path) from error
        raise ModelError(
            f"{path} cannot be read as a checkpoint ({one_line(error)}); fetch or save it again"
        ) from error


def holds_code(error: BaseException) -> bool:
    """Whether this is what torch raises, told to load weights only, on what it would have to run: objects or TorchScript."""
    return isinstance(error, pickle.UnpicklingError) or "TorchScript" in str(error)


def refused(what: str | Path, instead: str = "") -> ModelError:
    """The error for a checkpoint that is more than weights; of a hub's, `instead` is the spec that takes a local file."""
    trust = f"fetch the file, name it as {instead} and {TRUST}" if instead else TRUST
    return ModelError(
        f"{what} is refused: weights are loaded with weights_only=True, and this file holds Python objects, which can run "
        f"code, or is no checkpoint; save the network's state_dict with torch.save or as .safetensors, or {trust}"
    )


def read_weights(path: str | Path, trust_checkpoint: bool = False) -> dict[str, torch.Tensor]:
    """The state_dict in a .safetensors or torch.save file, on the CPU.

    A training checkpoint's "state_dict" or "model" entry is taken, and a data-parallel wrapper's "module." removed. No code in
    the file is run, unless `trust_checkpoint` is given: then it may be a pickle of any objects, or a whole module.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"no checkpoint file {path}")
    state: Any
    with checkpoint_errors(path, trust_checkpoint):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=not trust_checkpoint)
    for entry in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(entry), (dict, nn.Module)):
            state = state[entry]
    if isinstance(state, nn.Module):
        state = state.state_dict()
    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not named or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state_dict (a mapping of names to tensors); save network.state_dict()")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def load_weights(module: nn.Module, path: str | Path, name: str, trust_checkpoint: bool = False) -> None:
    """Loads the checkpoint `path`, as `read_weights` takes it, into `module`.

    A ModelError lists the first keys that do not fit `name`.
    """
    state = read_weights(path, trust_checkpoint)
    try:
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes that differ, even when not strict
        raise ModelError(f"{path} does not fit {name}: {one_line(error)}") from error
    problems = [
        f"{kind} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for kind, keys in (("lacks", result.missing_keys), ("has unknown", result.unexpected_keys))
        if keys
    ]
    if problems:
        raise ModelError(f"{path} does not fit {name}: it {' and '.join(problems)}")


def state_fingerprint(module: nn.Module, *more: str) -> str:
    """sha256 (hex) over the state_dict's names, dtypes, shapes and bytes, then over the texts `more`."""
    digest = hashlib.sha256()
    for key, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:  # a module's extra state
            digest.update(f"{key} {value!r}\n".encode())
    for text in more:
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()


def require_hub_file(
    repository: str, filenames: Sequence[str], what: str, instead: str, *, fetch: str | None = None
) -> None:
    """Raises a ModelError at once when none of `filenames` is cached and the model hub cannot be reached.

    The hub's own client would repeat every request for most of a minute first.

    Parameters
    ----------
    repository
        Name of the repository on the hub, such as "timm/resnet18.a1_in1k".
    what
        The spec whose weights these are, for the message.
    instead
        A spec that takes a local file.
    fetch
        What to fetch elsewhere, where it is more than the `filenames`.
    """
    import huggingface_hub

    repository, _, revision = repository.partition("@")
    for filename in filenames:
        if isinstance(huggingface_hub.try_to_load_from_cache(repository, filename, revision=revision or None), str):
            return
    if not hub_in_reach():
        raise hub_error(repository, [fetch] if fetch else filenames, what, instead)


def hub_error(
    repository: str, filenames: Sequence[str], what: str, instead: str, reason: str = "it cannot be reached"
) -> ModelError:
    """The ModelError for weights that cannot be fetched: which file to fetch elsewhere, and how to name it."""
    return ModelError(
        f"the weights of {what} are not on this machine and cannot be fetched from the model hub ({reason}): "
        f"fetch {' or '.join(filenames)} of {repository} on another machine and give its path as {instead}"
    )


def hub_in_reach() -> bool:
    """Whether the model hub may be asked and answers within a few seconds."""
    import huggingface_hub

    return not huggingface_hub.constants.HF_HUB_OFFLINE and _answers(huggingface_hub.constants.ENDPOINT)


def _answers(url: str) -> bool:
    """Whether anything answers at `url` within a few seconds, whatever it says."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:  # URLError, timeouts
        return False


def one_line(error: BaseException) -> str:
    """The message of `error` on one line of at most 240 characters; its type's name when it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:237] + "..."

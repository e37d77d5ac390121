"""What a module does with its weights, told so that another module that does something else is told otherwise."""

import dataclasses
import functools
import hashlib
import sys
import types
from collections.abc import Iterable, Mapping, Sequence, Set
from enum import Enum
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
"""Of nn.Module's own attributes those that change what it does."""
NOTES = (
    *("pretrained_cfg", "default_cfg"),  # timm
    *("name_or_path", "_name_or_path", "transformers_version", "_is_hf_initialized", "_weight_conversions"),
)
"""What libraries write on a module of where it is from."""
PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, Enum, torch.dtype)
_own = frozenset(vars(nn.Module()))


def computation(module: nn.Module) -> str:
    """SHA-256 (hex) of the classes and attributes of a module's parts and of the files that define them, beside weights.

    What an attribute holds is told where it is a plain value, an array, a function, a configuration, or made of these; of
    other objects the class. A module that notes something on itself when it runs is another one afterwards.
    """
    told = _Told()
    for name, part in cast(Iterable[tuple[str, nn.Module]], module.named_modules()):
        told.kind(name, type(part))
        told.add("buffers", {key: part._buffers[key] for key in sorted(part._non_persistent_buffers_set)})  # pyright: ignore[reportPrivateUsage]
        for key, value in vars(part).items():
            if key in HOOKS:
                told.add(key, list(value.values()))
            elif key not in _own and key not in NOTES:
                told.add(key, value)
    return told.end()


class _Told:
    """A digest of values, each with its name."""

    def __init__(self) -> None:
        self._digest, self._within, self._files = hashlib.sha256(), list[int](), set[str]()

    def end(self) -> str:
        for name in sorted(self._files):
            self._say(f"{name} {_source(name)}")
        return self._digest.hexdigest()

    def kind(self, name: str, kind: type) -> None:
        """A class, and where it and those above it are defined."""
        self._say(f"{name}: {kind.__module__}.{kind.__qualname__}")
        for own in kind.__mro__:
            if own.__module__ != "builtins":
                self._files.add(own.__module__)
            if _source(own.__module__) == "":  # typed into a notebook
                for key, value in vars(own).items():
                    if isinstance(value, types.FunctionType):
                        self.add(key, value)

    def add(self, name: str, value: Any) -> None:
        if isinstance(value, PLAIN):
            self._say(f"{name}: {value!r}")
        elif isinstance(value, (torch.Tensor, np.ndarray)):
            self._array(name, value)
        elif isinstance(value, nn.Module | torch.device) or id(value) in self._within:
            self._say(
                f"{name}: {type(value).__qualname__}"
            )  # a part is told as such, a device is where it happens to be
        else:
            self._within.append(id(value))
            self._made_of(name, value)
            self._within.pop()

    def _made_of(self, name: str, value: Any) -> None:
        parts: dict[str, Any] = {}
        if isinstance(value, Mapping):
            items = cast(Mapping[Any, Any], value).items()
            parts = {f"{number} {_word(key)}": own for number, (key, own) in enumerate(items) if key not in NOTES}
        elif isinstance(value, Set):
            parts = dict.fromkeys(sorted(map(_word, cast(Set[Any], value))))
        elif isinstance(value, Sequence):
            parts = {str(number): own for number, own in enumerate(cast(Sequence[Any], value))}
        elif isinstance(value, functools.partial):
            parts = {"of": value.func, "given": value.args, "named": value.keywords}
        elif isinstance(value, types.MethodType):
            parts = {"of": value.__func__}
        elif isinstance(value, types.FunctionType):
            parts = self._function(value)
        elif isinstance(value, type):
            self.kind(name, value)
            return
        elif dataclasses.is_dataclass(value):
            parts = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        elif _of_transformers(value):
            parts = {"settings": value.to_dict()}
        self._say(f"{name}: {type(value).__qualname__} {getattr(value, '__qualname__', '')} of {len(parts)}")
        for key, own in parts.items():
            self.add(key, own)

    def _function(self, function: types.FunctionType) -> dict[str, Any]:
        self._files.add(function.__module__)
        held = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
        return {"code": _code(function.__code__), "given": function.__defaults__, "held": held}

    def _array(self, name: str, value: torch.Tensor | np.ndarray) -> None:
        own = torch.as_tensor(value) if isinstance(value, torch.Tensor) or value.dtype.kind in "biufc" else None
        if own is None or own.is_sparse:
            self._say(f"{name}: {value.dtype} {tuple(value.shape)}")
            return
        self._say(f"{name}: {own.dtype} {tuple(own.shape)}")
        self._digest.update(own.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def _say(self, text: str) -> None:
        self._digest.update(f"{text}\n".encode("utf-8", "surrogateescape"))


def _word(value: Any) -> str:
    """A key; of an object's name in memory, which is another one in each process, nothing."""
    return repr(value) if isinstance(value, PLAIN) else type(value).__qualname__


def _of_transformers(value: Any) -> bool:
    """Whether it is a configuration as that package makes them."""
    kinds = {kind.__module__.partition(".")[0] for kind in type(value).__mro__}
    return "transformers" in kinds and hasattr(value, "to_dict")


def _code(code: types.CodeType) -> list[Any]:
    return [
        code.co_code,
        code.co_names,
        *(_code(own) if isinstance(own, types.CodeType) else own for own in code.co_consts),
    ]


@functools.cache
def _source(module: str) -> str:
    """SHA-256 (hex) of the file of a module, empty where it has none."""
    path = getattr(sys.modules.get(module), "__file__", None)
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""
    except OSError:
        return ""

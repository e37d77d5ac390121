"""What a piece of work takes, counted while it runs once: operations inside products, and bytes that live at the same time."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counted(NamedTuple):
    """flops : operations inside convolutions and products of matrices, a multiplication and a sum each counting one
    live_bytes : largest sum of the tensors made that were there at the same time; not the weights, nor a library's scratch
    """

    flops: int
    live_bytes: int


def counted(run: Callable[[], Any]) -> Counted:
    """What `run` takes on the device that its tensors lie on; it is called once, with attention as products that can be seen."""
    from torch.utils.flop_counter import FlopCounterMode  # here: it takes seconds, as it imports triton

    live = _Live()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation of its own, which torch's counter does not know
    try:
        with sdpa_kernel(SDPBackend.MATH), live, FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return Counted(counter.get_total_flops(), live.most)


class _Live(TorchDispatchMode):
    """Follows the memory of tensors from when an operation makes them until nothing holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._held: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = {own.untyped_storage()._cdata for own in tree_leaves((args, kwargs)) if isinstance(own, torch.Tensor)}
        result = func(*args, **kwargs)
        for own in tree_leaves(result):
            if isinstance(own, torch.Tensor) and (storage := own.untyped_storage())._cdata not in known:
                self._see(storage)
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return

        def gone(_: Any) -> None:
            self._held.pop(key, None)
            self.now -= size

        self._held[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)

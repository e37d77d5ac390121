"""Work in chunks that shrink when memory runs out; no result depends on a chunk."""

import warnings
from collections.abc import Callable

import torch


def in_chunks(work: Callable[[slice], None], total: int, chunk: int, what: str) -> None:
    """Call `work` on consecutive slices of 0..total, `chunk` items each; out of memory halves the chunk and tries again.

    Parameters
    ----------
    work : function of a slice
        Writes its own part of the result; it may be called again on a part of a slice that failed.
    total, chunk : int
    what : str
        What an item is, in the plural, for the warning.

    Raises
    ------
    The error of the allocation, when not even one item fits.
    """
    chunk = max(1, min(chunk, total))
    start = 0
    while start < total:
        try:
            work(slice(start, min(start + chunk, total)))
        except (RuntimeError, MemoryError) as error:
            if chunk == 1 or not out_of_memory(error):
                raise
        else:
            start += chunk
            continue
        # outside the handler, so that the failed call's tensors are free again
        failed, chunk = chunk, chunk // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(f"out of memory with {failed} {what} at once; going on with {chunk}", stacklevel=2)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is that of an allocation, on a GPU or a CPU."""
    # torch has a class for a GPU's memory only
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)

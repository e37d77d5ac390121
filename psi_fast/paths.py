"""Paths that somebody gave: what the file system cannot even look up is one line."""

import errno
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from psi_fast.errors import PsiFastError, StoreError, printable

NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP)
"""Errors by which `Path.exists` knows that there is nothing; it raises all others."""


def require_path(what: str, path: str | Path, kind: type[PsiFastError] = StoreError) -> None:
    """See that `path`, which is said to be `what`, can be looked up, whether or not something lies there.

    Raises
    ------
    PsiFastError
        Of the `kind`: a name is too long or holds a NUL character, or a folder on the way cannot be entered.
    """
    with path_errors(f"{what} {str(path)!r}", kind):
        try:
            Path(path).stat()
        except OSError as error:
            if error.errno not in NOTHING_THERE:
                raise


@contextmanager
def path_errors(what: str, kind: type[PsiFastError]) -> Generator[None]:
    """Turns what the file system says within of paths in `what` that it cannot look up into an error of one line."""
    try:
        yield
    except PsiFastError:
        raise
    except OSError as error:
        raise kind(f"{printable(what)} cannot be looked up: {error.strerror or error}; give another path") from error
    except RecursionError as error:  # of os.walk
        raise kind(
            f"{printable(what)} cannot be looked up: folders lie too deep in each other; move them up"
        ) from error
    except ValueError as error:
        if "embedded null" not in str(error):
            raise
        raise kind(f"{printable(what)} cannot be looked up: it holds a NUL character; give another path") from error

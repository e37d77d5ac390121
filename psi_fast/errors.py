"""The errors a user can mend: each message is one line saying what was expected, what came and what to do."""

import difflib
from collections.abc import Iterable


class PsiFastError(Exception):
    """Base of all errors psi_fast raises on purpose; the command line ends with exit code 2 on any of them.

    Its text is one line, whatever names of files and things stand in it.
    """

    def __str__(self) -> str:
        return spelled(super().__str__())


class ConfigError(PsiFastError):  # no ValueError: command-line parsers catch those and tell them in their own way
    """A setting lies outside its range or contradicts another one."""


class InputError(PsiFastError, ValueError):
    """Images, labels, embeddings or activations cannot be used as they are."""


class NotFiniteError(InputError):
    """A network or an encoder returns nan or inf, or an embedding that is zero."""


class ModelError(PsiFastError, ValueError):
    """A network, layer, encoder or vocabulary cannot be found or loaded."""


class DeviceMemoryError(ModelError):
    """The memory of the device does not suffice."""


class StoreError(PsiFastError, OSError):
    """A run folder cannot be written or read."""


def printable(text: str) -> str:
    """The text in one line, in which whatever is no character to read, as what commands a terminal, is spelled out."""
    return spelled(" ".join(text.split()))


def spelled(text: str) -> str:
    """The text, in which whatever is no character to read is spelled out, line breaks too."""
    return "".join(own if own.isprintable() else own.encode("unicode_escape").decode() for own in text)


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """The `choices` spelled most like `name`, as a phrase for an error message; empty when none is close."""
    close = difflib.get_close_matches(name, list(choices), n=count, cutoff=0.5)
    return "; nearest: " + ", ".join(repr(c) for c in close) if close else ""

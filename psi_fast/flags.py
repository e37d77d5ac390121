"""The command's flags, read by tyro; what it finds wrong with them is told in one line."""

import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from typing import Any

import tyro

from psi_fast.errors import ConfigError, nearest

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_GIVEN = re.compile(r"(?:base 10: |to float: |instantiated from )\[?(.*?)\]?\.?(?: Got errors:.*)?$")
"""The value in what Python and tyro say of one that they cannot read."""


def read_flags(
    commands: Mapping[str, Callable[..., Any]], arguments: Sequence[str], *, prog: str, about: str | None
) -> Callable[[], Any]:
    """The command that the arguments name, ready to be called with what they say.

    Raises
    ------
    ConfigError
        They name no command, or flags that it has not, or values it does not take.
    """
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            return tyro.extras.subcommand_cli_from_dict(
                {name: _later(run) for name, run in commands.items()}, prog=prog, description=about, args=arguments
            )
    except SystemExit as stop:
        if not stop.code:  # help was asked for
            raise
    command = [own for own in arguments[:1] if own in commands]
    raise ConfigError(f"{in_one_line(told.getvalue())}; see `{' '.join([prog, *command])} --help`")


def _later(run: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """A function with the flags of `run` that calls it later: what a run says is no matter of its flags."""

    @functools.wraps(run)
    def bound(*args: Any, **options: Any) -> Callable[[], Any]:
        return functools.partial(run, *args, **options)

    return bound


def in_one_line(box: str) -> str:
    """What tyro says in its box of several lines, as one; in other words where it would not say what was expected."""
    title, (first, *others) = _parts(box)
    text = " ".join(" ".join(first).split())
    if title == "Value error" and others and (given := _GIVEN.search(text)):
        return f"expected {_usage(others[0])}, got {given[1]}"
    if title == "Missing argument" and (found := re.search(r"(--[\w-]+).* Expected (\d+) value", text)):
        return f"{found[1]} needs {'a value' if found[2] == '1' else f'{found[2]} values'}, got fewer"
    if title == "Invalid choice" and (
        found := re.match(r"invalid choice '(.*)' for argument '(.*)'\. .*\((.*)\)", text)
    ):
        value, flag, choices = found[1], found[2], re.findall("'(.*?)'", found[3])
        return f"{flag} must be one of {', '.join(choices)}, got {value!r}{nearest(value, choices)}"
    if title == "Required options":
        names = _first_words(first)
        unknown = [word for part in others if part[0].startswith("Unrecognized") for word in _first_words(part)]
        said = f"; unknown {unknown[0]}{nearest(unknown[0], names)}" if unknown else ""
        return f"{text.partition(':')[0].removeprefix('Missing from ')} needs {', '.join(names)}{said}"
    if title == "Unrecognized options":
        return _unknown(first, others)
    return text[:1].lower() + text[1:].rstrip(".")


def _unknown(said: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    """Of words that are no flag, no value and no command; `others` is what there is."""
    if len(said) == 1 or not said[0].startswith("Unrecognized or misplaced"):
        words = " ".join(said).partition(": ")[2].split(", ")
    else:
        words = [line.split(" (applied to ")[0].strip() for line in said if " (applied to " in line]
    flags = [word for word in words if word.startswith("-")] or words
    listed = [" ".join(part) for part in others if part[0].startswith("Available subcommands: ")]
    if listed and not words[0].startswith("-"):
        choices = listed[0].partition(": ")[2].replace(",", " ").split()
        return f"expected one of {', '.join(choices)}, got {words[0]!r}{nearest(words[0], choices)}"
    near = dict.fromkeys(word for part in others for word in _first_words(part) if word.startswith("--"))
    return f"unknown {', '.join(flags)}{'; nearest: ' + ', '.join(list(near)[:3]) if near else ''}"


def _usage(help_text: Sequence[str]) -> str:
    """A flag and what it takes, from the lines behind "Argument helptext:"; that it may be left out is no news here."""
    usage, *more = [line.strip() for line in help_text[1:]] or [""]
    while more and usage.count("{") > usage.count("}"):  # a narrow terminal
        usage += more.pop(0)
    return re.sub(r"\{([^,{}]*)\}", r"\1", usage.replace("{None}|", ""))


def _first_words(lines: Sequence[str]) -> list[str]:
    """Of the lines that begin at the depth where boxes list flags."""
    return [line.split()[0].rstrip(",") for line in lines if re.match(r" {4}\S", line)]


def _parts(box: str) -> tuple[str, list[list[str]]]:
    """Title of a box, and its lines between rules; it is drawn with letters where the terminal has nothing else."""
    top, *rows = _COLOUR.sub("", box).splitlines() or [""]
    parts: list[list[str]] = [[]]
    for row in rows:
        drawn = set(row.strip("│╰╯ "))
        if drawn and drawn <= {"─", "-"}:
            parts.append([])
        elif drawn:
            parts[-1].append((row.strip("│")[1:] if row.startswith("│") else row[2:]).rstrip())
    return top.strip("╭╮─ "), [part for part in parts if part] or [[""]]

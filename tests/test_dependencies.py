"""What pyproject.toml asks for is pinned with hashes in requirements.lock, and what the packages import is asked for."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import psi_fast
import psi_fast_kernels

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
NOT_LOCKED = {"rapids"}
"""Extras that install beside a GPU only."""


def asked(extra: str | None = None) -> list[Requirement]:
    """Requirements of an extra, those of the extras in it included; None: of the packages themselves."""
    listed = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    found = []
    for one in map(Requirement, listed):
        found += [own for name in one.extras for own in asked(name)] if one.name == PROJECT["name"] else [one]
    return found


def pinned() -> dict[str, tuple[str, int]]:
    """Name -> version and number of hashes."""
    parts = re.findall(
        r"^([\w.-]+)==(\S+)[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", LOCK, re.MULTILINE
    )
    return {canonicalize_name(name): (version, hashes.count("--hash")) for name, version, hashes in parts}


@pytest.mark.parametrize("extra", [None, *sorted(set(PROJECT["optional-dependencies"]) - NOT_LOCKED)])
def test_what_is_asked_for_is_pinned(extra):
    held = pinned()
    for one in asked(extra):
        name = canonicalize_name(one.name)
        assert name in held, f"{one} is not in requirements.lock; make lock"
        version, hashes = held[name]
        assert one.specifier.contains(version, prereleases=True), f"{name} {version} is no {one}; make lock"
        assert hashes >= 1


def test_every_line_of_the_lock_is_a_pin_with_its_hashes():
    rest = [
        line for line in LOCK.splitlines() if line.strip() and not line.lstrip().startswith(("#", "--hash=sha256:"))
    ]
    assert len(rest) == len(pinned())
    assert all(re.match(r"[\w.-]+==[\w.+!]+( ; .*)? \\$", line) for line in rest)
    assert "://" not in LOCK  # packages come from wherever pip is set up to look


def test_what_the_packages_import_is_asked_for():
    """Of what is installed: anything else cannot be imported here, and is named in a test of its own."""
    wanted = {
        canonicalize_name(one.name) for extra in (None, *PROJECT["optional-dependencies"]) for one in asked(extra)
    }
    wanted -= {canonicalize_name(one.name) for one in map(Requirement, PROJECT["optional-dependencies"]["dev"])}
    owners, seen = packages_distributions(), set()
    for package in (psi_fast, psi_fast_kernels):
        for path in Path(package.__file__).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    seen |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    seen.add((node.module or "").split(".")[0])
    seen -= {*sys.stdlib_module_names, "psi_fast", "psi_fast_kernels"}
    assert {"numpy", "torch", "rich"} <= seen
    missing = {name for name in seen & owners.keys() if not wanted & {canonicalize_name(own) for own in owners[name]}}
    # torch brings its own Triton, and each package that reads from the hub the hub's client
    assert missing <= {"triton", "huggingface_hub"}, "imported and not asked for"
